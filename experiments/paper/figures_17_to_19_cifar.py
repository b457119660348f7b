"""Figures 17 to 19: the three attacks on the last layer of a VGG13-BN for CIFAR-10 (Appendix J).

Users hold embeddings, the 4,096 inputs of the last layer, and learn that layer together. Claimed by
the paper: CGA, the model attack made of its last gradient and 100,000 points near the indifference
subspace each bring rho to a classifier that answers with the next class. Shown are, as there, the
accuracy on the attacker's labels and distances: of rho to an honest classifier (learned on the true
labels), to the target, and to the model that the strategic user's report stands for, which under
squared l2 is ``rho - g/(2 lam)``. The distances depend on the network's embeddings; the paper used
weights by Phan (2021), and ``train-vgg`` makes others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.paper.attack_limits import cga_limit
from experiments.paper.curves import draw_curve
from experiments.paper.protocols import MNIST, PAPER, QUICK_POINTS, THREAT_MODEL
from experiments.paper.runs import run_variants
from experiments.studies.drawing import legend_above
from experiments.studies.standing import FIGURE, GUESSING, Stated
from experiments.studies.study import Result, Setting, Study
from experiments.studies.variants import Keys, shared
from experiments.studies.wording import Measured
from pfl_flower.run.checks import Claim, at_least, at_most
from pfl_flower.run.figures import save

CGA_ROUNDS, MODEL_ROUNDS, DATA_ROUNDS = 1000, 500, 1500
QUICK_ROUNDS = 150
CIFAR: Keys = {
    **MNIST,
    "dataset": "cifar10-embeddings",
    "local-lr-decay": 1.0,
    "local-lr-floor": 0.0,
    "honest-distance": True,
}
BROUGHT = frozenset({"dataset", "embedding-weights"})
"""CIFAR-10 in another form, and the network: where images and weights are is one's own affair."""
CONSTANT_ADAM: Keys = {**PAPER, "server-lr-decay": 1.0, "server-lr-floor": 0.0}
"""The paper's protocol with constant step sizes, which Figures 17 to 19 have."""
PROTOCOLS = {"threat model": THREAT_MODEL, "paper": CONSTANT_ADAM}
POISON: Keys = {
    "attack": "data",
    "poisoning": "indifference",
    "poisoning-points": 100_000,
    "poisoning-queries": "uniform",
    "poisoning-noise": 0.1,
    "initialization": "attack-model",
    "initialization-noise": 0.1,
}
LINES = (
    ("distance_to_honest", "to the honest classifier", "-", 1.0),
    ("norm_rho", "norm", "--", 1.0),
    ("distance_to_target", "to the target", "-.", 1.0),
    ("strategic_gradient_norm", "to the attack's model", ":", 0.5),
)
"""Columns, what they are distances of rho to, and what turns them into that at lam = 1."""


def _keys(setting: Setting, protocol: str, rounds: int, attack: Keys) -> Keys:
    """Return a run of Appendix J; without a strategic user in the control."""
    size: Keys = {**QUICK_POINTS} if setting.quick else {}
    if setting.control:
        attack = {"strategic-users": "none", "estimator": "inferred"}
    rounds = QUICK_ROUNDS if setting.quick else rounds
    return {**CIFAR, **PROTOCOLS[protocol], **size, **attack, "rounds": rounds}


def _cga(setting: Setting, protocol: str) -> tuple[str, Keys]:
    return f"cifar {protocol}", _keys(setting, protocol, CGA_ROUNDS, {})


def measure_cga(setting: Setting) -> dict[str, Any]:
    """Run CGA under both protocols, where the other two figures find the threat model's run."""
    place = setting if setting.control else shared(setting)
    return run_variants(place, dict(_cga(setting, protocol) for protocol in PROTOCOLS))


def measure_model(setting: Setting) -> dict[str, Any]:
    """Run the model attack of CGA's last gradient under both protocols."""
    attack = {"attack": "model", "estimator": "inferred", **_source(setting)}
    return run_variants(
        setting,
        {f"cifar {p}": _keys(setting, p, MODEL_ROUNDS, attack) for p in PROTOCOLS},
    )


def measure_data(setting: Setting) -> dict[str, Any]:
    """Run the data attack from CGA's last gradient, under the paper's protocol."""
    points: Keys = {"poisoning-points": 5000} if setting.quick else {}
    attack = {**POISON, "estimator": "inferred", **points, **_source(setting)}
    return run_variants(setting, {"cifar paper": _keys(setting, "paper", DATA_ROUNDS, attack)})


def _source(setting: Setting) -> Keys:
    if setting.control:
        return {}
    return {"attack-model": cga_limit(setting, *_cga(setting, "threat model"))}


