"""What is worked out once, and kept as long as the object that it was worked out for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast


class Memo:
    """The values of ``remembered`` functions for one object; these alone read and write it."""

    def __init__(self) -> None:
        self._values: dict[Hashable, Any] = {}

    def value(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the value of a key, made when first asked for; a failure is not kept."""
        if key not in self._values:
            self._values[key] = make()
        return self._values[key]

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self._values)


class Remembering(Protocol):
    """An object with a memo of its own."""

    @property
    def memo(self) -> Memo:
        """What was worked out for it."""
        ...


Owner = TypeVar("Owner", bound=Remembering)
Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")


def remembered(
    function: Callable[Concatenate[Owner, Arguments], Value],
) -> Callable[Concatenate[Owner, Arguments], Value]:
    """Make a function, or a method, work out its value once for each object and arguments.

    Unlike ``functools.cache`` it keeps nothing past the life of the object, its first argument,
    which needs no hash; the others do.

    >>> class Problem:
    ...     def __init__(self):
    ...         self.memo = Memo()
    >>> @remembered
    ... def square(problem, number):
    ...     print("working")
    ...     return number * number
    >>> first, second = Problem(), Problem()
    >>> square(first, 3), square(first, 3), square(second, 3)
    working
    working
    (9, 9, 9)
    """

    @functools.wraps(function)
    def recall(owner: Owner, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
        key = function, args, tuple(sorted(kwargs.items()))
        return cast(Value, owner.memo.value(key, lambda: function(owner, *args, **kwargs)))

    return recall
