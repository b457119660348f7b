"""Images whose embeddings are near wanted ones, and a poisoned dataset in either form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.studies.study import Setting
from experiments.studies.variants import Keys, configured
from pfl_flower.attacks.poisoning.aim import PoisonedData
from pfl_flower.attacks.poisoning.image_inversion import invert, nearest, relative_distance
from pfl_flower.data.embeddings import embed, weights_file
from pfl_flower.data.image_sets import read_images
from pfl_flower.data.vgg import VGG13, load_weights
from pfl_flower.objective.models import augment
from pfl_flower.run.attack_plans import fabricate, plan
from pfl_flower.run.config import RunConfig
from pfl_flower.run.problem import Problem, build_problem, choose_device
from pfl_flower.support.folders import data_folder

NEIGHBOURS = 5000
"""Training images among which each inversion finds its start."""
SHOWN = 8
FORMS = ("embeddings", "images", "natural images")

Data = dict[str, Tensor]


@dataclass(frozen=True)
class Gallery:
    """The network, and the natural images among which inversions start, with their embeddings.

    Network and embeddings are on the run's device, images in this machine's memory.
    """

    network: VGG13
    images: Tensor
    embeddings: Tensor

    @classmethod
    def of(cls, config: RunConfig) -> Gallery:
        """Read the network's weights and the first of the training images."""
        images = read_images(config.dataset, data_folder(config.data_dir)).train
        network = load_weights(weights_file(config.embedding_weights))
        some, device = images[:NEIGHBOURS], choose_device(config.device)
        return cls(network.to(device), some, embed(network, some, device).float().to(device))


def invert_data(
    setting: Setting, method: str, attack: Keys, gallery: Gallery, steps: int
) -> tuple[dict[str, Data], dict[str, float], dict[str, Any]]:
    """Return a method's data in each form, how near images get, and some of them to show."""
    config = configured(setting, method, attack)
    problem, user = build_problem(config).in_double, min(config.strategic())
    made = fabricate(problem, user)
    points, inverse = torch.unique(made.features[:, :-1].float(), dim=0, return_inverse=True)
    close = nearest(points, gallery.embeddings)
    starts, natural = gallery.images[close.cpu()], gallery.embeddings[close]
    # As where embeddings are computed: TF32 would make them depend on the card.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        found = invert(
            gallery.network,
            points,
            starts,
            steps=steps,
            watch=lambda done, gap: setting.say(
                f"{method}, inverting {done}/{len(points)}, relative distance {gap:.3f}"
            ),
        )
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
    features = (
        made.features,
        augment(found.embeddings[inverse].double()),
        augment(natural[inverse].double()),
    )
    spade = plan(problem, user).attack_model
    return _labelled(problem, spade, made, dict(zip(FORMS, features, strict=True))), metrics, shown


def _labelled(
    problem: Problem, attack_model: Tensor, made: PoisonedData, forms: Mapping[str, Tensor]
) -> dict[str, Data]:
    """Return each form with its labels: soft ones are what theta_spade says of its own queries."""
    found = {}
    for form, features in forms.items():
        labels = made.labels
        if labels.ndim == 2:
            scores = problem.model.scores(attack_model[None], features[None])[0]
            labels = torch.softmax(scores, dim=-1)
        found[form] = {"features": features, "labels": labels, "weights": made.weights}
    return found
