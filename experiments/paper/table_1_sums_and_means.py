"""Table 1 and Figures 4 to 15: sums against means of the local losses, on FashionMNIST.

Ten idle users draw 10 points each and one active user has all 60,000; all are honest. Claimed by
the paper (Appendix C): with the sum, idle, active and global models are more accurate than with
the mean, for a linear model and for two layers, whatever lam. For this comparison alone the sum is
divided by the mean number of points per user. Not so at lam = 0.01: the active user's own model of
two layers is as good with the mean, and better in two seeds of three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.paper.runs import run_variants
from experiments.paper.sums_and_means import (
    BASE,
    LINES,
    QUICK_POINTS,
    draw_reductions,
    measured,
    sums_beat_means,
    variants,
    worst_margin,
)
from experiments.studies.standing import FIGURE, Printed, Stated
from experiments.studies.study import Result, Setting, Study
from experiments.studies.variants import Keys, shared
from experiments.studies.wording import Measured
from pfl_flower.run.checks import Check, Claim, Metrics, above, below
from pfl_flower.run.problem import choose_device

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


def _words(found: Measured) -> str:
    """Return how far the sum is ahead of the mean, over all settings and seeds."""
    gains = []
    for column, who in LINES:
        ahead = [
            100 * (of_sum - of_mean)
            for name in found.names(f"*, sum: {column}")
            for of_sum, of_mean in zip(
                found[name], found[name.replace(", sum: ", ", mean: ")], strict=True
            )
        ]
        gains.append(f"{who} model {min(ahead):+.1f} to {max(ahead):+.1f}")
    return f"Accuracy of the sum minus that of the mean, in points: {', '.join(gains)}."


@dataclass(frozen=True, kw_only=True)
class SumsAndMeans:
    """A figure or table that runs both reductions.

    Attributes
    ----------
    name, claim : str
        Of the study.
    where : str
        The paper's table or figures.
    lams : sequence of float
        Strengths of squared l2.
    noise : float
        Share of the training labels that are redrawn.
    rounds : int
        Half as many in the quick form.
    on_cpu : OnCpu
        What of two layers is run without a GPU.
    """

    name: str
    claim: str
    where: str
    lams: Sequence[float] = (1.0,)
    noise: float = 0.6
    rounds: int = 200
    on_cpu: OnCpu

    def measure(self, setting: Setting) -> dict[str, Any]:
        """Run both reductions for every model and lam; noisy ones where all studies find them."""
        rounds, size = (self.rounds // 2, QUICK_POINTS) if setting.quick else (self.rounds, BASE)
        covered = self.on_cpu.covers(setting)
        lams = {"linear": self.lams, "two-layer": self.lams if covered is None else covered}
        runs: dict[str, Keys] = {}
        for model in MODELS:
            runs |= variants([model], lams[model], self.noise, rounds, size)
        return run_variants(shared(setting) if self.noise else setting, runs)

    def judge(self, finals: Sequence[Metrics]) -> list[Check]:
        """Return that sums beat means in every setting that was run."""
        return sums_beat_means(finals, MODELS, self.lams)

    def stated(self) -> Stated:
        """Return what the paper says of all its settings, worst setting and seed."""
        margin = partial(worst_margin, models=MODELS, lams=self.lams)
        return Stated(
            what="sums are more accurate than means, in every setting",
            where=self.where,
            claim=Claim(margin, above(0), "least margin"),
            against=below(-FIGURE),
            why="the statement's own; the opposite: a mean ahead by what a figure shows",
            value=0.0,
        )

    def draw(self, results: Sequence[Result], folder: Path) -> None:
        """Draw mean beside sum."""
        for model in MODELS:
            if measured(results, [model], self.lams):
                draw_reductions(results, folder, f"{self.name}-{model}", [model], self.lams)

    def study(self, printed: Sequence[Printed] = (), **more: Any) -> Study:
        """Return the study; ``printed`` are the numbers that the paper prints."""
        lams = ", ".join(f"{lam:g}" for lam in self.on_cpu.lams)
        return Study(
            name=self.name,
            claim=self.claim,
            words=_words,
            measure=self.measure,
            judge=self.judge,
            draw=self.draw,
            has_runs=True,
            paper=(*printed, self.stated()),
            setting=(
                f"FashionMNIST, {self.noise:.0%} of the training labels redrawn; 10 idle users of "
                "10 points, an active one of 60,000; squared l2, nu = 0; "
                f"{self.rounds} rounds of Adam steps (0.04 x 0.99^t, at least 0.02) on both sides; "
                "the quick form runs the linear model for half the rounds, with 6,000 points for "
                "the active user. Two layers, whose round costs 1.2 core-seconds, are run on a "
                f"CPU for lam = {lams}, seeds up to {self.on_cpu.seeds} only."
            ),
            **more,
        )


TABLE1 = SumsAndMeans(
    name="table1-sum-vs-mean",
    claim=(
        "Where one user has many points and ten have few, all models are more accurate if each "
        "user sums its losses than if it averages them."
    ),
    where="Appendix C.2.1, Table 1",
    on_cpu=OnCpu(5, (1.0,)),
).study(
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
LAMBDA = SumsAndMeans(
    name="fig4-13-lambda",
    claim="Sums beat means whatever lam, from 0.01 to 100.",
    where="Appendix C.2.1, Figures 4 to 13",
    lams=LAMS,
    on_cpu=OnCpu(1, LAMS),
).study(seeds=(1, 2, 3))
NO_NOISE = SumsAndMeans(
    name="fig14-15-no-noise",
    claim="Sums beat means without label noise as well, after 1,000 rounds.",
    where="Appendix C.2.2, Figures 14 and 15",
    noise=0.0,
    rounds=1000,
    on_cpu=OnCpu(1, (1.0,)),
).study(seeds=(1, 2, 3))
