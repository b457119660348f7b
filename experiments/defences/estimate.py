"""How long a plan takes: one run of each kind is timed, and is part of the plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from experiments.defences.cells import Cells, Row
from experiments.defences.plan import ATTACKS, NOBODY, Cell

ASKING = "rule-aware"
"""The attack by which a rule's questions are timed."""
USUAL = "median"
"""The rule by which attacks are timed, where it is in the plan."""


@dataclass(frozen=True)
class Forecast:
    """Seconds of every cell, from one run of each attack and two of each rule.

    What an attack ``a`` takes under a rule ``r`` is what a run without one takes under ``r``, and
    what ``a`` takes more under the usual rule ``u``; if ``a`` puts questions to the rule, as much
    more as ``rule-aware`` takes more under ``r`` than under ``u``:

        t(a, r) = t(none, r) + (t(a, u) - t(none, u)) * (1, or the ratio of those of rule-aware)

    Scenes take alike, as their users have the same number of points. Times are of the processor,
    since a run that is kept from before may have waited for others' work: one of 0.2 s took 14 s by
    the clock. What the machine is like now is a factor, from the runs of this sitting alone.
    """

    cells: Cells

    @property
    def scene(self) -> str:
        """The scene that is timed: the first."""
        return self.cells.plan.cells[0].scene

    @property
    def usual(self) -> str:
        """The rule by which attacks are timed."""
        rules = list(self.cells.plan.rules)
        return USUAL if USUAL in rules else rules[-1]

    def kinds(self) -> list[Cell]:
        """Return the cells that are timed."""
        return [
            cell
            for cell in self.cells.plan.cells
            if cell.scene == self.scene
            and (cell.attack in (NOBODY, ASKING) or cell.rule == self.usual)
        ]

    def seconds(self, cell: Cell) -> float:
        """Return what a cell takes of the processor; 0 of one whose kind broke off."""
        base, more = self._timed(NOBODY, cell.rule), self._more(cell.attack, self.usual)
        if ATTACKS[cell.attack].asks:
            usual = self._more(ASKING, self.usual)
            more *= self._more(ASKING, cell.rule) / usual if usual > 0 else 1.0
        return base + more

    def total(self, cells: Iterable[Cell]) -> float:
        """Return what cells take by the clock, one after another, as the machine is used now."""
        return sum(map(self.seconds, cells)) * self.cells.slowness

    def _more(self, attack: str, rule: str) -> float:
        return max(0.0, self._timed(attack, rule) - self._timed(NOBODY, rule))

    def _timed(self, attack: str, rule: str) -> float:
        took: Row = self.cells.row(Cell(self.scene, attack, rule)) or {}
        name = "processor" if "processor" in took else "seconds"
        return float(took.get(name, 0.0))


def clock(seconds: float) -> str:
    """Return a duration in words.

    >>> clock(42.0), clock(700.0), clock(9000.0)
    ('42 s', '12 min', '2 h 30 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
