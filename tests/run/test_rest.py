"""``equilibrium = true``: what is reported is where the configuration leads, or it is refused.

Whether it leads there is seen from a long run. Small ones: nine parameters, four or five users.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pfl_flower.api as pfl
from experiments.__main__ import main
from experiments.theory.own_regularizer import LogCosh, LogGrowth
from pfl_flower import client_app, server_app
from pfl_flower.attacks.table import ATTACKS
from pfl_flower.objective.regularizers import SmoothL2
from pfl_flower.run.at_equilibrium import attacked_equilibrium
from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.problem import build_problem
from pfl_flower.run.rest_checks import rest_checks, told_rest
from pfl_flower.run.rest_limits import convex
from pfl_flower.run.rest_rules import MOVERS
from pfl_flower.support.errors import ConfigError
from pfl_flower.transport.inprocess import InProcessGrid
from tests.support.runs import configure, play

CLASSES: dict[str, Any] = {
    "dataset": "tests.support.small_classes:small_classes",
    "users": 4,
    "points_per_user": "25,20,30",
    "strategic_users": "2,3",
    "nu": 0.5,
    "server_lr": 0.06,
    "equilibrium": True,
}
BINARY: dict[str, Any] = {"features": 3, "points_per_user": "20", "nu": 0.5, "equilibrium": True}
STEPS: dict[str, Any] = {"local_lr": 0.02, "local_lr_floor": 0.02, "rounds": 400}
TWO = {"target_shift": "1,2"}


def norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))


def gap(base: dict[str, Any], **changes: Any) -> float:
    """How far the reported rho* is from where a long run ended, relative to its whole way."""
    config = configure(**{**base, **changes})
    problem = build_problem(config)
    ended = play(config, nodes=1)[-1].rho
    found = attacked_equilibrium(problem, ended)
    assert found.converged
    way = norm(found.rho - problem.initial)
    assert way > 0.1
    return norm(found.rho - ended) / way


LEADS: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "cga": (BINARY, {"rounds": 30}, 1e-8),
    "cga, two users": (BINARY, {"rounds": 30, "strategic_users": "3,4", "coalition": 2}, 1e-8),
    "cga, oracle": (CLASSES, {"rounds": 40, "estimator": "oracle"}, 1e-7),
    "cga, omniscient": (CLASSES, {"rounds": 40, "attack_knowledge": "omniscient"}, 1e-7),
    "two targets": (CLASSES, {"rounds": 40, **TWO}, 1e-7),
    "two targets, oracle": (CLASSES, {"rounds": 40, "estimator": "oracle", **TWO}, 1e-7),
    "label-flip": (CLASSES, {"rounds": 60, "attack": "label-flip"}, 1e-5),
    "model": (CLASSES, {"rounds": 60, "attack": "model"}, 1e-5),
    "nobody, nu = 0": (CLASSES, {"rounds": 60, "nu": 0.0, "strategic_users": "none"}, 1e-3),
}
LEADS_SLOWLY: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    **{
        f"{attack}, {regularizer}": (
            CLASSES,
            {"rounds": 250, "attack": attack, "regularizer": regularizer},
            1e-4,
        )
        for attack in ("cga", "model", "label-flip")
        for regularizer in ("l2", "smooth-l2")
        if (attack, regularizer) != ("model", "l2")
    },
    # About the kink at theta_spade rho circles as wide as steps are long: they fade here.
    "model, l2": (
        CLASSES,
        {
            "rounds": 400,
            "attack": "model",
            "regularizer": "l2",
            "server_lr": 0.3,
            "server_lr_decay": 0.98,
            "server_lr_floor": 0.002,
        },
        5e-3,
    ),
    "single steps": (CLASSES, {"local_solver": "sgd", **STEPS}, 1e-5),
    "data": (CLASSES, {"rounds": 100, "attack": "data"}, 1e-6),
    "data, l2": (CLASSES, {"rounds": 250, "attack": "data", "regularizer": "l2"}, 1e-4),
    "two targets, smooth-l2": (CLASSES, {"rounds": 250, "regularizer": "smooth-l2", **TWO}, 1e-6),
    "two targets, l2": (CLASSES, {"rounds": 250, "regularizer": "l2", **TWO}, 1e-6),
    "two against one": (
        CLASSES,
        {"rounds": 400, "regularizer": "l2", "users": 5, "strategic_users": "2-4", **TWO},
        1e-4,
    ),
    "two targets, model": (CLASSES, {"rounds": 100, "attack": "model", **TWO}, 1e-6),
    "two targets, label-flip": (CLASSES, {"rounds": 100, "attack": "label-flip", **TWO}, 1e-6),
    "more strategic than honest, l2": (
        CLASSES,
        {"rounds": 300, "regularizer": "l2", "users": 3, "strategic_users": "1,2"},
        1e-6,
    ),
    "nu = 0": (CLASSES, {"rounds": 300, "nu": 0.0, "attack": "label-flip"}, 1e-8),
    "nu = 0, single steps from noise": (
        CLASSES,
        {
            "nu": 0.0,
            "strategic_users": "none",
            "local_solver": "sgd",
            "initialization_noise": 0.3,
            **STEPS,
            "rounds": 2000,
        },
        1e-5,
    ),
    "mean": (
        CLASSES,
        {"rounds": 200, "reduction": "mean", "attack": "label-flip", "nu": 0.05},
        1e-4,
    ),
    "scaled-sum": (
        CLASSES,
        {"rounds": 200, "reduction": "scaled-sum", "attack": "label-flip", "nu": 0.05},
        1e-4,
    ),
    "gradient-rtol": (
        CLASSES,
        {"rounds": 250, "regularizer": "smooth-l2", "gradient_rtol": 0.5},
        1e-4,
    ),
    "server-lr with a floor": (
        CLASSES,
        {"rounds": 100, "attack": "model", "server_lr_decay": 0.9, "server_lr_floor": 0.05},
        1e-6,
    ),
    "adam on the server": (
        CLASSES,
        {
            "rounds": 1500,
            "estimator": "oracle",
            "server_optimizer": "adam",
            "server_lr": 0.01,
        },
        1e-6,
    ),
    "simultaneous": (
        CLASSES,
        {"local_solver": "sgd", "update_order": "simultaneous", **STEPS},
        1e-5,
    ),
    "several steps": (CLASSES, {"local_solver": "sgd", "local_steps": 3, **STEPS}, 1e-6),
    "adam's steps": (CLASSES, {"local_solver": "adam", **STEPS, "rounds": 1500}, 1e-4),
    "smooth-l2, single steps": (
        CLASSES,
        {"local_solver": "sgd", "regularizer": "smooth-l2", **STEPS, "rounds": 1500},
        1e-4,
    ),
    "a convex regulariser of one's own": (
        CLASSES,
        {"rounds": 300, "regularizer": LogCosh, "attack": "label-flip"},
        1e-4,
    ),
    "disjoint users": (
        CLASSES,
        {"rounds": 100, "partition": "dirichlet", "attack": "label-flip"},
        1e-6,
    ),
}


@pytest.mark.parametrize("name", LEADS)
def test_a_run_ends_where_it_is_said_to_lead(name: str) -> None:
    base, changes, allowed = LEADS[name]
    assert gap(base, **changes) <= allowed


@pytest.mark.slow
@pytest.mark.parametrize("name", LEADS_SLOWLY)
def test_a_longer_run_ends_where_it_is_said_to_lead(name: str) -> None:
    base, changes, allowed = LEADS_SLOWLY[name]
    assert gap(base, **changes) <= allowed


REFUSED: list[tuple[dict[str, Any], str]] = [
    *(
        ({"aggregation": rule}, f"aggregation = {rule}, whose limit is not known")
        for rule in (
            "median",
            "trimmed-mean",
            "geometric-median",
            "krum",
            "multi-krum",
            "centred-clipping",
            "my.own:rule",
        )
    ),
    ({"aggregation": "median", "strategic-users": "none"}, "aggregation = median"),
    ({"aggregation-mixing": True}, "aggregation-mixing = True"),
    *(
        ({"personalization": way}, f"personalization = {way}")
        for way in ("classical", "ditto", "local")
    ),
    ({"max-gradient-norm": 1.0}, "max-gradient-norm = 1.0"),
    ({"participation": 0.3}, "participation = 0.3"),
    ({"participation": 0.3, "participation-rescale": True}, "participation = 0.3"),
    ({"local-solver": "sgd", "batch-size": 8}, "batch-size = 8"),
    ({"server-lr": 0.01, "server-lr-decay": 0.9}, "server-lr-decay = 0.9"),
    ({"local-solver": "adam", "local-lr-floor": 0.0}, "local-lr-decay = 0.99"),
    ({"local-solver": "sgd", "local-lr-floor": 0.0, "local-lr-decay": 0.5}, "local-lr-decay = 0.5"),
    ({"coalition": 1, "strategic-users": "9,10"}, "coalition = 1"),
    ({"strategic-users": "all"}, "strategic-users = all"),
    *(
        ({"attack": name}, "attack = cga, model, data, label-flip")
        for name, row in ATTACKS.items()
        if row.rest is None
    ),
    ({"attack": "my.own:Attack"}, "attack = cga, model, data, label-flip"),
    ({"model": "two-layer", "local-solver": "adam"}, "for an exact equilibrium"),
]


@pytest.mark.parametrize(("values", "named"), REFUSED, ids=lambda value: str(value))
def test_what_moves_the_limit_is_refused_by_its_key(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"equilibrium": True, **values})
    said = str(caught.value)
    assert named in said
    assert said.startswith(("equilibrium = True: expected false, ", "model = two-layer: expected"))
    assert "\n" not in said
    # By itself it is as good a run as any; what a plug-in is, nobody has asked yet.
    parse_config(values)


REFUSED_WHEN_BUILT: list[tuple[dict[str, Any], str]] = [
    ({"regularizer": LogGrowth}, "not convex"),
    ({"regularizer": "l2", "local_solver": "sgd"}, "regularizer = l2 and local-solver = sgd"),
    (
        {"regularizer": "smooth-l2", "attack_knowledge": "omniscient", "target_shift": "1,2"},
        "attack-knowledge = omniscient and several targets",
    ),
    (
        {"regularizer": "smooth-l2", "estimator": "oracle", "target_shift": "1,2"},
        "estimator = oracle and several targets",
    ),
    ({"dataset": "synthetic-logistic", "features": 1501}, "at most 1500 parameters"),
]


@pytest.mark.parametrize(("changes", "named"), REFUSED_WHEN_BUILT, ids=lambda value: str(value))
def test_what_only_the_problem_tells_is_refused_before_the_first_round(
    changes: dict[str, Any], named: str
) -> None:
    values = {**CLASSES, **changes}
    with pytest.raises(ConfigError, match=r"^equilibrium = true: expected") as caught:
        build_problem(configure(**values))
    assert named in str(caught.value)
    build_problem(configure(**{**values, "equilibrium": False}))


@pytest.mark.parametrize("strength", [0.01, 1.0, 300.0])
def test_convex_profiles_are_told_from_others(strength: float) -> None:
    assert convex(SmoothL2(lam=strength))
    assert convex(LogCosh(lam=strength))
    assert not convex(LogGrowth(lam=strength))


HARMLESS = {
    "name output_dir seed rounds save_trajectory checkpoint_every resume state_dir equilibrium": (
        "what is kept, drawn and how long"
    ),
    "device dtype chunk_users": "where and how it is computed",
    "dataset dataset_options data_dir embedding_weights features label_noise points_per_user "
    "partition partition_options partition_alpha partition_min_points partition_classes "
    "partition_shards partition_similarity test_share nu lam target hidden model_options columns "
    "holdout test_data classes user_column standardise label_column task": (
        "in the problem that is solved"
    ),
    "model_frozen model_weights": "of modules, which are not linear",
    "participation_rescale": "nothing where everybody is asked",
    "solver_tolerance solver_iterations": "the solver's own, of the run and of the equilibrium",
    "local_lr server_lr server_lr_factor": "a length of steps: a run that diverges is told so",
    "aggregation_options aggregation_tolerance krum_selected clipping_radius": (
        "of rules that are refused"
    ),
    "regularizer_options": "of a regulariser that is probed",
    "attack_options attack_strength attack_draws": "of attacks that are refused",
    "attack_model poisoning poisoning_options poisoning_points poisoning_queries poisoning_noise "
    "poisoning_labels poisoning_draws poisoning_weight poisoning_box poisoning_integer": (
        "in theta_spade or the data that are solved with"
    ),
    "initialization": "a start: LOSS is convex",
    "min_nodes node_timeout introduction_timeout reply_timeout site": (
        "who is lost is counted: see rest_checks"
    ),
    "evaluate_every honest_distance": "measured only",
    "tracker tracker_options": "told only",
}
"""Keys that need no rule, and why."""


def test_every_key_moves_the_limit_or_has_been_tried_or_cannot() -> None:
    """A new key belongs to ``MOVERS``, to a long run above, or to the list with its reason."""
    tried = {key for _, changes, _ in [*LEADS.values(), *LEADS_SLOWLY.values()] for key in changes}
    refused = {key.replace("-", "_") for values, _ in REFUSED for key in values}
    harmless = {key for keys in HARMLESS for key in keys.split()}
    assert {mover.key.replace("-", "_") for mover in MOVERS} <= refused
    assert set(RunConfig.model_fields) == tried | refused | harmless


def run(**changes: Any) -> pfl.Result:
    return pfl.run(**{"rounds": 12, "evaluate_every": 0, **CLASSES, **changes})


def failed(result: pfl.Result) -> set[str]:
    return {check.name for check in result.checks if not check.passed}


def test_two_targets_are_not_reported_as_reached() -> None:
    found = run(**TWO)
    problem = build_problem(parse_config(found.config))
    apart = norm(problem.targets[1] - problem.targets[2])
    assert found.metrics["equilibrium_distance_to_target"] == pytest.approx(apart / 2)
    assert found.summary["equilibrium"] == "one point"
    assert found.passed


def test_one_of_many_minimisers_is_not_said_to_be_the_one() -> None:
    changes = {"regularizer": "l2", "users": 2, "strategic_users": "1", "points_per_user": "25"}
    found = run(**changes, server_lr="auto", rounds=60)
    assert found.summary["equilibrium"].startswith("one of many, ")
    assert found.metrics["equilibrium_converged"] == 0
    assert found.metrics["equilibrium_length"] > 0.5
    # The run rests on the segment, and not at the target, which is its end.
    assert found.metrics["equilibrium_gap"] < 1e-3
    assert found.metrics["equilibrium_distance_to_target"] > 0.1
    assert found.passed


def test_a_run_that_runs_away_has_not_passed() -> None:
    found = run(server_lr=5.0, attack="model")
    assert failed(found) >= {"equilibrium: steps of rho"}


AT_REST = {
    "equilibrium_converged": 1.0,
    "equilibrium_length": 0.0,
    "equilibrium_others": 0.0,
    "equilibrium_approach": 0.1,
    "accepted": 4.0,
}
VERDICTS: dict[str, tuple[dict[str, float], str, str]] = {
    "as it should be": ({}, "settling", ""),
    "many": ({"equilibrium_converged": 0.0, "equilibrium_length": 2.0}, "moving", ""),
    "without end": (
        {"equilibrium_converged": 0.0, "equilibrium_length": float("inf")},
        "settling",
        "equilibrium",
    ),
    "not found": ({"equilibrium_converged": 0.0}, "settling", "equilibrium"),
    "a user is lost": ({"accepted": 3.0}, "settling", "equilibrium: users counted"),
    "others were strategic": ({"equilibrium_others": 1.0}, "settling", "equilibrium_others"),
    "away": ({"equilibrium_approach": 1.5}, "diverging", "equilibrium: steps of rho"),
    "overshot": ({}, "diverging", ""),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_what_makes_rho_star_a_yardstick(name: str) -> None:
    changes, behaviour, expected = VERDICTS[name]
    metrics = {**AT_REST, **changes}
    checks = rest_checks(configure(**CLASSES), metrics, behaviour)
    assert [check.name for check in checks if not check.passed] == [expected] * bool(expected)
    assert rest_checks(configure(), metrics, behaviour) == []
    assert told_rest(metrics) not in ("", None)
    assert told_rest({}) == ""


def test_a_model_that_l2_holds_rho_at_is_where_the_run_leads() -> None:
    """Three against one: the residual is max(0, ||G|| - 3 lam), 0, and not ||G||."""
    changes = {"regularizer": "l2", "attack": "model", "strategic_users": "1-3"}
    problem = build_problem(configure(**{**CLASSES, **changes}))
    found = attacked_equilibrium(problem)
    assert torch.equal(found.rho, problem.target)
    assert found.converged
    assert found.residual == 0
    pull = problem.population((0,)).report(found.rho, found.theta)
    assert 0.5 < norm(pull) <= 1 + 1e-9


def test_users_of_a_node_that_calls_itself_strategic_are_not_those_of_the_yardstick() -> None:
    config = configure(**{**CLASSES, "rounds": 3, "server_lr": 0.01})
    roles: dict[str, dict[int, Any]] = {
        "as configured": {},
        "one more": {key: {"role": "strategic"} for key in range(3)},
    }
    for name, nodes in roles.items():
        app, asked = client_app.app, config.flat()
        grid = InProcessGrid(app, nodes=4, run_config=asked, node_configs=nodes)
        outcome = server_app.run(grid, build_problem(config))
        others = outcome.metrics["equilibrium_others"]
        wrong = {check.name for check in outcome.checks if not check.passed}
        assert (others > 0) == ("equilibrium_others" in wrong) == (name == "one more"), name


def test_the_command_says_where_a_run_leads_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {**CLASSES, "points_per_user": "25", "rounds": 30, "regularizer": "l2", "users": 2}
    keys |= {"strategic_users": "1", "server_lr": "auto", "evaluate_every": 0}
    words = [f"{key.replace('_', '-')}={str(value).lower()}" for key, value in keys.items()]
    assert main(["run", "digits-squared-l2", "--output", str(tmp_path), "--set", *words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "seed-1 equilibrium = one of many, " in said
    assert "seed-1 equilibrium: users counted = 2, expected == 2" in said
