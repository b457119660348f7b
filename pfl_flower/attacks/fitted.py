"""Attacks of the literature that are fitted to a rule: by a line search, or to Krum's choice.

The papers' attackers know the honest reports of the round; with ``attack-knowledge = rule`` they
take surrogates for them here. The harness projects what they report on GRAD(rho_t).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_flower.aggregation.rules import krum
from pfl_flower.attacks.attack import Observation, known_rows
from pfl_flower.attacks.rule_search import Rule
from pfl_flower.attacks.setup import AttackSetup
from pfl_flower.attacks.untargeted import NoMemory, Untargeted
from pfl_flower.objective.vectors import length, middle

STRENGTHS = tuple(sign * 2.0**power for sign in (1, -1) for power in range(-6, 7))
"""That are tried first: from what nobody notices to what no rule can miss, to either side."""
NARROWED = 12
"""Golden sections between the neighbours of the best of them: to 0.62^12, a third of a percent."""
GOLDEN = (5**0.5 - 1) / 2
HALVINGS = 40
"""Of Fang et al.'s bound. They end at 1e-5 of their models' units, which is no unit of ours."""


@dataclass(frozen=True, kw_only=True)
class Fitted(Untargeted):
    """Report ``b + z v`` with the z, of either sign, that leads the rule farthest astray.

    z maximises ``||F(H, a, ..., a) - n mu||`` with F the rule of the ``n = m + k`` rows and mu the
    mean of H: what the papers tune by hand for each rule (Shejwalkar, Houmansadr, *Manipulating the
    Byzantine*, 2021, Section IV, and byzfl's optimised attacks).

    Parameters
    ----------
    rule : callable
        F, from rows to a direction.
    copies : int
        k.
    """

    rule: Rule
    copies: int = 1

    @property
    def joint(self) -> tuple[object, ...]:
        """Equal for users who report the same: their node works it out once."""
        return type(self), self.datasets, self.copies

    def update(self, state: NoMemory, observation: Observation) -> tuple[Tensor, NoMemory]:
        """Return the report ``(d,)``, not yet projected, and the unchanged state."""
        rows = known_rows(self.datasets, observation)
        if len(rows) == 0:
            return torch.zeros_like(observation.rho), state
        # The rule sees its own units: it may have a length of its own, a clipping radius.
        one = middle(rows)
        return self.fit(rows / one, lambda scaled: self.rule(scaled * one) / one) * one, state

    def fit(self, rows: Tensor, rule: Rule) -> Tensor:
        """Return the best report for a rule."""
        base, along = self.line(rows)
        wanted = (len(rows) + self.copies) * rows.mean(dim=0)

        def led(strength: float) -> float:
            sent = (base + strength * along).expand(self.copies, -1)
            return float(length(rule(torch.cat([rows, sent])) - wanted))

        best = max(STRENGTHS, key=led)
        chosen = max((best, narrowed(led, *sorted((best / 2, 2 * best)))), key=led)
        return base + chosen * along

    def line(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return b and v, each ``(d,)``."""
        raise NotImplementedError


def narrowed(value: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function of one peak between two numbers is largest, by golden sections.

    >>> round(narrowed(lambda x: -(x - 0.3) ** 2, 0.0, 1.0), 2)
    0.3
    """
    for _ in range(NARROWED):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        low, high = (low, right) if value(left) >= value(right) else (left, high)
    return (low + high) / 2


@dataclass(frozen=True, kw_only=True)
class FittedDeviation(Fitted):
    """A Little Is Enough with the strength that suits the rule: ``mu + z sigma``.

    (Baruch, Baruch, Goldberg, *A little is enough*, 2019, whose z hides among the honest.)
    """

    def line(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the deviation, from m - 1 degrees of freedom."""
        mean = rows.mean(dim=0)
        return mean, rows.std(dim=0) if len(rows) > 1 else torch.zeros_like(mean)


@dataclass(frozen=True, kw_only=True)
class FittedMean(Fitted):
    """Inner product manipulation with the strength that suits the rule: ``z mu``.

    (Xie, Koyejo, Gupta, *Fall of empires*, 2020, whose ``z = -epsilon``.)
    """

    def line(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return 0 and the mean."""
        mean = rows.mean(dim=0)
        return torch.zeros_like(mean), mean


@dataclass(frozen=True, kw_only=True)
class FangKrum(Untargeted):
    """Report ``-l s``, ``s = sign(mu)``, with the largest l at which Krum still picks it.

    l is halved from the bound of Theorem 1 until Krum does, of the m rows and k of these (Fang,
    Cao, Jia, Gong, *Local model poisoning attacks to Byzantine-robust federated learning*, 2020,
    Section 4.2; the report is the change of the model that they send, the other way up). Where Krum
    picks none, as where honest reports have more in common than apart, next to nothing is sent.

        l <= min_i sum of the n - k - 2 least ||g_i - g_j|| / ((n - 2k - 1) sqrt d)
             + max_i ||g_i|| / sqrt d.

    Parameters
    ----------
    copies : int
        k.
    """

    copies: int = 1

    @property
    def joint(self) -> tuple[object, ...]:
        """Equal for users who report the same: their node works it out once."""
        return type(self), self.datasets, self.copies

    def report(self, rows: Tensor, observation: Observation) -> Tensor:
        """Return ``-l s``."""
        against, size = -rows.mean(dim=0).sign(), self.bound(rows)
        for _ in range(HALVINGS):
            if self.picked(rows, size * against):
                break
            size /= 2
        return size * against

    def picked(self, rows: Tensor, report: Tensor) -> bool:
        """Whether Krum picks the report, sent k times, from among the rows."""
        together = torch.cat([rows, report.expand(self.copies, -1)])
        chosen = krum(together, tolerance=self.copies) / len(together)
        return bool(torch.isclose(chosen, report, rtol=1e-9, atol=0).all())

    def bound(self, rows: Tensor) -> float:
        """Return the largest l that there can be."""
        users, root = len(rows) + self.copies, math.sqrt(rows.shape[1])
        near = max(1, users - self.copies - 2)
        sums = [float(length(rows - row)[:, 0].sort().values[1 : near + 1].sum()) for row in rows]
        spread = min(sums) / max(1, users - 2 * self.copies - 1)
        return (spread + float(length(rows).max())) / root


def fitted_little_is_enough(setup: AttackSetup) -> FittedDeviation:
    """Return A Little Is Enough, fitted to the run's rule."""
    return FittedDeviation(datasets=setup.stand_ins(1), rule=setup.rule, copies=setup.allies)


def fitted_inner_product(setup: AttackSetup) -> FittedMean:
    """Return inner product manipulation, fitted to the run's rule."""
    return FittedMean(datasets=setup.stand_ins(1), rule=setup.rule, copies=setup.allies)


def fang_krum(setup: AttackSetup) -> FangKrum:
    """Return Fang et al.'s attack on Krum, whatever the run's rule is."""
    return FangKrum(datasets=setup.stand_ins(1), copies=setup.allies)
