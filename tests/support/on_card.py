"""Runs that are to be the same on a card: every rule, attack, poisoning and model, and more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.attacks.poisoning.table import POISONINGS
from pfl_flower.attacks.table import ATTACKS
from pfl_flower.run.evaluation import Evaluation
from pfl_flower.run.problem import build_problem
from tests.support.runs import configure, play, trajectory

Keys = Mapping[str, Any]
VECTORS: Keys = {
    "users": 11,
    "strategic_users": "9,10",
    "points_per_user": "20",
    "rounds": 3,
    "evaluate_every": 1,
}
IMAGES: Keys = {
    "dataset": "digits",
    "users": 6,
    "strategic_users": "5",
    "points_per_user": "40",
    "rounds": 2,
    "evaluate_every": 1,
}
SEEN = ("backdoor", "model-replacement", "gradient-matching", "label-flip")
"""Attacks on points or pictures."""


def _rules() -> Iterator[tuple[str, Keys]]:
    for name, row in AGGREGATIONS.items():
        root = {"aggregation_options": {"points": 30}} if row.root else {}
        yield f"rule {name}", {**VECTORS, **root, "aggregation": name}


def _attacks() -> Iterator[tuple[str, Keys]]:
    for name, row in ATTACKS.items():
        for known in row.knows:
            keys = {**(IMAGES if name in SEEN else VECTORS), "attack": name}
            if name in ("model", "data"):
                keys |= {"attack_model": "exact", "users": 6, "strategic_users": "5"}
            # A sum is led as far by a strength as by its opposite: rounding would choose.
            ruled = known == "rule" or name.startswith(("rule", "fitted"))
            rule = {"aggregation": "trimmed-mean"} if ruled else {}
            yield f"{name}, {known}", {**keys, **rule, "attack_knowledge": known}


def _poisonings() -> Iterator[tuple[str, Keys]]:
    for name, row in POISONINGS.items():
        regression = {"dataset": "synthetic-linear"} if row.losses == ("least-squares",) else {}
        keys = {**VECTORS, **regression, "strategic_users": "5", "users": 6, "rounds": 2}
        yield (
            f"poisoning {name}",
            {**keys, "attack": "data", "poisoning": name, "attack_model": "exact"},
        )


CASES: Mapping[str, Keys] = {
    **dict(_rules()),
    **dict(_attacks()),
    **dict(_poisonings()),
    "two layers": {**IMAGES, "model": "two-layer", "hidden": 12, "local_solver": "adam"},
    "cnn": {**IMAGES, "model": "cnn", "local_solver": "adam"},
    "least squares": {**VECTORS, "dataset": "synthetic-linear"},
    "l2": {**IMAGES, "regularizer": "l2"},
    "smooth l2": {**IMAGES, "regularizer": "smooth-l2", "local_solver": "sgd"},
    "classical": {**IMAGES, "personalization": "classical"},
    "ditto": {**IMAGES, "personalization": "ditto"},
    "local": {**IMAGES, "personalization": "local"},
    "dirichlet": {**IMAGES, "partition": "dirichlet", "partition_alpha": 0.5},
    "a sample": {**VECTORS, "participation": 0.5},
}

RUNS: Mapping[str, Keys] = {
    "exact": {},
    "exact, l2": {"regularizer": "l2"},
    "exact, many users": {"users": 200, "points_per_user": "5", "strategic_users": "199"},
    "adam": {"local_solver": "adam", "batch_size": 8},
    "sgd, a sample": {"local_solver": "sgd", "participation": 0.6, "chunk_users": 2},
    "data": {"attack": "data"},
    "oracle": {"estimator": "oracle", "update_order": "simultaneous", "local_solver": "adam"},
    "digits": {"dataset": "digits", "points_per_user": "100", "local_solver": "adam"},
}
"""Those that are compared round by round, on a real card alone."""
SINGLE: Mapping[str, Keys] = {
    name: {
        "dataset": "digits",
        **model,
        "dtype": "float32",
        "local_solver": "sgd",
        "local_lr": 1e-4,
        "strategic_users": "none",
        "points_per_user": "200,10",
        "server_lr": 0.05,
    }
    for name, model in {
        "linear": {"model": "linear"},
        "two-layer": {"model": "two-layer", "hidden": 16},
    }.items()
}
"""Those in single precision."""


def judged(keys: Keys, device: str) -> tuple[Tensor, dict[str, float]]:
    """Return rho of every round, and all that is said of the last one and of users' models."""
    config = configure(**keys, device=device)
    records = play(config)
    last = records[-1]
    said = {f"user {user}": value for user, value in last.accuracies.items()}
    said |= Evaluation.of(build_problem(config))(last.rho)
    said |= {f"rejected, {one.reason}": float(one.user) for one in last.rejections}
    return trajectory(records), said


def check_same(name: str, there: tuple[Tensor, dict[str, float]]) -> None:
    """Compare a case with what the processor comes to: float64, to the solves' tolerance."""
    rho, said = judged(CASES[name], "cpu")
    assert len(said) > 2 and (rho.abs().max() > 1e-3 or name == "local")
    far = (there[0].cpu() - rho).abs().max()
    assert far <= 1e-8 * rho.abs().max().clamp(min=1), float(far)
    assert there[1].keys() == said.keys()
    for key, value in said.items():
        torch.testing.assert_close(there[1][key], value, rtol=0, atol=1e-7, msg=key)


def accuracies(model: str, models: int, device: str) -> Tensor:
    """Return how often each of some models of ``SINGLE`` is right on the test images."""
    problem = build_problem(configure(**SINGLE[model], device=device))
    draw = torch.Generator().manual_seed(1)
    theta = torch.randn(models, problem.model.dim, generator=draw, dtype=problem.dtype)
    return problem.test_set.accuracy_of_each(problem.model, theta.to(problem.device)).cpu()
