"""Rows in other units where their own would overflow or vanish."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")

FEW_DIGITS = 2.0**60
"""Rows all of whose entries are below this many times the least normal number are taken up: a mean
or a ratio of such numbers has lost digits, or is 0."""
UP = 2.0**-100
"""Unit of tiny rows: far from both ends of the range in single precision, too."""


def unit(rows: Tensor) -> float:
    """Return a power of two in which lengths of differences of the rows ``(k, d)`` are finite.

    It is 1 but for rows within ``4 sqrt(k d)`` of the largest number, or all of them tiny. Huge
    rows are taken down by that factor and no more, so that one huge row costs the others no digit
    unless they are as near to the smallest number.

    >>> unit(torch.ones(2, 2)), unit(torch.full((2, 8), 3e38))
    (1.0, 16.0)
    """
    low, high = torch.aminmax(rows)
    return unit_of(rows, max(-float(low), float(high)))


def unit_of(rows: Tensor, largest: float) -> float:
    """Return the ``unit`` of rows ``(k, d)`` whose largest entry, of either sign, is known."""
    limits = torch.finfo(rows.dtype)
    room = _room(rows)
    if largest > limits.max / room:
        return room
    return UP if 0 < largest < limits.tiny * FEW_DIGITS else 1.0


def unit_there(rows: Tensor) -> Tensor:
    """Return the same of rows on a card, as a tensor that stays there: nobody waits for it."""
    low, high = torch.aminmax(rows)
    largest, limits = torch.maximum(-low, high), torch.finfo(rows.dtype)
    one = torch.ones_like(largest)
    tiny = (largest > 0) & (largest < limits.tiny * FEW_DIGITS)
    small = torch.where(tiny, one * UP, one)
    return torch.where(largest > limits.max / _room(rows), one * _room(rows), small)


def _room(rows: Tensor) -> float:
    # A difference is twice, a length of d of them sqrt(d), a length of k lengths sqrt(k) as large.
    return float(2.0 ** math.ceil(math.log2(4 * math.sqrt(rows.numel()))))


def in_units(
    *lengths: str,
) -> Callable[[Callable[Concatenate[Tensor, P], Tensor]], Callable[Concatenate[Tensor, P], Tensor]]:
    """Return a decorator of rules that scale as their rows do: worked out in ``unit(rows)``.

    Multiplying by a power of two rounds nothing, so that the result overflows only if it is itself
    beyond the numbers. Rows of ordinary size are passed on as they are.

    Parameters
    ----------
    *lengths
        Parameters of the rule that are lengths, and scale as well.
    """

    def decorate(
        rule: Callable[Concatenate[Tensor, P], Tensor],
    ) -> Callable[Concatenate[Tensor, P], Tensor]:
        @wraps(rule)
        def scaled(rows: Tensor, /, *args: P.args, **options: P.kwargs) -> Tensor:
            if not rows.is_cpu and not lengths:
                there = unit_there(rows)
                return rule(rows / there, *args, **options) * there
            one = unit(rows)
            if one == 1:
                return rule(rows, *args, **options)
            for name in lengths:
                if options.get(name):
                    # A length that is not 0 stays so: 0 may have a meaning of its own.
                    options[name] = options[name] / one or options[name]  # type: ignore[operator]
            return rule(rows / one, *args, **options) * one

        return scaled

    return decorate
