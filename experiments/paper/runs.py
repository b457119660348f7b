"""Runs that a figure is made of: several configurations for one seed, kept when finished."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments.running.engines import run_once
from experiments.running.preset_runs import final_metrics, finished
from experiments.running.progress import watching
from experiments.studies.study import Result, Setting
from pfl_flower.run.at_equilibrium import with_poison
from pfl_flower.run.attack_plans import honest_users, plan, reach
from pfl_flower.run.config import RunConfig
from pfl_flower.run.evaluation import Evaluation
from pfl_flower.run.figures import draw_band
from pfl_flower.run.keys import Scalar
from pfl_flower.run.problem import build_problem
from pfl_flower.run.progress import measured
from pfl_flower.run.results import LIMIT_FILE, write_limit
from pfl_flower.run.rounds import read_rounds
from pfl_flower.solvers.equilibrium_lbfgs import joint_minimum

Keys = Mapping[str, Scalar]

COLUMNS = (
    "accuracy_true",
    "accuracy_target",
    "distance_to_target",
    "distance_to_start",
    "distance_to_honest",
    "norm_rho",
    "strategic_gradient_norm",
    "local_accuracy",
    "active_accuracy",
    "idle_accuracy",
)
ENDINGS = (
    *COLUMNS,
    "gradient_norm",
    "worst_residual",
    "target_accuracy",
    "target_gap",
    "poisoned_points",
    "poisoned_labels",
    "poisoned_residual",
    "rejections_total",
    "seconds_total",
)
"""What is kept of a run's last round; the run's own summary has the rest."""
YARDSTICKS = ("accuracy_true", "accuracy_target", "distance_to_target")
MOST_POINTS = 400
"""Rows of a curve that are kept for drawing."""

MNIST: Keys = {
    "dataset": "mnist",
    "points-per-user": "6000",
    "nu": 0.0,
    "lam": 1.0,
    "dtype": "float32",
    "local-solver": "adam",
    "local-lr": 0.02,
    "local-lr-decay": 0.99,
    "local-lr-floor": 0.005,
}
"""Ten honest users of 6,000 draws and one Adam step a round (Appendix G)."""

THREAT_MODEL: Keys = {
    "server-optimizer": "sgd",
    "server-lr": "auto",
    "estimator": "inferred",
    "update-order": "local-first",
}
"""The protocol of Section 5.1: the attacker knows rho and eta, and the server steps by SGD."""

PAPER: Keys = {
    "server-optimizer": "adam",
    "server-lr": 0.02,
    "server-lr-decay": 0.99,
    "server-lr-floor": 0.005,
    "estimator": "oracle",
    "update-order": "simultaneous",
}
"""The protocol of the paper's experiments: Adam on the server too, which gives the sum away."""

PROTOCOLS: Mapping[str, Keys] = {"threat model": THREAT_MODEL, "paper": PAPER}

QUICK_POINTS: Keys = {"points-per-user": "600"}
"""A tenth of the data: what the quick forms of Figures 1 to 3 learn from."""

SHARED = "shared"
"""Folder, beside the studies', of runs that several of them begin with."""


def slug(label: str) -> str:
    """Return a label as the name of a folder.

    >>> slug("threat model, squared-l2")
    'threat-model-squared-l2'
    """
    return re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-")


def configured(setting: Setting, label: str, keys: Keys) -> RunConfig:
    """Return the configuration of a variant; local models are evaluated only where keys say so."""
    base = {"evaluate-every": 0, **keys}
    return setting.options.configure(base, setting.folder, setting.seed, slug(label))


def run_variant(setting: Setting, label: str, keys: Keys) -> RunConfig:
    """Run one configuration to its end, unless it was, and return it.

    Raises
    ------
    RunFailedError
        If it did not finish.
    """
    config = configured(setting, label, keys)
    if not finished(config, setting.options):

        def show(row: Mapping[str, float]) -> None:
            rounds = f"round {row.get('round', 0):.0f}/{config.rounds}"
            setting.say(f"{label}, {rounds}  {measured(dict(row))}")

        with watching(config.folder() / "rounds.csv", show):
            run_once(config, setting.options)
    return config


def shared(setting: Setting) -> Setting:
    """Return the setting whose folder several studies of one seed and form have in common."""
    name = f"{'quick-' if setting.quick else ''}seed-{setting.seed}"
    return replace(setting, folder=setting.options.output / SHARED / name)


