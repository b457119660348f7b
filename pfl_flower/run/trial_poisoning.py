"""A poisoning makes data: of a small case that can be met, in a form that users can learn from."""

from __future__ import annotations

from dataclasses import replace

import torch

from pfl_flower.attacks.poisoning.aim import Aim, local_gradient
from pfl_flower.attacks.poisoning.form import check_form
from pfl_flower.attacks.poisoning.recipe import Recipe
from pfl_flower.attacks.poisoning.table import POISONINGS
from pfl_flower.objective.user_data import UserData
from pfl_flower.run.key_rules import poisons
from pfl_flower.run.memory import check_rows
from pfl_flower.run.problem import Problem
from pfl_flower.run.tried import Tried, few_points, made_up
from pfl_flower.support.seeding import generator

QUERIES = 24
"""Most queries of a trial."""


def try_poisoning(problem: Problem) -> None:
    """Have a poisoning of one's own make data for a small case; ask whether the memory holds all.

    Raises
    ------
    ConfigError
        If it raises, or what it makes has no form; if ``poisoning-points`` are too many.
    """
    config = problem.config
    if not poisons(config):
        return
    if config.poisoning_queries != "images":
        model = problem.model
        check_rows("poisoning-points", config.poisoning_points, model.inputs + model.outputs)
    if POISONINGS.row(config.poisoning) is not POISONINGS.own:
        return
    tried = Tried(POISONINGS.point, config.poisoning)
    user = min(config.strategic(), default=0)
    small = config.model_copy(update={"poisoning_points": min(config.poisoning_points, QUERIES)})
    recipe = Recipe(small, problem.source, user, generator(config.seed, "trial", "poison", user))
    aim = small_aim(problem)
    with tried.working("a function"):
        made = POISONINGS.make(config.poisoning, config.poisoning_options, aim, recipe)
    check_form(config.poisoning, aim, made)


def small_aim(problem: Problem) -> Aim:
    """Return an aim that data meet: those of ``small_data``, at some theta_spade."""
    problem = problem.in_double
    model = 0.1 * made_up(problem, problem.model.dim, words=("attack model",))
    aim = Aim(
        model=problem.model,
        loss=problem.loss,
        attack_model=model,
        gradient=torch.zeros_like(model),
        nu=problem.config.nu,
        bias=problem.source.bias,
    )
    data = small_data(problem)
    assert data.weights is not None
    gradient = local_gradient(aim, data.features, data.labels, data.weights)
    return replace(aim, gradient=problem.plausible.project(gradient))


def small_data(problem: Problem) -> UserData:
    """Return a few points that weigh as much as one, so that their pull is small."""
    drawn = few_points(problem)
    weights = drawn.features.new_full((len(drawn.labels),), 1 / len(drawn.labels))
    return replace(drawn, weights=weights)
