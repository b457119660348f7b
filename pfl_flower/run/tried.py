"""What a trial asks of a member of a table: that it works, and that its answers have a form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfl_flower.objective.user_data import UserData
from pfl_flower.objective.vectors import finite
from pfl_flower.run.problem import Problem
from pfl_flower.support.errors import ConfigError, DataError
from pfl_flower.support.plugins import told
from pfl_flower.support.seeding import generator

POINTS = 12
"""Most points of a user in a trial."""


@dataclass(frozen=True)
class Tried:
    """A member of an extension point while it is tried.

    Attributes
    ----------
    point, value : str
        The key and its value, which every refusal names.
    """

    point: str
    value: str

    def refusal(self, right: str) -> ConfigError:
        """Return the error that says what would be right."""
        return ConfigError(f"{self.point} = {self.value}: expected {right}")

    def memory(self, state: object) -> dict[str, Tensor]:
        """Return the fields of a state that can be kept between rounds."""
        if not all(hasattr(state, name) for name in ("_fields", "_asdict", "_replace")):
            kind = type(state).__name__
            raise self.refusal(f"a state that is a NamedTuple of tensors, and it is a {kind}")
        fields: dict[str, Any] = state._asdict()  # type: ignore[attr-defined]
        for name, value in fields.items():
            if not isinstance(value, Tensor):
                kind = type(value).__name__
                raise self.refusal(f"a state of tensors, and its {name} is a {kind}")
            try:
                value.detach().cpu().numpy()
            except (RuntimeError, TypeError) as error:
                right = f"a state of tensors that can be kept, and its {name} cannot"
                raise self.refusal(f"{right} ({told(error)})") from error
        return fields

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Refuse a member whose code raises in the body, with its own file, line and message."""
        try:
            yield
        except (ConfigError, DataError):
            raise
        except (Exception, SystemExit) as error:
            raise self.refusal(f"{what} that works ({told(error)})") from error

    def tensor(self, what: str, found: object, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return what is a finite tensor of this shape, in the precision and the place of another.

        Raises
        ------
        ConfigError
            If it is not.
        """
        if not isinstance(found, Tensor):
            raise self.refusal(f"{what} that is a tensor, and it is a {type(found).__name__}")
        for how, is_so, right in (
            ("of shape", tuple(found.shape), shape),
            ("in", found.dtype, like.dtype),
            ("on", found.device, like.device),
        ):
            if is_so != right:
                raise self.refusal(f"{what} {how} {right}, and it is {is_so}")
        if not bool(finite(found).all()):
            raise self.refusal(f"{what} of finite numbers")
        return found


def made_up(problem: Problem, *shape: int, words: tuple[str | int, ...]) -> Tensor:
    """Return normal numbers in the run's precision and place, from a generator of a trial's own."""
    draw = generator(problem.config.seed, "trial", *words)
    numbers = torch.randn(shape, generator=draw, dtype=torch.float64)
    return numbers.to(problem.device, problem.dtype)


def few_points(problem: Problem) -> UserData:
    """Return a small draw of the first user's, or made-up points where those are on nodes."""
    if not problem.source.at_hand:
        return _like_points(problem)
    drawn = problem.source.draw(0, min(POINTS, problem.size(0)), problem.config.seed)
    labels = drawn.labels.to(problem.device)
    typed = labels.to(problem.dtype) if labels.is_floating_point() else labels
    return UserData(drawn.features.to(problem.device, problem.dtype), typed)


def _like_points(problem: Problem) -> UserData:
    source = problem.source
    features = made_up(problem, POINTS, source.inputs, words=("points",))
    if source.bias:
        features[:, -1] = 1
    if source.loss != "softmax":
        return UserData(features, made_up(problem, POINTS, words=("answers",)))
    return UserData(features, torch.arange(POINTS, device=problem.device) % source.outputs)
