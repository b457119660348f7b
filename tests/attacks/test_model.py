from dataclasses import replace

import pytest
import torch

from pfl_flower.attacks.attack import Observation
from pfl_flower.attacks.equivalence import honest_sum, model_from_gradient
from pfl_flower.attacks.model import ModelAttack, ModelAttackState
from pfl_flower.objective.losses import LeastSquares
from pfl_flower.objective.models import Linear
from pfl_flower.objective.regularizers import L2, SmoothL2, SquaredL2
from pfl_flower.objective.user_data import UserData
from pfl_flower.solvers.equilibrium import equilibrium
from pfl_flower.solvers.population import Population
from pfl_flower.support.seeding import generator

REGULARIZERS = [SquaredL2(lam=0.7), SmoothL2(lam=2.0), L2(lam=2.0)]
DIM = 4


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed, *shape), dtype=torch.float64)


def honest(regularizer, users=3):
    data = [UserData(normal(8, DIM, seed=n), normal(8, seed=n)) for n in range(users)]
    return Population(
        data, model=Linear(DIM, 1), loss=LeastSquares(), regularizer=regularizer, nu=1.0
    )


def observe(rho):
    return Observation(round=1, rho=rho, eta=0.1, eta_sum=0.0, accepted=torch.zeros_like(rho))


def descend(population, attacks, *, rounds, eta):
    """Federated descent with exact local solves: the loop that a strategy runs, by hand."""
    rho = torch.zeros(DIM, dtype=torch.float64)
    theta = rho.expand(population.size, -1)
    states = [attack.init(rho) for attack in attacks]
    for _ in range(rounds):
        theta = population.solve(rho, theta).theta
        total = population.report(rho, theta).sum(dim=0)
        for index, attack in enumerate(attacks):
            gradient, states[index] = attack.update(states[index], observe(rho))
            total = total + population.regularizer.project(gradient)
        rho = rho - eta * total
    return rho


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=lambda r: type(r).__name__)
def test_reports_the_gradient_at_the_fixed_model(regularizer):
    rho, model = normal(DIM, seed=1), normal(DIM, seed=2)
    attack = ModelAttack(attack_model=model, regularizer=regularizer)
    state = attack.init(rho)
    leaf = rho.clone().requires_grad_()
    regularizer.value(leaf, model).backward()
    for _ in range(2):
        gradient, state = attack.update(state, observe(rho))
        torch.testing.assert_close(gradient, leaf.grad, rtol=0, atol=1e-14)
    assert state == ModelAttackState()
    assert bool(regularizer.contains(gradient))
    # Nothing but rho matters: not the round, not what was accepted.
    seen = replace(observe(rho), round=9, accepted=torch.ones_like(rho), eta_sum=3.0)
    assert torch.equal(attack.update(state, seen)[0], gradient)


def test_refuses_a_model_that_does_not_fit():
    for model in (torch.zeros(DIM + 1), torch.full((DIM,), torch.nan)):
        attack = ModelAttack(attack_model=model, regularizer=SquaredL2(lam=1.0))
        with pytest.raises(ValueError, match="attack_model"):
            attack.init(torch.zeros(DIM))


@pytest.mark.parametrize("coalition", [1, 2, 3])
@pytest.mark.parametrize(
    "regularizer", [SquaredL2(lam=0.7), SmoothL2(lam=20.0)], ids=lambda r: type(r).__name__
)
def test_descent_under_the_attack_ends_at_the_target(regularizer, coalition):
    population = honest(regularizer)
    centre = equilibrium(population).rho
    target = centre + 2 * torch.linalg.vector_norm(centre) * torch.nn.functional.normalize(
        normal(DIM, seed=3), dim=0
    )
    needed = -honest_sum(population, target).value
    share = model_from_gradient(regularizer, target, needed / coalition)
    attacks = [ModelAttack(attack_model=share.value, regularizer=regularizer)] * coalition
    eta = 1.0 / regularizer.envelope_smoothness(population.size + coalition)
    rho = descend(population, attacks, rounds=250, eta=eta)
    scale = 1 + torch.linalg.vector_norm(target)
    assert torch.linalg.vector_norm(rho - target) <= 1e-8 * scale
    # A user who holds the honest optimum changes nothing, and fails the same check.
    idle = [ModelAttack(attack_model=centre, regularizer=regularizer)]
    rho = descend(population, idle, rounds=250, eta=eta)
    assert torch.linalg.vector_norm(rho - centre) <= 1e-8 * scale
    assert torch.linalg.vector_norm(rho - target) > 0.1 * scale


def test_competing_attacks_settle_where_their_models_add_up():
    population = honest(SquaredL2(lam=0.7))
    models = torch.stack([normal(DIM, seed=5) * 30, normal(DIM, seed=6) * 30])
    attacks = [ModelAttack(attack_model=m, regularizer=population.regularizer) for m in models]
    rho = descend(population, attacks, rounds=250, eta=0.05)
    both = equilibrium(population, attack_models=models).rho
    torch.testing.assert_close(rho, both, rtol=1e-8, atol=1e-8)
    # Squared l2 is a quadratic: two models pull like one between them, twice.
    middle = equilibrium(population, attack_models=models.mean(0).expand(2, -1)).rho
    torch.testing.assert_close(middle, both, rtol=1e-8, atol=1e-8)
    assert torch.linalg.vector_norm(both - equilibrium(population).rho) > 1
