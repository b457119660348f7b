"""Whatever a run's configuration names of one's own is tried before round 1, on made-up numbers.

A node that fails is a rejected report, and an attack that always fails would look like a defence
that holds. So the process that starts a run tries attack, poisoning, rule, regulariser, model and
tracker on little: what they raise, and what they answer in a wrong form, is one line and no run. No
user's problem is solved, no target is learned, and no generator of the run's is drawn from. (Data
sets are looked at when they are read, ``pfl_flower.data.consistency``.)
"""

from __future__ import annotations

from pfl_flower.objective.table import MODELS
from pfl_flower.run.attack_plans import check_attack_model
from pfl_flower.run.config import RunConfig
from pfl_flower.run.problem import Problem, build_problem
from pfl_flower.run.tables import check_imports
from pfl_flower.run.trial_aggregation import try_rule
from pfl_flower.run.trial_attack import try_attack
from pfl_flower.run.trial_poisoning import try_poisoning
from pfl_flower.run.trial_regularizer import try_regularizer, try_step_sizes
from pfl_flower.run.trial_tracker import try_tracker
from pfl_flower.run.tried import Tried, few_points, made_up
from pfl_flower.support.folders import writable_folder
from pfl_flower.support.seeding import generator, undisturbed

MODELS_TRIED = 2


def try_plugins(problem: Problem) -> None:
    """Try the members of one's own that a run names, and the files that only its nodes look at.

    Raises
    ------
    ConfigError
        One line: the key, its value, what would be right, and where a plug-in raised what.
    """
    with undisturbed():
        try_regularizer(problem)
        try_step_sizes(problem)
        try_model(problem)
        try_rule(problem)
        check_attack_model(problem)
        try_attack(problem)
        try_poisoning(problem)
        try_tracker(problem.config)


def check_before(config: RunConfig) -> None:
    """Refuse what the run would refuse, in the process that starts it, before Flower is started.

    Raises
    ------
    ConfigError, DataError
        One line: what is wrong, and what would be right.
    """
    check_imports(config)
    problem = build_problem(config)
    problem.check_memory("all")
    try_plugins(problem)
    if config.state_dir and config.checkpoint_every:
        writable_folder("state-dir", config.state_folder())


def try_model(problem: Problem) -> None:
    """Try a model of one's own: where it starts, its scores, and their derivative.

    Raises
    ------
    ConfigError
        If it raises, or an answer has a wrong form.
    """
    config, model = problem.config, problem.model
    if MODELS.row(config.model) is not MODELS.own:
        return
    tried, draw = Tried(MODELS.point, config.model), generator(config.seed, "trial", "model")
    with tried.working("a number dim"):
        dim = model.dim
    if type(dim) is not int or dim < 1:
        raise tried.refusal(f"a whole number dim above 0, and it is {dim!r:.60}")
    theta = made_up(problem, MODELS_TRIED, dim, words=("models",))
    with tried.working("a start"):
        start = model.initial(1, draw, problem.dtype)
    tried.tensor("a start", start, (1, dim), theta.cpu())
    points = few_points(problem)
    count = len(points.labels)
    shape = (MODELS_TRIED, count, model.outputs)
    each = points.features.expand(MODELS_TRIED, count, model.inputs)
    for features in (points.features, each):
        with tried.working("scores"):
            scores = model.scores(theta, features)
        tried.tensor("scores", scores, shape, theta)
    users = problem.population_of([points] * MODELS_TRIED, compress=False)
    with tried.working("a derivative of scores"):
        gradient = users.gradient(theta)
    tried.tensor("a derivative of scores", gradient, tuple(theta.shape), theta)
