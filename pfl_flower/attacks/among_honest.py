"""Untargeted attacks that hide among the honest reports, or just beyond the last of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pfl_flower.attacks.attack import Observation, known_rows
from pfl_flower.attacks.setup import AttackSetup
from pfl_flower.attacks.untargeted import Untargeted
from pfl_flower.objective.vectors import length, middle
from pfl_flower.support.seeding import generator

FACTOR = 2.0
"""Fang et al.'s b."""


@dataclass(frozen=True, kw_only=True)
class MinSum(Untargeted):
    """Report ``mu - gamma sigma``, as far from all together as the farthest honest report is.

    gamma is the largest with ``sum_i ||a - g_i||^2 <= max_j sum_i ||g_j - g_i||^2`` (Shejwalkar,
    Houmansadr, *Manipulating the Byzantine*, 2021). As ``mu`` is the mean, the left side is
    ``sum_i ||mu - g_i||^2 + m gamma^2 ||sigma||^2``.
    """

    def report(self, rows: Tensor, observation: Observation) -> Tensor:
        """Return ``mu - gamma sigma``."""
        mean = rows.mean(dim=0)
        if len(rows) < 2:
            return mean
        away = -rows.std(dim=0)
        square = len(rows) * (away @ away)
        if square == 0:
            return mean
        farthest = max((rows - row).square().sum() for row in rows)
        room = (farthest - (rows - mean).square().sum()).clamp(min=0)
        return mean + torch.sqrt(room / square) * away


@dataclass(frozen=True, kw_only=True)
class FangTrimmedMean(Untargeted):
    """Report, in each coordinate, a number beyond all honest ones, on the side that they are not.

    Where ``mu_j > 0`` it is drawn from ``[2 l, l]`` or, ``l > 0``, from ``[l/2, l]``, l the least
    of the honest numbers; else beyond the largest, the other way round. From surrogates it is drawn
    from ``mu_j - 4 sigma_j`` to ``mu_j - 3 sigma_j``, or ``+`` (Fang, Cao, Jia, Gong, *Local model
    poisoning attacks to Byzantine-robust federated learning*, 2020, Section 4.3, with b = 2; the
    report is the change of the model that they send, the other way up).

    Parameters
    ----------
    seed, user : int
        Of the draws, one for each round: each user draws its own.
    """

    seed: int
    user: int

    def report(self, rows: Tensor, observation: Observation) -> Tensor:
        """Return numbers beyond the honest ones."""
        draw = generator(self.seed, "fang", self.user, observation.round)
        part = torch.rand(rows.shape[1], generator=draw, dtype=torch.float64).to(rows)
        mean = rows.mean(dim=0)
        # What pulls the other way: the mirror image of what pulls where the honest do.
        side = torch.where(mean > 0, -1.0, 1.0).to(rows)
        if self.datasets:
            return mean + side * (3 + part) * rows.std(dim=0)
        last = side * (side * rows).amax(dim=0)
        beyond = torch.where(side * last > 0, FACTOR * last, last / FACTOR)
        return last + part * (beyond - last)


class MimicState(NamedTuple):
    """What the attacker has seen of how honest reports differ.

    Attributes
    ----------
    direction : Tensor
        Estimate of the direction in which they differ most, ``(d,)``.
    mean : Tensor
        Mean of all reports so far, ``(d,)``.
    rounds : Tensor
        How many rounds it has seen, a scalar.
    """

    direction: Tensor
    mean: Tensor
    rounds: Tensor


@dataclass(frozen=True, kw_only=True)
class Mimic(Untargeted):
    """Repeat the honest report that lies farthest along what sets honest users apart.

    No rule can tell it from an honest one, and it counts k times too often. The direction z is that
    of the largest variance so far, by Oja's rule:

        mu <- (t mu + mean_i g_i)/(t + 1),
        z  <- (t z + c)/(t + 1) of length 1,   c ~ sum_i (g_i - mu) <g_i - mu, z>,  ||c|| = 1,

    and ``argmax_i <z, g_i>`` is repeated (Karimireddy, He, Jaggi, *Byzantine-robust learning on
    heterogeneous datasets via bucketing*, 2022, Appendix B, where the summand is not brought to
    length 1: theirs depends on the unit of the reports).

    Parameters
    ----------
    seed : int
        Of the direction to begin with.
    """

    seed: int

    @property
    def joint(self) -> tuple[object, ...]:
        """Nothing but the reports decides: users report the same."""
        return type(self), self.datasets

    def init(self, rho: Tensor) -> MimicState:  # type: ignore[override]
        """Return some direction, and nothing seen."""
        draw = generator(self.seed, "mimic")
        some = torch.randn(len(rho), generator=draw, dtype=torch.float64).to(rho)
        return MimicState(some / length(some), torch.zeros_like(rho), torch.zeros(()))

    def update(  # type: ignore[override]
        self, state: MimicState, observation: Observation
    ) -> tuple[Tensor, MimicState]:
        """Return an honest report ``(d,)``, and what is known now."""
        rows = known_rows(self.datasets, observation)
        if len(rows) == 0:
            return torch.zeros_like(observation.rho), state
        past = float(state.rounds)
        mean = (past * state.mean + rows.mean(dim=0)) / (past + 1)
        one = middle(rows)
        apart = rows / one - mean / one
        pulled = apart.T @ (apart @ state.direction)
        size = length(pulled)
        direction = state.direction
        if float(size) > 0:
            turned = past * direction + pulled / size
            direction = turned / length(turned).clamp(min=torch.finfo(turned.dtype).tiny)
        chosen = rows[(apart @ direction).argmax()]
        return chosen, MimicState(direction, mean, state.rounds + 1)


def min_sum(setup: AttackSetup) -> MinSum:
    """Return Shejwalkar and Houmansadr's other attack."""
    return MinSum(datasets=setup.drawn)


def fang_trimmed_mean(setup: AttackSetup) -> FangTrimmedMean:
    """Return Fang et al.'s attack on the trimmed mean, whatever the run's rule is."""
    return FangTrimmedMean(datasets=setup.drawn, seed=setup.settings.seed, user=setup.user)


def mimic(setup: AttackSetup) -> Mimic:
    """Return Karimireddy et al.'s attack."""
    return Mimic(datasets=setup.drawn, seed=setup.settings.seed)
