"""A card that is not there: its tensors live in this machine's memory, and every wait is counted.

What computes on a card gives it work and goes on; whoever looks at a number waits until all that
was given is done. On a machine without a card this stands in for one: a device of its own (torch's
``lazy``, which nothing here uses), whose operations are done by the processor. So it shows how
often a round looks, and what mixes tensors of two places fails as it would.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("lazy", 0)
aten = torch.ops.aten
LOOKS = {
    aten._local_scalar_dense.default: "number",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked",
    aten._unique2.default: "unique",
    aten.equal.default: "equal",
}
"""Operations whose answer, or whose size, the processor needs."""
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
COPIES = (aten._to_copy.default, aten.copy_.default)


class There(Tensor):
    """A tensor on the card; ``held`` is where its numbers are."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Self:
        """Wrap a tensor of this machine's."""
        made: Self = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def tolist(self) -> list[Any]:
        """Return the numbers, which are copied from the card first."""
        return self.cpu().tolist()

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:
        """Return a tensor of Python's numbers there, which torch itself cannot make there."""
        return torch.tensor(data, dtype=kwargs.get("dtype", self.dtype)).to(DEVICE)

    def __getitem__(self, key: Any) -> Tensor:
        """Return rows that a list names, as torch does: the list becomes a tensor there first."""
        return super().__getitem__(torch.tensor(key).to(DEVICE) if isinstance(key, list) else key)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute where the numbers are, outside of what counts."""
        return _done(func, args, kwargs or {}, lambda kind: None)


class _Made(TorchFunctionMode):
    """``torch.tensor`` on the card, which torch itself cannot do there."""

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Make it here and move it."""
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return func(*args, **{**kwargs, "device": None}).to(DEVICE)
        return func(*args, **kwargs)


class Card(TorchDispatchMode):
    """While it is entered, the card is there.

    Attributes
    ----------
    waits : Counter
        How often the processor waited, by what for.
    places : Counter
        The same, by the line of the project's own code that asked.
    launches : Counter
        How often the card was given work, by operation: all but views, which compute nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.places: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self._made = _Made()

    def __enter__(self) -> Self:
        """Let tensors be made there as well."""
        self._made.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Take both away."""
        super().__exit__(*error)
        self._made.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute, and count what is given to the card and what has to be waited for."""
        there = any(isinstance(one, There) for one in _leaves((args, kwargs or {})))
        if there and not func.is_view and func not in (*LOOKS_AWAY, *NO_WORK):
            self.launches[str(func)] += 1
        return _done(func, args, kwargs or {}, self._wait)

    def _wait(self, kind: str) -> None:
        self.waits[kind] += 1
        frames = traceback.extract_stack()
        own = [
            one for one in frames if "/pfl_flower/" in one.filename or "/clients/" in one.filename
        ]
        own += [one for one in frames if "/strategies/" in one.filename]
        own.sort(key=frames.index)
        if own:
            name = "/".join(own[-1].filename.split("/")[-2:])
            self.places[f"{kind} {name}:{own[-1].lineno}"] += 1


def _done(func: Any, args: Any, kwargs: dict[str, Any], wait: Callable[[str], None]) -> Any:
    flat = [one for one in _leaves((args, kwargs)) if isinstance(one, Tensor)]
    there = [one for one in flat if isinstance(one, There)]
    named = kwargs.get("device")
    asked = None if named is None else torch.device(named).type
    goal = bool(there) if asked is None else asked == DEVICE.type
    if func in COPIES:
        source = args[1] if func is aten.copy_.default else args[0]
        into = isinstance(args[0], There) if func is aten.copy_.default else goal
        if isinstance(source, There) != into and source.numel():
            wait("to the card" if into else "from the card")
    elif there:
        _check(func, args, flat, wait)
    plain_args, plain_kwargs = tree_map(_held, (args, kwargs))
    if asked == DEVICE.type:
        plain_kwargs["device"] = torch.device("cpu")
    found = func(*plain_args, **plain_kwargs)
    if func._schema.is_mutable and there and not kwargs.get("out"):
        return args[0] if found is plain_args[0] else found
    return tree_map(_wrapped, found) if goal and func not in LOOKS_AWAY else found


LOOKS_AWAY = (aten._local_scalar_dense.default, aten.equal.default)
"""Those whose answer is no tensor."""
NO_WORK = (aten._lazy_clone.default, aten._unsafe_view.default)
"""Those that compute nothing, and yet are no views: a copy that is made when it is written to."""


def _check(func: Any, args: Any, flat: Sequence[Tensor], wait: Callable[[str], None]) -> None:
    """Count what looks, and refuse what mixes places as a card does."""
    if func in LOOKS:
        wait(LOOKS[func])
    if func in INDEXED:
        for index in args[1]:
            if isinstance(index, There) and index.dtype == torch.bool:
                wait("mask")
            elif isinstance(index, Tensor) and not isinstance(index, There) and index.dim():
                wait("to the card")
        return
    mixed = [one for one in flat if not isinstance(one, There) and one.dim() > 0]
    if mixed:
        raise RuntimeError(f"{func}: expected all tensors on one device")


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    if isinstance(tree, list | tuple):
        return [leaf for value in tree for leaf in _leaves(value)]
    return [tree]


def _held(value: Any) -> Any:
    return value.held if isinstance(value, There) else value


def _wrapped(value: Any) -> Any:
    return There(value) if isinstance(value, Tensor) and not isinstance(value, There) else value
