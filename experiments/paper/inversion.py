"""Real images for the data attack: J.3's open problem, as far as gradients get (CIFAR-10).

The paper poisons with embeddings, which nobody can send to a network's front door. Here each wanted
embedding, near the indifference subspace or designed by ``matching``, is inverted: an image is
sought whose embedding is near it. Measured: how near it gets, beside the nearest natural image,
and where rho comes to rest when the images take the embeddings' place. An attacker who knows
theta_spade labels what an image's own embedding asks for, so that indifferent images are labelled
anew; matching's labels and weights stay as they were designed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.paper.cifar import CIFAR, CONSTANT_ADAM
from experiments.paper.runs import (
    QUICK_POINTS,
    Keys,
    at_rest,
    configured,
    exact_limit,
)
from experiments.studies.study import Result, Setting, Study
from pfl_flower.attacks.poisoning.aim import Aim, PoisonedData
from pfl_flower.attacks.poisoning.image_inversion import invert, nearest, relative_distance
from pfl_flower.attacks.poisoning.recipe import Recipe
from pfl_flower.data.embeddings import embed, weights_file
from pfl_flower.data.image_sets import read_images
from pfl_flower.data.vgg import VGG13, load_weights
from pfl_flower.objective.models import augment
from pfl_flower.run.attack_plans import fabricate, plan
from pfl_flower.run.checks import Claim, at_least, at_most
from pfl_flower.run.config import RunConfig
from pfl_flower.run.figures import PALETTE, save
from pfl_flower.run.problem import build_problem
from pfl_flower.support.files import replacing
from pfl_flower.support.folders import data_folder

POINTS, QUICK_POINTS_INVERTED = 48, 8
STEPS, QUICK_STEPS = 200, 40
NEIGHBOURS = 5000
"""Training images among which each inversion finds its start."""
WEIGHT = 100.0
"""Labels that each indifferent point counts for."""
SHOWN = 8
WORTH = "equilibrium: accuracy_target"
REST_STEPS, QUICK_REST_STEPS = 300, 60
"""Most steps of L-BFGS to where rho rests."""
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
FORMS = ("embeddings", "images", "natural images")
KINDS = {"natural": "before", "inverted": "after"}


def given(aim: Aim, recipe: Recipe) -> PoisonedData:
    """Return the data that the study left in the run's folder: a method for ``poisoning``."""
    with np.load(_place(recipe.settings.folder()), allow_pickle=False) as kept:
        found = {key: torch.from_numpy(kept[key]) for key in ("features", "labels", "weights")}
    return PoisonedData.measure(aim, "given", **found)


def _place(folder: Path) -> Path:
    return folder / "poison.npz"


def measure(setting: Setting) -> dict[str, Any]:
    """Invert both methods' embeddings, and find where rho rests with each form of the data."""
    base: Keys = {**CIFAR, **CONSTANT_ADAM, **QUICK_POINTS}
    source: Keys = {**base, "attack-model": exact_limit(setting, base)}
    gallery = _gallery(configured(setting, "gallery", base))
    metrics: dict[str, float] = {}
    pictures: dict[str, Any] = {}
    for method, keys in METHODS.items():
        count = QUICK_POINTS_INVERTED if setting.quick else POINTS
        attack = {**source, **keys, "attack": "data", "poisoning-points": count}
        forms, near, shown = _forms(setting, method, attack, gallery)
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
            with replacing(_place(folder)) as file:
                np.savez(file, allow_pickle=False, **{k: v.numpy() for k, v in data.items()})
            rest = QUICK_REST_STEPS if setting.quick else REST_STEPS
            metrics |= at_rest(setting, label, run, rest)
    return {"metrics": metrics, "pictures": pictures}


Data = dict[str, Tensor]


@dataclass(frozen=True)
class _Gallery:
    """The network, and the natural images among which inversions start, with their embeddings."""

    network: VGG13
    images: Tensor
    embeddings: Tensor


