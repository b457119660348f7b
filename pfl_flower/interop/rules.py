"""The rule of a robust average: its arguments, checked, and what it makes of a round."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pfl_flower.aggregation.combination import PARAMETERS
from pfl_flower.aggregation.rounds import is_told_f, sees_rounds
from pfl_flower.aggregation.rules import mixed
from pfl_flower.aggregation.table import AGGREGATIONS, most_tolerated, rows_needed
from pfl_flower.interop.rounds import Rounds
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.foreign_text import one_line
from pfl_flower.support.plugins import given, shown, told
from pfl_flower.support.seeding import generator, undisturbed

FEWEST = 3
"""Rows on which a rule of one's own is tried, if it needs no more."""


class AppRule:
    """A rule of ``pfl_flower.aggregation`` over the rows of an app's rounds.

    Parameters
    ----------
    rule, tolerance, options, mixing, seed
        As of ``RobustFedAvg``.

    Raises
    ------
    ConfigError
        One line about the argument that is wrong.
    """

    def __init__(
        self,
        rule: str | Callable[..., Any],
        *,
        tolerance: int | None,
        options: Mapping[str, Any] | None,
        mixing: bool,
        seed: int,
    ) -> None:
        if not isinstance(rule, str) and not callable(rule):
            raise ConfigError(f"rule = {one_line(rule)}: expected {AGGREGATIONS.described}")
        if not isinstance(mixing, bool):
            raise ConfigError(f"mixing = {one_line(mixing)}: expected True or False")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ConfigError(f"seed = {one_line(seed)}: expected a whole number")
        self._rule = rule if isinstance(rule, str) else given(rule)
        self.name, self.mixing, self.seed = shown(self._rule), mixing, seed
        with _in_these_words():
            factory = AGGREGATIONS.load(self._rule)
            if AGGREGATIONS.row(self._rule).root:
                others = ", ".join(name for name, row in AGGREGATIONS.items() if not row.root)
                right = f"{others}: the server has no points of its own here"
                raise ConfigError(f"rule = {self.name}: expected {right}")
            keyed, self._options = self._split(options)
            chosen = AGGREGATIONS.options(self._rule, self._options)
        self.tolerance = self._tolerated(tolerance)
        if self._told_f(factory, tolerance):
            keyed["tolerance"] = self.tolerance
        self._factory = partial(factory, **chosen, **keyed)
        self._rounds = Rounds(self._factory, seed) if sees_rounds(factory) else None

    @property
    def own(self) -> bool:
        """Whether it is none of the table."""
        return AGGREGATIONS.row(self._rule) is AGGREGATIONS.own

    def needed(self) -> int:
        """Return the least number of rows among which it withstands f."""
        if self.own:
            return 1
        found = rows_needed(self._rule, self.tolerance, mixing=self.mixing, options=self._options)
        return found or 1

    def at(
        self, server_round: int, nodes: Sequence[int], rho: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """Return the rule in a round: from the rows ``(k, d)`` of these nodes to a direction.

        Raises
        ------
        ConfigError
            By what is returned, if a rule of one's own makes none.
        """

        def direction(rows: Tensor) -> Tensor:
            seen = mixed(rows, tolerance=self.tolerance) if self.mixing else rows
            if self._rounds is None:
                return self._checked(self._factory(seen), rows)
            return self._checked(self._rounds.direction(server_round, nodes, rho, seen), rows)

        return direction

    def try_on(self, rho: Tensor) -> None:
        """Have a rule of one's own answer in two rounds, which it then forgets.

        Raises
        ------
        ConfigError
            If it raises, or makes no direction.
        """
        if not self.own:
            return
        draw = generator(self.seed, "trial")
        count = max(FEWEST, 2 * self.tolerance + FEWEST)
        rows = torch.randn((count, len(rho)), generator=draw, dtype=torch.float64)
        try:
            with undisturbed():
                for number in (1, 2):
                    self.at(number, range(count), rho)(rows.clone())
        except ConfigError:
            raise
        except Exception as error:
            right = f"expected a rule that works ({told(error)})"
            raise ConfigError(f"rule = {self.name}: {right}") from error
        finally:
            if self._rounds is not None:
                self._rounds = Rounds(self._factory, self.seed)

    def _checked(self, made: Any, rows: Tensor) -> Tensor:
        right = isinstance(made, Tensor) and made.shape == rows.shape[1:]
        if not right or not bool(made.isfinite().all()):
            raise ConfigError(
                f"rule = {self.name}: expected {rows.shape[1]} finite numbers of rows of the shape "
                f"{tuple(rows.shape)}"
            )
        return made

    def _split(self, options: Mapping[str, Any] | None) -> tuple[dict[str, Any], str]:
        """Return what a run's keys say of the rule elsewhere, and its own options as JSON."""
        try:
            rest = dict(options or {})
            json.dumps(rest)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"options = {one_line(options)}: expected JSON's values") from error
        names = [PARAMETERS[key] for key in AGGREGATIONS.row(self._rule).reads]
        keyed = {name: rest.pop(name) for name in names if name in rest}
        for name, value in keyed.items():
            whole = name == "selected"
            kind = int if whole else int | float
            number = isinstance(value, kind) and not isinstance(value, bool)
            if not number or not 0 < value < math.inf:
                right = f"a {'whole ' if whole else ''}number above 0"
                raise ConfigError(f"options = {name}: {one_line(value)}: expected {right}")
        return keyed, json.dumps(rest)

    def _tolerated(self, tolerance: int | None) -> int:
        """Return f, 1 where it is not given and means something."""
        whole = isinstance(tolerance, int) and not isinstance(tolerance, bool)
        if tolerance is not None and (not whole or tolerance < 0):
            raise ConfigError(f"tolerance = {one_line(tolerance)}: expected a whole number from 0")
        names_f = self.own or self._most(1) is not None
        if tolerance is not None and not names_f:
            raise ConfigError(f"tolerance = {tolerance}: expected none, {self.name} names no f")
        f = int(names_f) if tolerance is None else tolerance
        if not self.own:
            mixing, options = self.mixing, self._options
            if rows_needed(self._rule, f, mixing=mixing, options=options) is None:
                most = max(self._most(rows) or 0 for rows in (100, 10_000))
                raise ConfigError(f"tolerance = {f}: expected at most {most}")
        return f

    def _most(self, rows: int) -> int | None:
        return most_tolerated(self._rule, rows, mixing=self.mixing, options=self._options)

    def _told_f(self, factory: Callable[..., Any], tolerance: int | None) -> bool:
        """Return whether the rule is told f: one of one's own only what was given."""
        has = is_told_f(factory)
        if self.own and tolerance is not None and not has and not self.mixing:
            right = f"expected none, {self.name} has no parameter tolerance"
            raise ConfigError(f"tolerance = {tolerance}: {right}")
        return has and not (self.own and tolerance is None)


@contextmanager
def _in_these_words() -> Iterator[None]:
    """Name arguments as they are called here, where the table names a run's keys."""
    point = AGGREGATIONS.point
    try:
        yield
    except ConfigError as error:
        said = str(error)
        for key, name in ((f"{point}-options", "options"), (point, "rule")):
            if said.startswith(f"{key} ="):
                said = name + said.removeprefix(key)
        raise ConfigError(said) from None