def _success(protocols: Sequence[str]) -> Iterator[Claim]:
    """Yield that rho answers as the target does, and next to never truly."""
    for protocol in protocols:
        yield Claim(f"cifar {protocol}: target_gap", at_most(FIGURE))
        yield Claim(f"cifar {protocol}: accuracy_true", at_most(GUESSING))


def _stated(figure: str, what: str) -> tuple[Stated, ...]:
    """Return what a figure shows under the paper's protocol."""
    return (
        Stated(
            what=f"{what} brings rho to answer as the attacker wants",
            where=f"Appendix J, {figure}a",
            claim=Claim("cifar paper: target_gap", at_most(FIGURE)),
            against=at_least(0.5),
            paper="the target's own accuracy",
            why="what the figure does not show; the opposite: half of the answers are others",
        ),
    )


def _draw(name: str, protocols: Sequence[str]) -> Callable[[Sequence[Result], Path], None]:
    def draw(results: Sequence[Result], folder: Path) -> None:
        """Draw accuracy and distances, as the paper does; a row for each protocol."""
        figure = Figure(figsize=(10.0, 1.0 + 3.0 * len(protocols)), layout="constrained")
        grid = figure.subplots(len(protocols), 2, squeeze=False)
        for (left, right), protocol in zip(grid, protocols, strict=True):
            variant = f"cifar {protocol}"
            draw_curve(left, results, variant, "accuracy_target", colour=0, label="rho")
            for colour, (column, label, style, scale) in enumerate(LINES):
                draw_curve(
                    right,
                    results,
                    variant,
                    column,
                    colour=colour,
                    label=label,
                    style=style,
                    scale=scale,
                )
            left.set(ylabel="accuracy on the attacker's labels", ylim=(-0.03, 1.03))
            left.set(title=f"{protocol}'s protocol")
            # At first CGA stands for a model hundreds of times as far away as the target is.
            right.set(ylabel="distance of rho", yscale="log")
            for axes in (left, right):
                axes.set(xlabel="round")
                axes.grid(alpha=0.3)
        legend_above(figure, grid[0][1], 4)
        save(figure, folder, name)

    return draw


def _words(protocols: Sequence[str]) -> Callable[[Measured], str]:
    def words(m: Measured) -> str:
        """Return how often rho answers as the attacker wants, and how often truly."""
        found = [
            f"{m.mean(f'cifar {protocol}: accuracy_target'):.1%} and "
            f"{m.mean(f'cifar {protocol}: accuracy_true'):.1%} ({protocol}'s protocol)"
            for protocol in protocols
        ]
        best = m.mean(*(f"cifar {protocol}: target_accuracy" for protocol in protocols))
        return (
            f"How often rho gives the attacker's label (the target itself: {best:.1%}), and how "
            f"often the true one: {'; '.join(found)}."
        )

    return words


def _study(
    name: str,
    claim: str,
    measure: Callable[[Setting], dict[str, Any]],
    protocols: Sequence[str],
    setting: str,
    figure: str,
    attack: str,
) -> Study:
    return Study(
        name=name,
        claim=claim,
        words=_words(protocols),
        measure=measure,
        draw=_draw(name, protocols),
        seeds=(1,),
        brought=BROUGHT,
        success=tuple(_success(protocols)),
        paper=_stated(figure, attack),
        has_runs=True,
        setting=(
            "CIFAR-10 embeddings by a VGG13-BN, last layer; 10 honest users of 6,000 draws, "
            f"squared l2, lam = 1, Adam steps of 0.02; {setting} The quick form has 600 draws a "
            f"user and {QUICK_ROUNDS} rounds. Needs the network's weights (train-vgg)."
        ),
    )


CGA = _study(
    "fig17-cifar-cga",
    "CGA brings the last layer of a real network to answer with the next class.",
    measure_cga,
    tuple(PROTOCOLS),
    "1,000 rounds.",
    "Figure 17",
    "CGA",
)
MODEL = _study(
    "fig18-cifar-model",
    "The model attack that is made of CGA's last gradient brings the last layer of a "
    "real network to answer with the next class.",
    measure_model,
    tuple(PROTOCOLS),
    "500 rounds; theta_spade from the last gradient of Figure 17's run under the threat model.",
    "Figure 18",
    "the model attack",
)
DATA = _study(
    "fig19-cifar-data",
    "100,000 poisoned embeddings near the indifference subspace bring the last layer of "
    "a real network to answer with the next class.",
    measure_data,
    ("paper",),
    "1,500 rounds; 100,000 points near the indifference subspace with noise 0.1, the poisoned "
    "user's model starts at theta_spade + 0.1 noise.",
    "Figure 19",
    "a set of 100,000 indifferent embeddings",
)
