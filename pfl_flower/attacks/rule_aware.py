"""The attack that knows the rule: as far towards CGA's wish as the rule lets k reports carry it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_flower.attacks.attack import Observation, known_rows
from pfl_flower.attacks.rule_search import Rule, RuleSearch
from pfl_flower.attacks.setup import AttackSetup
from pfl_flower.attacks.untargeted import NoMemory
from pfl_flower.objective.plausible import Plausible
from pfl_flower.objective.vectors import length, middle, ratio

TRIALS = 160
"""Reports that a round's search tries: the lines take 60, the gradient 25, and a pass over the
differences of ten rows as many as that."""
GUESSES = 4


@dataclass(frozen=True, kw_only=True)
class RuleAware:
    """Report what carries the server's direction farthest towards ``(rho_t - target)/eta_t``.

    That wish is CGA's (Equation 6): the direction that lands rho on the target. The sum grants it,
    and the report is then CGA's own; any other public rule grants what ``RuleSearch`` finds, for k
    users who report the same vector within GRAD(rho_t) and the norm limit. What others send is a
    guess, the honest reports on datasets of the attacker's own, or known. (The search for the
    strongest report that a known rule accepts is that of Fang, Cao, Jia, Gong, *Local model
    poisoning attacks to Byzantine-robust federated learning*, 2020, and of Shejwalkar, Houmansadr,
    *Manipulating the Byzantine*, 2021; here it has a target, and is not made for one rule.)

    Parameters
    ----------
    target : Tensor
        theta_dagger, ``(d,)``.
    rule : callable
        The server's rule, from rows to a direction.
    within : Plausible
        What a report may be: GRAD, or what the server has in its place.
    datasets : tuple of int
        Ids of the datasets of the attacker's own, for each guess as many as there are honest users;
        empty where it is given the honest reports.
    guesses : int
        How often it guesses at them. Of four the least cut-off is below the true one four times
        out of five; on the digits, two guesses carry nothing through Multi-Krum, four what there
        is to be had.
    copies : int
        k, the number of users who share the target, and report the same.
    limit : float
        The server's limit on a report's norm, 0 for none.
    trials : int
        How often a round's search may work the rule out.
    """

    target: Tensor
    rule: Rule
    within: Plausible
    datasets: tuple[int, ...]
    guesses: int = GUESSES
    copies: int = 1
    limit: float = 0.0
    trials: int = TRIALS

    @property
    def joint(self) -> tuple[object, ...]:
        """Equal for users who report the same: their node works it out once."""
        return id(self.target), self.datasets, self.copies

    def init(self, rho: Tensor) -> NoMemory:
        """Return the empty state."""
        return NoMemory()

    def update(self, state: NoMemory, observation: Observation) -> tuple[Tensor, NoMemory]:
        """Return the best report ``(d,)`` that was found, and the unchanged state."""
        wish = ratio(observation.rho - self.target, observation.eta)
        rows = known_rows(self.datasets, observation)
        copies = self.copies
        if observation.coalition is not None:
            copies = max(1, min(copies, observation.coalition))
        if len(rows) == 0:
            return self.plausible(wish / copies), state
        # In units of the rows, whose squares may be beyond the range of numbers.
        one = middle(rows)
        search = RuleSearch(
            # A rule may have a length of its own, such as a clipping radius, that no unit changes.
            rule=lambda scaled: self.rule(scaled * one) / one,
            others=(rows / one).reshape(self.guesses if self.datasets else 1, -1, len(wish)),
            copies=copies,
            wish=ratio(wish, one),
            plausible=lambda report: self.plausible(report * one) / one,
            trials=self.trials,
        )
        return search.run() * one, state

    def plausible(self, report: Tensor) -> Tensor:
        """Return the vector nearest to a report that the server does not refuse."""
        inside = self.within.project(report)
        if self.limit == 0:
            return inside
        size = length(inside)
        # A whole norm at the limit could be rounded beyond it.
        return torch.where(size > self.limit, inside / size * (self.limit * (1 - 1e-9)), inside)


def rule_aware(setup: AttackSetup, *, trials: int = TRIALS, guesses: int = GUESSES) -> RuleAware:
    """Return the attack on the run's rule."""
    return RuleAware(
        target=setup.target,
        rule=setup.rule,
        within=setup.plausible,
        datasets=setup.stand_ins(guesses),
        guesses=guesses,
        copies=setup.allies,
        limit=setup.settings.max_gradient_norm,
        trials=trials,
    )
