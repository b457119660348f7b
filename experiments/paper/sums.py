"""Table 1 and Figures 4 to 15: sums against means of the local losses, on FashionMNIST.

Ten idle users draw 10 points each and one active user has all 60,000; all are honest. Claimed by
the paper (Appendix C): with the sum, idle, active and global models are more accurate than with
the mean, for a linear model and for two layers, whatever lam. For this comparison alone the sum is
divided by the mean number of points per user. Not so at lam = 0.01: the active user's own model of
two layers is better with the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.paper.runs import Keys, draw_curve, run_variants, shared
from experiments.studies.study import Printed, Result, Setting, Study
from experiments.studies.wording import Measured
from pfl_flower.run.checks import Check, above
from pfl_flower.run.figures import save
from pfl_flower.run.problem import choose_device

BASE: Keys = {
    "dataset": "fashion-mnist",
    "users": 11,
    "points-per-user": "60000,10",
    "strategic-users": "none",
    "nu": 0.0,
    "dtype": "float32",
    "local-solver": "adam",
    "local-lr": 0.04,
    "local-lr-decay": 0.99,
    "local-lr-floor": 0.02,
    "server-optimizer": "adam",
    "server-lr": 0.04,
    "server-lr-decay": 0.99,
    "server-lr-floor": 0.02,
    "update-order": "simultaneous",
    "evaluate-every": 10,
}
REDUCTIONS: Mapping[str, str] = {"sum": "scaled-sum", "mean": "mean"}
LINES = (("active_accuracy", "active"), ("idle_accuracy", "idle"), ("accuracy_true", "global"))
NOISE = 0.6
QUICK_POINTS: Keys = {"points-per-user": "6000,10"}
"""A tenth of the active user's data, for the quick forms."""


def variants(
    models: Sequence[str], lams: Sequence[float], noise: float, rounds: int, size: Keys = BASE
) -> dict[str, Keys]:
    """Return both reductions for every model and lam."""
    return {
        f"{model}, lam {lam:g}, {reduction}": {
            **BASE,
            **size,
            "model": model,
            "lam": lam,
            "reduction": REDUCTIONS[reduction],
            "label-noise": noise,
            "rounds": rounds,
        }
        for model in models
        for lam in lams
        for reduction in REDUCTIONS
    }


def having(results: Sequence[Result], model: str, lam: float) -> list[Result]:
    """Return the results of the seeds that have runs of a model with this lam."""
    runs = f"{model}, lam {lam:g}, "
    return [r for r in results if any(key.startswith(runs) for key in r["metrics"])]


def sums_beat_means(
    results: Sequence[Result], models: Sequence[str], lams: Sequence[float]
) -> list[Check]:
    """Return, for every model and lam that was run, that the sum's worst seed beats all means."""
    checks = []
    for key, found in _run(results, models, lams).items():
        for column, who in LINES:
            sums, means = (
                [
                    float(result["metrics"].get(f"{key}, {reduction}: {column}", math.nan))
                    for result in found
                ]
                for reduction in REDUCTIONS
            )
            margins = [one - other for one in sums for other in means]
            checks.append(above(0).check(f"{key}: {who}, sum above mean", margins))
    return checks


def _run(
    results: Sequence[Result], models: Sequence[str], lams: Sequence[float]
) -> dict[str, list[Result]]:
    """Return the seeds' results by model and lam, of those that were run."""
    pairs = {f"{model}, lam {lam:g}": (model, lam) for model in models for lam in lams}
    found = {key: having(results, *pair) for key, pair in pairs.items()}
    return {key: some for key, some in found.items() if some}