def _gallery(config: RunConfig) -> _Gallery:
    images = read_images(config.dataset, data_folder(config.data_dir)).train
    network = load_weights(weights_file(config.embedding_weights))
    some = images[:NEIGHBOURS]
    return _Gallery(network, some, embed(network, some, torch.device("cpu")).float())


def _forms(
    setting: Setting, method: str, attack: Keys, gallery: _Gallery
) -> tuple[dict[str, Data], dict[str, float], dict[str, Any]]:
    """Return a method's data in each form, how near images get, and some of them to show."""
    config = configured(setting, method, attack)
    problem = build_problem(config).in_double
    made = fabricate(problem, min(config.strategic()))
    wanted = made.features[:, :-1].float()
    points, inverse = torch.unique(wanted, dim=0, return_inverse=True)
    close = nearest(points, gallery.embeddings)
    starts, natural = gallery.images[close], gallery.embeddings[close]
    steps = QUICK_STEPS if setting.quick else STEPS
    found = invert(
        gallery.network,
        points,
        starts,
        steps=steps,
        watch=lambda done, gap: setting.say(
            f"{method}, inverting {done}/{len(points)}, relative distance {gap:.3f}"
        ),
    )
    embeddings = {
        "embeddings": made.features,
        "images": augment(found.embeddings[inverse].double()),
        "natural images": augment(natural[inverse].double()),
    }
    forms, model = {}, plan(problem, min(config.strategic())).attack_model[None]
    for form, features in embeddings.items():
        labels = made.labels
        if labels.ndim == 2:
            labels = torch.softmax(problem.model.scores(model, features[None])[0], dim=-1)
        forms[form] = {"features": features, "labels": labels, "weights": made.weights}
    before = relative_distance(natural, points)
    metrics = {
        f"{method}: points": float(len(points)),
        f"{method}: labels": made.total_weight,
        f"{method}: distance, inverted": float(found.distances.median()),
        f"{method}: distance, nearest natural": float(before.median()),
        f"{method}: negative part wanted": float(
            points.clamp(max=0).norm(dim=1).div(points.norm(dim=1)).median()
        ),
    }
    shown = {
        "natural": starts[:SHOWN].tolist(),
        "inverted": found.images[:SHOWN].tolist(),
        "before": before[:SHOWN].tolist(),
        "after": found.distances[:SHOWN].tolist(),
    }
    return forms, metrics, shown


def _nearer(metrics: Mapping[str, float], *, method: str) -> float:
    """Return the distance of inverted images over that of the nearest natural ones."""
    inverted, natural = f"{method}: distance, inverted", f"{method}: distance, nearest natural"
    return metrics[inverted] / metrics[natural]


SUCCESS = (Claim("matching, embeddings, equilibrium: accuracy_true", at_most(0.1)),)
ALWAYS = (
    *(
        Claim(partial(_nearer, method=method), at_most(1), f"{method}: distance, inverted")
        for method in METHODS
    ),
    Claim("matching: points", at_least(1)),
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
    axes.set(ylabel="accuracy on the\nattacker's labels, at rest", ylim=(0, 1.15))
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
        f"{m.mean('matching: distance, nearest natural'):.2g}). rho then gives the true label in "
        f"{m.mean('matching, images, equilibrium: accuracy_true'):.1%} of cases; with the wanted "
        f"embeddings themselves in "
        f"{m.mean('matching, embeddings, equilibrium: accuracy_true'):.1%}, with natural images in "
        f"{m.mean('matching, natural images, equilibrium: accuracy_true'):.1%}."
    ),
    measure=measure,
    draw=draw,
    seeds=(1,),
    success=SUCCESS,
    always=ALWAYS,
    has_runs=True,
    setting=(
        "As Figure 19's, with 600 draws a user and theta_spade from exact responses; "
        "48 indifferent embeddings (weight 100 each) and all of matching's; 200 Adam steps a "
        "batch from the nearest of 5,000 training images, prior: total variation; equilibria by "
        "L-BFGS. The quick form: 8 embeddings, 40 steps, 60 to equilibrium, which is sought for "
        "matching's data only."
    ),
)
