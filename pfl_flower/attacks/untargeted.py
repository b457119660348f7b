"""The usual untargeted attacks of the literature, which spoil rho without a target.

Most are stated there for an attacker who knows every honest gradient of the round. The protocol
here shows a strategic user rho and eta alone, so by default these are the papers' other variant:
the attacker draws datasets of its own as honest users draw theirs, runs the honest code on them,
and takes the reports of these *surrogates* for a sample of the honest ones. ``datasets`` says which
datasets they are: the user's own for an attack on its own report, else some that no user of the run
holds and that all strategic users share, so that they report the same vector. Nobody tells them
anything of the honest users' data or reports, unless ``attack-knowledge = omniscient`` does: then
they take the round's honest reports in the surrogates' place, as the papers do. The harness
projects what they report on GRAD(rho_t).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from pfl_flower.attacks.attack import Observation, known_rows
from pfl_flower.attacks.setup import AttackSetup
from pfl_flower.objective.vectors import middle
from pfl_flower.support.seeding import generator


class NoMemory(NamedTuple):
    """Nothing is remembered from round to round."""


@dataclass(frozen=True, kw_only=True)
class Untargeted:
    """What the attacks share: no state, and datasets whose honest reports they look at.

    Parameters
    ----------
    datasets : tuple of int
        Ids of the surrogates' datasets; empty where the attack is given the honest reports of the
        round in their place.
    """

    datasets: tuple[int, ...]

    def init(self, rho: Tensor) -> NoMemory:
        """Return the empty state."""
        return NoMemory()

    def update(self, state: NoMemory, observation: Observation) -> tuple[Tensor, NoMemory]:
        """Return the report ``(d,)``, not yet projected, and the unchanged state.

        Raises
        ------
        ValueError
            As ``known_rows``.
        """
        rows = known_rows(self.datasets, observation)
        if len(rows) == 0:
            return torch.zeros_like(observation.rho), state
        # Every report scales as the rows do, whose squares may be beyond the range of numbers.
        one = middle(rows)
        return self.report(rows / one, observation) * one, state

    def report(self, rows: Tensor, observation: Observation) -> Tensor:
        """Return the report ``(d,)`` made from the surrogates' honest ones, ``(m, d)``."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SignFlip(Untargeted):
    """Report ``-strength g`` with g the user's own honest report.

    (Li, Xu, Chen, Giannakis, Ling, *RSA: Byzantine-robust stochastic aggregation methods*, 2019.)
    """

    strength: float = 1.0

    def report(self, rows: Tensor, observation: Observation) -> Tensor:
        """Return ``-strength`` times the mean of the rows."""
        return -self.strength * rows.mean(dim=0)


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Untargeted):
    """Report ``N(0, s^2 I)`` with ``s = strength ||g|| / sqrt(d)``, g the user's honest report.

    The expected square of its norm is that of ``strength g`` (Blanchard, El Mhamdi, Guerraoui,
    Stainer, *Machine learning with adversaries*, 2017, with a fixed s).

    Parameters
    ----------
    seed, user : int
        Of the draws, one for each round.
    """

    seed: int
    user: int
    strength: float = 10.0

    def report(self, rows: Tensor, observation: Observation) -> Tensor:
        """Return this round's noise."""
        own = rows.mean(dim=0)
        draw = generator(self.seed, "gaussian attack", self.user, observation.round)
        noise = torch.randn(len(own), generator=draw, dtype=torch.float64).to(own)
        return self.strength * torch.linalg.vector_norm(own) / math.sqrt(len(own)) * noise


@dataclass(frozen=True, kw_only=True)
class LittleIsEnough(Untargeted):
    """Report ``mu - z sigma``, mean and deviation of the surrogates in each coordinate.

    (Baruch, Baruch, Goldberg, *A little is enough: circumventing defenses for distributed
    learning*, 2019.) ``strength`` is z; see ``least_noticed`` for theirs.
    """

    strength: float

    def report(self, rows: Tensor, observation: Observation) -> Tensor:
        """Return ``mu - z sigma``, sigma from m - 1 degrees of freedom."""
        return rows.mean(dim=0) - self.strength * rows.std(dim=0)


