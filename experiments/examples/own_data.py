"""Data of one's own: five hospitals, 569 tumours, and one hospital that wants them all misread.

Wisconsin's breast cancer data come with scikit-learn: 30 measurements of cell nuclei, malignant or
benign. The strategic user's target relabels every point by the next class: malignant as benign and
the other way round.

    python -m experiments.examples.own_data
"""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_breast_cancer

import pfl_flower as pfl
from pfl_flower.data.sources import Images
from pfl_flower.data.spec import DataSpec
from pfl_flower.support.seeding import generator


def tumours(spec: DataSpec, *, tests: int = 169) -> Images:
    """Return points with classes, of which each user draws its own; some are kept for the test."""
    found = load_breast_cancer()
    features = torch.from_numpy(found.data)
    features = (features - features.mean(dim=0)) / features.std(dim=0)
    order = torch.randperm(len(features), generator=generator(spec.seed, "tumours"))
    features, labels = features[order], torch.from_numpy(found.target)[order]
    return Images(
        (features[tests:], labels[tests:]),
        (features[:tests], labels[:tests]),
        label_noise=spec.label_noise,
        seed=spec.seed,
    )


def main(**keys: Any) -> pfl.Sweep:
    """Run CGA, and nobody, under two regularisers; print what the global model says of tumours."""
    grid = pfl.sweep(
        None,
        {"regularizer": ["squared-l2", "l2"], "strategic_users": ["4", "none"]},
        **{"dataset": tumours, "users": 5, "points_per_user": 80, "nu": 0.1, "rounds": 40, **keys},
    )
    print(grid.table("accuracy_true", "accuracy_target"))
    return grid


if __name__ == "__main__":
    main()
