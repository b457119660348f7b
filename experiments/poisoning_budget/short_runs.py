"""The paper's protocol on a scenario: some rounds of single local steps, without messages."""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.poisoning_budget.scenarios import poisoned_user
from experiments.theory.scenario import Scenario
from pfl_flower.aggregation.server_steps import StepSizes
from pfl_flower.attacks.poisoning.aim import PoisonedData
from pfl_flower.support.seeding import generator

LOCAL_STEPS = StepSizes(first=0.02, decay=0.99, floor=0.005)
START_NOISE = 0.1


def rho_after(
    rounds: int,
    scenario: Scenario,
    data: PoisonedData | None = None,
    *,
    attack_model: Tensor | None = None,
) -> Tensor:
    """Return rho_T ``(d,)``: local Adam steps, server SGD with the automatic step, from 0.

    Both updates use rho_t and theta^t, as in the paper's experiments. The poisoned user's model
    starts at theta_spade with noise where that is given (Appendix I.3), else at 0. Without data
    nobody is strategic.
    """
    population = scenario.population(*(() if data is None else poisoned_user(scenario, data)))
    coupling = scenario.regularizer
    theta = torch.zeros((population.size, scenario.dim), dtype=torch.float64)
    if attack_model is not None and population.size > len(scenario.users):
        draw = generator(scenario.seed, "budget", scenario.name, "start")
        noise = torch.randn(scenario.dim, generator=draw, dtype=torch.float64)
        theta[-1] = attack_model + START_NOISE * noise
    rho, local = torch.zeros(scenario.dim, dtype=torch.float64), torch.nn.Parameter(theta)
    optimizer = torch.optim.Adam([local])
    steps = StepSizes.auto(coupling, population.size)
    for round in range(1, rounds + 1):
        theta = local.detach()
        report = population.report(rho, theta).sum(dim=0)
        local.grad = population.gradient(theta) - coupling.grad_rho(rho, theta)
        optimizer.param_groups[0]["lr"] = LOCAL_STEPS.at(round)
        optimizer.step()
        rho = rho - steps.at(round) * report
    return rho