def least_noticed(users: int, strategic: int) -> float:
    """Return Baruch et al.'s z: the most that leaves a majority nearer to the attack than not.

    ``Phi(z) = (n - m - s)/(n - m)``, ``s = floor(n/2 + 1) - m`` for m strategic users of n; 0 where
    that is negative, as it is for one or two of few.

    >>> round(least_noticed(50, 12), 3), least_noticed(12, 2)
    (0.336, 0.0)
    """
    honest, needed = users - strategic, users // 2 + 1 - strategic
    if honest < 1 or needed < 1:
        return NormalDist().inv_cdf(1 - 0.5 / users)
    return max(0.0, NormalDist().inv_cdf((honest - needed) / honest) if honest > needed else 0.0)


@dataclass(frozen=True, kw_only=True)
class InnerProduct(Untargeted):
    """Report ``-strength mu``, so that the direction and the honest mean point apart.

    (Xie, Koyejo, Gupta, *Fall of empires: breaking Byzantine-tolerant SGD by inner product
    manipulation*, 2020.) Against the sum it takes a strength above ``(n - m)/m``; a small one can
    pass for an honest report.
    """

    strength: float

    def report(self, rows: Tensor, observation: Observation) -> Tensor:
        """Return ``-strength mu``."""
        return -self.strength * rows.mean(dim=0)


@dataclass(frozen=True, kw_only=True)
class MinMax(Untargeted):
    """Report ``mu - gamma sigma`` with the largest gamma that is no outlier.

    No outlier: within ``D = max ||g_i - g_j||`` of every surrogate's report (Shejwalkar,
    Houmansadr, *Manipulating the Byzantine*, 2021, with their inverse deviation as the direction).
    Each surrogate gives a quadratic in gamma, and the least of their larger roots is exact.
    """

    def report(self, rows: Tensor, observation: Observation) -> Tensor:
        """Return ``mu - gamma sigma``."""
        mean, away = rows.mean(dim=0), -rows.std(dim=0)
        square = away @ away
        if square == 0:
            return mean
        # Row by row: a tensor of all differences would be (m, m, d).
        diameter = max(torch.linalg.vector_norm(rows - row, dim=1).max() for row in rows)
        apart = mean - rows
        along = apart @ away
        room = (diameter**2 - apart.square().sum(dim=1)).clamp(min=0)
        # ||mean - row_i + gamma away||^2 = D^2 in gamma; at gamma = 0 every row is within D, so the
        # larger root is not negative, and room below 0 is rounding.
        roots = (torch.sqrt(along**2 + square * room) - along) / square
        return mean + roots.min() * away


def _own(setup: AttackSetup) -> tuple[int, ...]:
    """Return the user's own dataset; none for the mean of what all honest users report."""
    return () if setup.knowledge == "omniscient" else setup.own


def sign_flip(setup: AttackSetup) -> SignFlip:
    """Return the opposite of the user's own honest report."""
    return SignFlip(datasets=_own(setup), strength=setup.strength(1.0))


def gaussian(setup: AttackSetup) -> GaussianNoise:
    """Return noise, by default ten times as long as the user's own honest report."""
    seed, strength = setup.settings.seed, setup.strength(10.0)
    return GaussianNoise(datasets=setup.own, seed=seed, user=setup.user, strength=strength)


def little_is_enough(setup: AttackSetup) -> LittleIsEnough:
    """Return Baruch et al.'s attack, by default with their z."""
    z = least_noticed(setup.settings.users, setup.strategic)
    return LittleIsEnough(datasets=setup.drawn, strength=setup.strength(z))


def inner_product(setup: AttackSetup) -> InnerProduct:
    """Return Xie et al.'s attack, by default twice what turns the sum around: mu is a guess."""
    honest = max(1, setup.settings.users - setup.strategic)
    epsilon = 2.0 * honest / setup.strategic
    return InnerProduct(datasets=setup.drawn, strength=setup.strength(epsilon))


def min_max(setup: AttackSetup) -> MinMax:
    """Return Shejwalkar and Houmansadr's attack."""
    return MinMax(datasets=setup.drawn)
