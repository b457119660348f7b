"""The counter-gradient attack (Section 5.1): estimate what the others send, and cancel it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pfl_flower.attacks.attack import Observation, known_rows
from pfl_flower.attacks.setup import AttackSetup
from pfl_flower.objective.vectors import ratio

Estimator = Literal["inferred", "oracle", "known"]


class CGAState(NamedTuple):
    """What the attacker remembers of the last round a in which it was reached.

    Attributes
    ----------
    rho : Tensor
        rho_a, ``(d,)``.
    eta, eta_sum : Tensor
        eta_a and the sum of the step sizes before round a, scalars in float64; ``eta`` is 0 before
        the first round.
    """

    rho: Tensor
    eta: Tensor
    eta_sum: Tensor


@dataclass(frozen=True, kw_only=True)
class CounterGradient:
    """CGA, Equations 5 and 6, for any regulariser whose GRAD(rho) is convex.

    With ``g`` the attacker's accepted report of its last round a (0 if it was rejected), k
    coordinated attackers who report the same vector, and rounds missed or not,

        ghat = (rho_a - rho_t - eta_a k g) / (sum of eta_r over a <= r < t)         (``inferred``)
        h    = ((rho_t - target)/eta_t - ghat) / k

    and the harness reports the projection of h on GRAD(rho_t) (Proposition 1). Without missed
    rounds and with k = 1, ghat is the paper's ``(rho_{t-1} - rho_t)/eta_{t-1} - g``; in the first
    round it is 0. The ``oracle`` estimator is that of the paper's experiments: the server gives
    away the honest sum of the previous round. An omniscient attacker has nothing to estimate: ghat
    is the sum of this round's honest reports (``known``). Where the server asks a sample of the
    users, the inferred ghat is the mean over the rounds a .. t-1 of the others' sums, for another
    sample than round t's.

    Parameters
    ----------
    target : Tensor
        theta_dagger, ``(d,)``.
    estimator : {"inferred", "oracle", "known"}
        Where ghat comes from.
    coalition : int
        Number k of attackers who share the target and the correction.

    Raises
    ------
    ValueError
        If ``coalition`` is less than 1, or if what the estimator goes by is not given.

    Examples
    --------
    >>> import torch
    >>> attack = CounterGradient(target=torch.zeros(1))
    >>> one, zero = torch.ones(1), torch.zeros(1)
    >>> seen = Observation(round=1, rho=one, eta=0.5, eta_sum=0.0, accepted=zero)
    >>> attack.update(attack.init(one), seen)[0]
    tensor([2.])
    """

    target: Tensor
    estimator: Estimator = "inferred"
    coalition: int = 1

    def __post_init__(self) -> None:
        """Refuse an empty coalition."""
        if self.coalition < 1:
            raise ValueError(f"coalition = {self.coalition}: expected at least 1")

    def init(self, rho: Tensor) -> CGAState:
        """Return the state of an attacker who has seen nothing."""
        zero = torch.zeros((), dtype=torch.float64)
        return CGAState(torch.zeros_like(rho), zero, zero)

    def update(self, state: CGAState, observation: Observation) -> tuple[Tensor, CGAState]:
        """Return h and the state that remembers this round."""
        pull = ratio(observation.rho - self.target, observation.eta)
        gradient = pull - self.estimate(state, observation)
        if self.coalition > 1:
            gradient = gradient / self.coalition
        seen = CGAState(
            observation.rho,
            torch.tensor(observation.eta, dtype=torch.float64),
            torch.tensor(observation.eta_sum, dtype=torch.float64),
        )
        return gradient, seen

    def estimate(self, state: CGAState, observation: Observation) -> Tensor:
        """Return ghat, the estimated sum ``(d,)`` of the gradients from outside the coalition."""
        if self.estimator == "known":
            return known_rows((), observation).sum(dim=0)
        # eta_a is 0 before the first round alone: a server's step sizes are positive.
        if float(state.eta) == 0:
            return torch.zeros_like(observation.rho)
        if self.estimator == "oracle":
            if observation.honest_sum is None:
                raise ValueError("estimator = oracle: the broadcast carries no honest sum")
            return observation.honest_sum
        # Scalars in double: eta_sum grows while the difference that divides stays one step's size.
        own = float(state.eta) * self.coalition * observation.accepted
        steps = observation.eta_sum - float(state.eta_sum)
        # Below the last digit of their sum a step is lost: then no round but a lies in between.
        return ratio(state.rho - observation.rho - own, steps if steps > 0 else float(state.eta))


def counter_gradient(setup: AttackSetup) -> CounterGradient:
    """Return CGA as the run configures it."""
    known = setup.knowledge == "omniscient"
    estimator: Estimator = "known" if known else setup.settings.estimator
    return CounterGradient(target=setup.target, estimator=estimator, coalition=setup.coalition)
