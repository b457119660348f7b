"""Real images for the data attack: J.3's open problem, as far as gradients get (CIFAR-10).

The paper poisons with embeddings, which nobody can send to a network's front door. Here each wanted
embedding, near the indifference subspace or designed by ``matching``, is inverted: an image is
sought whose embedding is near it. Measured: how near it gets, beside the nearest natural image,
and where the search for rho's rest leads when the images take the embeddings' place. An attacker
who knows theta_spade labels what an image's own embedding asks for, so that indifferent images are
labelled anew; matching's labels and weights stay as they were designed.

A rest need not be: few points of 4,096 features can all be told apart, and nothing but rho holds
the attacker's model (nu = 0). So the search ends after a number of steps, and the gradient that is
left there is told beside: only with matching's wanted embeddings, which are made to cancel the
honest gradients at the target, is next to nothing left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.paper.attack_limits import at_rest, exact_limit
from experiments.paper.figures_17_to_19_cifar import BROUGHT, CIFAR, CONSTANT_ADAM
from experiments.paper.inverted_images import FORMS, SHOWN, Gallery, invert_data
from experiments.paper.protocols import QUICK_POINTS
from experiments.studies.standing import GUESSING, Stated
from experiments.studies.study import Result, Setting, Study
from experiments.studies.variants import Keys, configured
from pfl_flower.attacks.poisoning.aim import Aim, PoisonedData
from pfl_flower.attacks.poisoning.recipe import Recipe
from pfl_flower.run.checks import Claim, at_least, at_most, below
from pfl_flower.run.figures import PALETTE, save
from pfl_flower.support.files import replacing

POINTS, QUICK_POINTS_INVERTED = 48, 8
STEPS, QUICK_STEPS = 200, 40
WEIGHT = 100.0
"""Labels that each indifferent point counts for."""
WORTH = "equilibrium: accuracy_target"
REST_STEPS, QUICK_REST_STEPS = 300, 60
"""Steps of L-BFGS towards where rho rests."""
METHODS: Mapping[str, Keys] = {
    "indifference": {
        "poisoning": "indifference",
        "poisoning-queries": "uniform",
        "poisoning-noise": 0.1,
        "poisoning-weight": WEIGHT,
    },
    "matching": {"poisoning": "matching"},
}
QUICK_RESTED = ("matching",)
"""Methods whose data the quick form lets rho rest with: eight indifferent points hold nothing."""
KINDS = {"natural": "before", "inverted": "after"}


def given(aim: Aim, recipe: Recipe) -> PoisonedData:
    """Return the data that the study left in the run's folder: a method for ``poisoning``."""
    with np.load(_place(recipe.settings.folder()), allow_pickle=False) as kept:
        found = {
            key: torch.from_numpy(kept[key]).to(aim.attack_model.device)
            for key in ("features", "labels", "weights")
        }
    return PoisonedData.measure(aim, "given", **found)


def _place(folder: Path) -> Path:
    return folder / "poison.npz"


def measure(setting: Setting) -> dict[str, Any]:
    """Invert both methods' embeddings, and seek where rho rests with each form of the data."""
    base: Keys = {**CIFAR, **CONSTANT_ADAM, **QUICK_POINTS}
    # Data poisoning estimates nothing: the protocol's oracle is for CGA.
    source: Keys = {**base, "attack-model": exact_limit(setting, base), "estimator": "inferred"}
    gallery = Gallery.of(configured(setting, "gallery", base))
    steps = QUICK_STEPS if setting.quick else STEPS
    metrics: dict[str, float] = {}
    pictures: dict[str, Any] = {}
    for method, keys in METHODS.items():
        count = QUICK_POINTS_INVERTED if setting.quick else POINTS
        # Matching designs as many queries as its aim takes.
        queries = {"poisoning-points": count} if method == "indifference" else {}
        attack = {**source, **keys, **queries, "attack": "data"}
        forms, near, shown = invert_data(setting, method, attack, gallery, steps)
        metrics |= near
        pictures[method] = shown
        if setting.quick and method not in QUICK_RESTED:
            continue
        for form, data in forms.items():
            if setting.control:
                data = data | {"weights": 1e-9 * data["weights"]}
            label = f"{method}, {form}"
            run = {**source, "attack": "data", "poisoning": f"{__name__}:given"}
            folder = configured(setting, label, run).folder()
            entries: dict[str, Any] = {name: values.cpu().numpy() for name, values in data.items()}
            with replacing(_place(folder)) as file:
                np.savez(file, **entries)
            rest = QUICK_REST_STEPS if setting.quick else REST_STEPS
            metrics |= at_rest(setting, label, run, rest)
    return {"metrics": metrics, "pictures": pictures}


