"""Attacks on federated averaging as attacks on reports: a client's report is how far it moved.

FedAvg replaces rho by a weighted mean of the clients' models after their local steps. With client
n's *report* ``g_n = rho_t - theta_n`` and weights that sum to 1,

    rho_{t+1} = sum_n w_n theta_n = rho_t - sum_n w_n g_n,

which is the paper's Section 2.2 at eta = 1 with the reports ``w_n g_n``, and GRAD(rho) all of R^d.
So the attacks of ``pfl_flower.attacks`` serve as they stand; those here need FedAvg's weights, or
what a client of any app sees.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pfl_flower.attacks.attack import Observation
from pfl_flower.attacks.cga import CGAState, CounterGradient
from pfl_flower.attacks.untargeted import NoMemory

LIGHTEST = 1e-9
"""Least weight that is believed: a billion clients; it keeps the division finite."""


class WeightedState(NamedTuple):
    """What the attacker remembers of its last two rounds.

    Attributes
    ----------
    rho : Tensor
        rho_a of the last round a, ``(d,)``.
    round : Tensor
        a; 0 before the first.
    step, earlier : Tensor
        How far rho went in the round before a, and the report that was part of that, ``(d,)``.
    weight : Tensor
        The estimate of w, a scalar; 0 before there is one.
    """

    rho: Tensor
    round: Tensor
    step: Tensor
    earlier: Tensor
    weight: Tensor


@dataclass(frozen=True, kw_only=True)
class WeightedCounterGradient:
    """CGA against federated averaging.

    With w the attacker's weight in the mean, k attackers who report the same vector, and t - a = 1
    where no round was missed,

        Ghat = (rho_a - rho_t - k w g_a) / (t - a)       what the others move rho by in a round
        g_t  = (rho_t - target - Ghat) / (k w)

    so that ``rho_{t+1} = target + Ghat - G_t``. Equation 5 of the paper is this at ``w = eta = 1``;
    here ``CounterGradient`` works it out for the report ``w g``. Where the others' pull settles,
    rho rests on the target whatever w was taken for: at rest ``Ghat = -k w g``, and the second line
    leaves ``rho = target``. What w decides is whether it gets there. With kappa the true weight
    over the one assumed, and others who go a part h of the way to where they would settle in every
    round (``G = h (rho - c)``, h near 1 after many local steps), ``rho_t - target`` has the
    characteristic equation

        z^2 - (2 - h - 2 kappa) z + (1 - h - kappa) = 0,

    which converges for ``0 < kappa < (4 - 2 h)/3`` and ``h + kappa < 2``. The true weight does for
    ``h < 1/2`` alone, the paper's condition on eta; one assumed twice as large does for every h up
    to 1. Too large a guess is slow, too small a one diverges.

    Parameters
    ----------
    target : Tensor
        theta_dagger, ``(d,)``.
    weight : float or None
        w, if it is known. Else it is estimated from two rounds in a row, in which the others pull
        nearly alike: ``w = <d_a - d_b, g_a - g_b> / (k ||g_a - g_b||^2)`` with d the way of rho in
        a round, at least 0 and at most 1/k.
    first : float
        The guess before there are two rounds.
    coalition : int
        k.
    """

    target: Tensor
    weight: float | None = None
    first: float = 0.5
    coalition: int = 1

    def init(self, rho: Tensor) -> WeightedState:
        """Return the state of an attacker who has seen nothing."""
        zero, none = torch.zeros_like(rho), torch.zeros((), dtype=torch.float64)
        return WeightedState(zero, none, zero, zero, none)

    def update(
        self, state: WeightedState, observation: Observation
    ) -> tuple[Tensor, WeightedState]:
        """Return g_t and the state that remembers this round."""
        seen, now = float(state.round), float(observation.round)
        weight = self._weight(state, observation)
        attack = CounterGradient(target=self.target, coalition=self.coalition)
        # Step sizes of 1: their sum before round t is t - 1, and 0 says that there was no round.
        one = torch.ones((), dtype=torch.float64)
        before = CGAState(state.rho, one if seen else one * 0, one * (seen - 1))
        scaled = replace(
            observation, eta=1.0, eta_sum=now - 1, accepted=weight * observation.accepted
        )
        report = attack.update(before, scaled)[0] / weight
        known = torch.tensor(weight if seen else 0.0, dtype=torch.float64)
        step = state.rho - observation.rho if seen else torch.zeros_like(observation.rho)
        return report, WeightedState(
            observation.rho, torch.tensor(now).double(), step, observation.accepted, known
        )

    def _weight(self, state: WeightedState, observation: Observation) -> float:
        """Return w: what is given, else the newest estimate, else the guess."""
        if self.weight is not None:
            return self.weight
        last = float(state.weight) or self.first
        if float(observation.round) - float(state.round) != 1 or not bool(state.step.any()):
            return last
        moved = state.rho - observation.rho - state.step
        changed = observation.accepted - state.earlier
        square = float(changed @ changed)
        if square == 0:
            return last
        found = float(moved @ changed) / square / self.coalition
        # A negative one says that the others' change outweighed ours: then the last one stands.
        return min(max(found, LIGHTEST), 1 / self.coalition) if found > 0 else last


@dataclass(frozen=True, kw_only=True)
class ModelReplacement:
    """Report ``(rho - target)/(k w)``: boosted so that the mean is the target if the rest is small.

    (Bagdasaryan, Veit, Hua, Estrin, Shmatikov, *How to backdoor federated learning*, 2020,
    Equation 3.) It is CGA that takes the others' pull for 0.

    Parameters
    ----------
    target : Tensor
        X, ``(d,)``.
    weight : float
        w; 1/w is their scaling factor gamma.
    coalition : int
        k.
    """

    target: Tensor
    weight: float
    coalition: int = 1

    def init(self, rho: Tensor) -> NoMemory:
        """Return the empty state."""
        return NoMemory()

    def update(self, state: NoMemory, observation: Observation) -> tuple[Tensor, NoMemory]:
        """Return the boosted way to the target."""
        return (observation.rho - self.target) / (self.coalition * self.weight), state


@dataclass(frozen=True, kw_only=True)
class FreeRider:
    """Report 0: return the model that was received, and what work it would have been.

    (Fraboni, Vidal, Lorenzi, *Free-rider attacks on model aggregation in federated learning*,
    2021, the plain one.)
    """

    def init(self, rho: Tensor) -> NoMemory:
        """Return the empty state."""
        return NoMemory()

    def update(self, state: NoMemory, observation: Observation) -> tuple[Tensor, NoMemory]:
        """Return 0."""
        return torch.zeros_like(observation.rho), state


class StaleState(NamedTuple):
    """The client's own honest models of its last rounds, ``(delay, d)``, the oldest first."""

    models: Tensor


@dataclass(frozen=True, kw_only=True)
class Stale:
    """Return the honest model of ``delay`` rounds before, the oldest there is until then.

    Not an attack of its own: what a slow client does under asynchronous averaging (Xie, Koyejo,
    Gupta, *Asynchronous federated optimization*, 2019), and what a server should withstand.
    """

    delay: int = 1

    def init(self, rho: Tensor) -> StaleState:
        """Return the state before there is a model."""
        return StaleState(torch.zeros((0, len(rho)), dtype=rho.dtype))

    def update(self, state: StaleState, observation: Observation) -> tuple[Tensor, StaleState]:
        """Return how far rho is from the old model.

        Raises
        ------
        ValueError
            If the harness gave no honest report.
        """
        if observation.surrogates is None:
            raise ValueError("surrogates: expected the client's own report")
        model = observation.rho - observation.surrogates[0]
        models = torch.cat([state.models, model[None]])[-(self.delay + 1) :]
        return observation.rho - models[0], StaleState(models)