def draw_reductions(
    results: Sequence[Result],
    folder: Path,
    name: str,
    models: Sequence[str],
    lams: Sequence[float],
) -> None:
    """Draw the three accuracies over rounds: a row for each model and lam, mean beside sum."""
    rows = _run(results, models, lams)
    figure = Figure(figsize=(9.0, 1.0 + 2.5 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 2, squeeze=False, sharey=True)
    for row, (key, found) in zip(grid, rows.items(), strict=True):
        for axes, reduction in zip(row, ("mean", "sum"), strict=True):
            for colour, (column, label) in enumerate(LINES):
                run, style = f"{key}, {reduction}", ("-", "--", ":")[colour]
                draw_curve(axes, found, run, column, colour=colour, label=label, style=style)
            title = f"{key.replace('lam ', 'lam = ')}, using the {reduction}"
            axes.set(xlabel="round", ylim=(0, 1), title=title)
            axes.grid(alpha=0.3)
        row[0].set(ylabel="test accuracy")
    handles, labels = grid[0][1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    save(figure, folder, name)


MODELS = ("linear", "two-layer")
LAMS = (0.01, 0.1, 1.0, 10.0, 100.0)
TABLE = {
    ("linear", "sum"): (0.80, 0.80, 0.80),
    ("two-layer", "sum"): (0.79, 0.79, 0.79),
    ("two-layer", "mean"): (0.56, 0.55, 0.58),
}
"""Table 1 for active, idle and global models; its column of linear means is illegible."""


@dataclass(frozen=True)
class OnCpu:
    """Seeds (up to this one) and lams for which two layers are run without a GPU."""

    seeds: int
    lams: Sequence[float]

    def covers(self, setting: Setting) -> Sequence[float] | None:
        """Return the lams of two layers in a setting, None for all."""
        if setting.quick:
            return ()
        if choose_device(setting.options.device).type != "cpu":
            return None
        return self.lams if setting.seed <= self.seeds else ()


def _judge(lams: Sequence[float]) -> Any:
    def judge(results: Sequence[Result]) -> list[Check]:
        """Return that sums beat means in every setting that was run."""
        return sums_beat_means(results, MODELS, lams)

    return judge


def _draw(name: str, lams: Sequence[float]) -> Any:
    def draw(results: Sequence[Result], folder: Path) -> None:
        """Draw mean beside sum."""
        for model in MODELS:
            if _run(results, [model], lams):
                draw_reductions(results, folder, f"{name}-{model}", [model], lams)

    return draw


def _measure(lams: Sequence[float], noise: float, rounds: int, on_cpu: OnCpu) -> Any:
    def measure(setting: Setting) -> dict[str, Any]:
        """Run both reductions for every model and lam; noisy ones where all studies find them."""
        asked, size = (rounds // 2, QUICK_POINTS) if setting.quick else (rounds, BASE)
        two_layer = on_cpu.covers(setting)
        place = shared(setting) if noise else setting
        linear = variants(MODELS[:1], lams, noise, asked, size)
        more = variants(MODELS[1:], lams if two_layer is None else two_layer, noise, asked, size)
        return run_variants(place, linear | more)

    return measure


def _words(measured: Measured) -> str:
    """Return how far the sum is ahead of the mean, over all settings and seeds."""
    gains = []
    for column, who in LINES:
        ahead = [
            100 * (of_sum - of_mean)
            for name in measured.names(f"*, sum: {column}")
            for of_sum, of_mean in zip(
                measured[name], measured[name.replace(", sum: ", ", mean: ")], strict=True
            )
        ]
        gains.append(f"{who} model {min(ahead):+.1f} to {max(ahead):+.1f}")
    return f"Accuracy of the sum minus that of the mean, in points: {', '.join(gains)}."


def _study(
    name: str,
    claim: str,
    lams: Sequence[float],
    noise: float,
    rounds: int,
    on_cpu: OnCpu,
    **more: Any,
) -> Study:
    said = f"lam = {', '.join(f'{lam:g}' for lam in on_cpu.lams)}, seeds up to {on_cpu.seeds}"
    return Study(
        name=name,
        claim=claim,
        words=_words,
        measure=_measure(lams, noise, rounds, on_cpu),
        judge=_judge(lams),
        draw=_draw(name, lams),
        has_runs=True,
        setting=(
            f"FashionMNIST, {noise:.0%} of the training labels redrawn; 10 idle users of 10 "
            f"points, an active one of 60,000; squared l2, nu = 0; {rounds} rounds of Adam steps "
            "(0.04 x 0.99^t, at least 0.02) on both sides; the quick form runs the linear model "
            "for half the rounds, with 6,000 points for the active user. Two layers, whose round "
            f"costs some 3 core-seconds, are run on a CPU for {said} only."
        ),
        **more,
    )


TABLE1 = _study(
    "table1-sum-vs-mean",
    "Where one user has many points and ten have few, all models are more accurate if "
    "each user sums its losses than if it averages them.",
    (1.0,),
    NOISE,
    200,
    OnCpu(5, (1.0,)),
    printed=tuple(
        Printed(
            f"{model}, {reduction}: {who}",
            f"{model}, lam 1, {reduction}: {column}",
            value,
            "Table 1",
        )
        for (model, reduction), values in TABLE.items()
        for (column, who), value in zip(LINES, values, strict=True)
    ),
)
LAMBDA = _study(
    "fig4-13-lambda",
    "Sums beat means whatever lam, from 0.01 to 100.",
    LAMS,
    NOISE,
    200,
    OnCpu(1, (0.01, 1.0, 10.0, 100.0)),
    seeds=(1, 2, 3),
)
NO_NOISE = _study(
    "fig14-15-no-noise",
    "Sums beat means without label noise as well, after 1,000 rounds.",
    (1.0,),
    0.0,
    1000,
    OnCpu(1, (1.0,)),
    seeds=(1, 2, 3),
)
