"""The model attack (Section 2.2): pretend to hold one fixed model, whatever the broadcast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pfl_flower.attacks.attack import Observation
from pfl_flower.attacks.setup import AttackSetup
from pfl_flower.objective.regularizers import Regularizer
from pfl_flower.objective.vectors import length


class ModelAttackState(NamedTuple):
    """Nothing: a fixed model has no memory."""


@dataclass(frozen=True, kw_only=True)
class ModelAttack:
    """Report ``g_s^t = grad_rho R(rho_t, theta_spade)`` in every round.

    It is what an honest user reports whose local optimum is theta_spade however large the pull
    of rho, so it is plausible by construction, and the limit rho* minimises LOSS with theta_s
    held at theta_spade (Equation 38). At ``rho_t = theta_spade`` under l2 it reports 0, the
    subgradient of a user who holds no opinion.

    Several strategic users are several instances: ``k`` of them share one goal when each holds
    the model whose gradient at the target is the k-th part of what is needed (see
    ``pfl_flower.attacks.equivalence.model_from_gradient``), and compete when their models differ.

    Parameters
    ----------
    attack_model : Tensor
        theta_spade, ``(d,)``.
    regularizer : Regularizer
        The coupling R.

    Examples
    --------
    >>> import torch
    >>> from pfl_flower.objective.regularizers import SquaredL2
    >>> attack = ModelAttack(attack_model=torch.zeros(1), regularizer=SquaredL2(lam=1.0))
    >>> one, none = torch.ones(1), torch.zeros(1)
    >>> seen = Observation(round=1, rho=one, eta=0.5, eta_sum=0.0, accepted=none)
    >>> attack.update(attack.init(seen.rho), seen)[0]
    tensor([2.])
    """

    attack_model: Tensor
    regularizer: Regularizer

    def init(self, rho: Tensor) -> ModelAttackState:
        """Return the empty state.

        Raises
        ------
        ValueError
            If theta_spade is not shaped like ``rho (d,)``, or has no length that is a number.
        """
        if self.attack_model.shape != rho.shape:
            raise ValueError(
                f"attack_model {tuple(self.attack_model.shape)}: expected {tuple(rho.shape)}"
            )
        if not bool(self.attack_model.isfinite().all()):
            raise ValueError("attack_model: expected finite numbers")
        # Of a difference whose length is infinite a gradient lam z/||z|| would be 0.
        if not bool(2 * length(self.attack_model) < torch.inf):
            raise ValueError("attack_model: expected numbers whose length is finite")
        return ModelAttackState()

    def update(
        self, state: ModelAttackState, observation: Observation
    ) -> tuple[Tensor, ModelAttackState]:
        """Return ``grad_rho R(rho_t, theta_spade)``, ``(d,)``, and the unchanged state."""
        return self.regularizer.grad_rho(observation.rho, self.attack_model), state


def model_attack(setup: AttackSetup) -> ModelAttack:
    """Return the model attack on theta_spade, whatever data the user may have."""
    return ModelAttack(attack_model=setup.attack_model, regularizer=setup.regularizer)