def cga_limit(setting: Setting, label: str, keys: Keys) -> str:
    """Return the folder of a CGA run, whose last gradient makes a theta_spade (Proposition 3)."""
    return str(run_variant(shared(setting), label, keys).folder())


def exact_limit(setting: Setting, keys: Keys) -> str:
    """Return a folder with the limit of an exact attack, worked out once for all studies.

    It stands for the run that ``attack-model`` can name: rho and the gradient that holds it there,
    from the honest users' exact responses.
    """
    setting = shared(setting)
    config = configured(setting, "exact", {**keys, "attack": "cga"})
    asked = {**config.flat(), "rounds": 0, "output-dir": ""}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
    folder = setting.folder / f"exact-{digest}"
    if not (folder / LIMIT_FILE).exists():
        setting.say("the honest users' exact responses at the target")
        problem = build_problem(config)
        limit = reach(problem, min(config.strategic()))
        write_limit(folder / LIMIT_FILE, limit.rho, limit.gradient)
    return str(folder)


def at_rest(setting: Setting, label: str, keys: Keys, steps: int) -> dict[str, float]:
    """Return what the minimiser of LOSS under a model or data attack is worth, by name.

    It is sought by L-BFGS from a cold start, in float64. ``residual`` is the first-order residual
    where the search ended: the norm of LOSS's gradient in rho, or in a theta_n if that is larger.
    """
    config = configured(setting, label, keys)
    problem = build_problem(config).in_double
    user = min(config.strategic())
    model = config.attack == "model"
    found = joint_minimum(
        problem.population(honest_users(problem)) if model else with_poison(problem),
        attack_models=plan(problem, user).attack_model[None] if model else None,
        max_iterations=steps,
        watch=lambda step, norm: setting.say(
            f"{label}, minimising: step {step}/{steps}, gradient {norm:.2g}"
        ),
    )
    measured = Evaluation.of(problem)(found.rho)
    ended = {key: measured[key] for key in YARDSTICKS}
    ended["residual"] = max(found.residual, found.local_residual)
    return {f"{label}, equilibrium: {key}": value for key, value in ended.items()}


def run_variants(setting: Setting, variants: Mapping[str, Keys]) -> dict[str, Any]:
    """Run every variant; return metrics ``label: name`` and curves by label and column."""
    metrics: dict[str, float] = {}
    curves: dict[str, Any] = {}
    for label, keys in variants.items():
        config = run_variant(setting, label, keys)
        ended = final_metrics(config)
        metrics |= {f"{label}: {key}": ended[key] for key in ENDINGS if key in ended}
        curves[label] = curve(config.folder() / "rounds.csv")
    return {"metrics": metrics, "curves": curves}


def curve(path: Path) -> dict[str, dict[str, list[float]]]:
    """Return ``round`` and value of each column of a run, at most 400 rows of each."""
    rows = read_rounds(path)
    kept = {}
    for column in COLUMNS:
        points = [(row["round"], row[column]) for row in rows if column in row]
        if points:
            chosen = _spread(len(points))
            kept[column] = {
                "round": [points[i][0] for i in chosen],
                "value": [points[i][1] for i in chosen],
            }
    return kept


def _spread(rows: int) -> Sequence[int]:
    """Return rows to keep: half of them evenly spaced, half so on a logarithmic axis."""
    if rows <= MOST_POINTS:
        return range(rows)
    even = np.linspace(0, rows - 1, MOST_POINTS // 2)
    early = np.geomspace(1, rows - 1, MOST_POINTS // 2)
    return np.unique(np.concatenate([even, early]).round().astype(int)).tolist()


def draw_curve(
    axes: Axes,
    results: Sequence[Result],
    variant: str,
    column: str,
    *,
    colour: int,
    label: str,
    style: str = "-",
    scale: float = 1.0,
) -> None:
    """Draw ``scale`` times a column of a variant: mean over seeds, a band of one deviation."""
    asked = [result["curves"].get(variant, {}).get(column) for result in results]
    found = [one for one in asked if one]
    if not found:
        return
    rounds = found[0]["round"]
    values = np.array([one["value"] for one in found], dtype=float)
    values[~np.isfinite(values)] = np.nan
    draw_band(axes, rounds, scale * values, label, colour, style)