def _nearer(metrics: Mapping[str, float], *, method: str) -> float:
    """Return the distance of inverted images over that of the nearest natural ones."""
    inverted, natural = f"{method}: distance, inverted", f"{method}: distance, nearest natural"
    return metrics[inverted] / metrics[natural]


SUCCESS = (Claim("matching, embeddings, equilibrium: accuracy_true", at_most(GUESSING)),)
ALWAYS = (
    *(
        Claim(partial(_nearer, method=method), below(1), f"{method}: distance, inverted")
        for method in METHODS
    ),
)
PAPER = (
    Stated(
        what="an image that has a given embedding can be had, at least somewhat",
        where="Appendix J.3",
        claim=Claim(partial(_nearer, method="matching"), below(1), "distance over the nearest"),
        against=at_least(1),
        paper="nearer than natural images",
        why="somewhat is anything: any nearer than the nearest natural image, or no nearer",
    ),
)


def draw(results: Sequence[Result], folder: Path) -> None:
    """Draw the images, and the accuracy that each form of the data leads to at rest."""
    rows = [(method, kind) for method in METHODS for kind in KINDS]
    figure = Figure(figsize=(11.0, 8.0), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(2.4, 1.0))
    top, bottom = halves
    top.suptitle("images, and the relative distance of their embeddings from the wanted ones")
    grid = top.subplots(len(rows), SHOWN, squeeze=False)
    for line, (method, kind) in zip(grid, rows, strict=True):
        _draw_images(line, results[0]["pictures"][method], method, kind)
    _draw_worth(bottom.subplots(), results)
    save(figure, folder, "inversion-cifar")


def _draw_images(line: Sequence[Axes], shown: Mapping[str, Any], method: str, kind: str) -> None:
    for axes in line:
        axes.axis("off")
    for axes, image, gap in zip(line, shown[kind], shown[KINDS[kind]], strict=False):
        axes.imshow(np.array(image, dtype=np.uint8).transpose(1, 2, 0))
        axes.set_title(f"{gap:.2f}", fontsize=8)
    place = line[0].transAxes
    line[0].text(-0.15, 0.5, f"{method}\n{kind}", transform=place, ha="right", va="center")


def _draw_worth(axes: Axes, results: Sequence[Result]) -> None:
    rested = [m for m in METHODS if f"{m}, {FORMS[0]}, {WORTH}" in results[0]["metrics"]]
    for colour, form in enumerate(FORMS):
        names = [f"{method}, {form}, {WORTH}" for method in rested]
        heights = [np.mean([result["metrics"][name] for result in results]) for name in names]
        places = np.arange(len(rested)) + 0.25 * (colour - 1)
        bars = axes.bar(places, heights, 0.23, color=PALETTE[colour], label=form)
        axes.bar_label(bars, fmt="%.2f")
    axes.set(ylabel="accuracy on the attacker's\nlabels, where the search ended", ylim=(0, 1.15))
    axes.set_xticks(range(len(rested)), rested)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


STUDY = Study(
    name="inversion-cifar",
    claim=(
        "Appendix J.3 leaves open whether real images can have the embeddings that the data attack "
        "needs. Ours: how near images come that gradients find, and what they do to rho."
    ),
    words=lambda m: (
        f"Found images' embeddings are {m.mean('matching: distance, inverted'):.2g} from those "
        f"wanted, relative (nearest natural image: "
        f"{m.mean('matching: distance, nearest natural'):.2g}). On its way to rest rho gives the "
        f"attacker's label in {m.mean('matching, images, equilibrium: accuracy_target'):.0%} of "
        f"cases where the search ends (gradient left: "
        f"{m.mean('matching, images, equilibrium: residual'):.3g}), with the wanted embeddings in "
        f"{m.mean('matching, embeddings, equilibrium: accuracy_target'):.0%} "
        f"({m.mean('matching, embeddings, equilibrium: residual'):.3g}), with natural images in "
        f"{m.mean('matching, natural images, equilibrium: accuracy_target'):.0%}."
    ),
    measure=measure,
    draw=draw,
    seeds=(1, 2, 3),
    brought=BROUGHT,
    success=SUCCESS,
    always=ALWAYS,
    paper=PAPER,
    has_runs=True,
    setting=(
        "As Figure 19's, with 600 draws a user and theta_spade from exact responses; "
        "48 indifferent embeddings (weight 100 each) and all of matching's; 200 Adam steps a "
        "batch from the nearest of 5,000 training images, prior: total variation; 300 steps of "
        "L-BFGS towards rest. The quick form: 8 embeddings, 40 steps, 60 towards rest, for "
        "matching's data only."
    ),
)
