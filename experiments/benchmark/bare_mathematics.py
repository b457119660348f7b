"""What the rounds of a run compute and nothing else: no node, message, record, check or file.

A round's time less this is its overhead, whoever carries the messages.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from pfl_flower.attacks.attack import Observation, plausible_report
from pfl_flower.attacks.cga import counter_gradient
from pfl_flower.run.attack_plans import honest_users
from pfl_flower.run.config import RunConfig
from pfl_flower.run.evaluation import Evaluation
from pfl_flower.run.problem import build_problem
from pfl_flower.run.step_sizes import local_step_sizes, server_step_sizes
from pfl_flower.run.strategic_user import StrategicUser
from pfl_flower.solvers.optimizer_steps import sgd_step


def rounds(config: RunConfig) -> tuple[Tensor, list[float]]:
    """Return rho ``(d,)`` after the last round, and the seconds of every round.

    Each honest user is a batch of its own, as on a node of its own, and takes SGD steps; the last
    user runs CGA; the server sums and steps by SGD.

    Raises
    ------
    ValueError
        If the configuration asks for something else.
    """
    asked = config.local_solver, config.server_optimizer, config.attack
    steps = config.batch_size, config.local_steps
    if (*asked, *steps) != ("sgd", "sgd", "cga", 0, 1) or len(config.strategic()) != 1:
        raise ValueError(
            f"{asked}, {steps}: expected single SGD steps on all points, and one user who runs CGA"
        )
    problem, local = build_problem(config), local_step_sizes(config)
    evaluate, eta = (
        Evaluation.of(problem),
        server_step_sizes(problem).at,
    )
    honest = [problem.population((user,)) for user in honest_users(problem)]
    theta = [problem.local_start((user,)) for user in honest_users(problem)]
    attack = counter_gradient(StrategicUser(problem, min(config.strategic())))
    rho, eta_sum = problem.initial, 0.0
    state, own = attack.init(rho), torch.zeros_like(rho)
    seconds = []
    for t in range(1, config.rounds + 1):
        began = time.perf_counter()
        reports = []
        for n, user in enumerate(honest):
            gradient = user.gradient(theta[n]) - problem.regularizer.grad_rho(rho, theta[n])
            theta[n] = sgd_step(theta[n], gradient, local.at(t))
            reports.append(user.report(rho, theta[n])[0])
        seen = Observation(round=t, rho=rho, eta=eta(t), eta_sum=eta_sum, accepted=own)
        own, state = plausible_report(attack, state, seen, problem.regularizer)
        eta_sum += eta(t)
        rho = rho - eta(t) * torch.stack([*reports, own]).sum(dim=0)
        evaluate(rho)
        seconds.append(time.perf_counter() - began)
    return rho, seconds
