"""Three owners' points: a file for each, as on their machines, and one of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas

SIZES = (30, 45, 60)
SITE: Mapping[str, Any] = {
    "name": "apart",
    "dataset": "csv:points.csv",
    "users": len(SIZES),
    "strategic-users": "2",
    "attack": "sign-flip",
    "regularizer": "l2",
    "nu": 0.1,
    "rounds": 2,
    "evaluate-every": 1,
    "save-trajectory": True,
}
APART: Mapping[str, Any] = {"site": True, "partition": "whole", "columns": 3, "classes": 3}
"""What a run says in addition where each owner has a machine."""
TOGETHER: Mapping[str, Any] = {
    "partition": "natural",
    "user-column": "owner",
    "holdout": 0.0,
    "classes": 3,
}
"""What it says where one machine has all points."""


def write_apart(folder: Path) -> list[Path]:
    """Write ``all/points.csv``, ``test.csv`` and each owner's ``points.csv``; return its folder."""
    draw = np.random.default_rng(7)
    places = []
    for owner, size in enumerate(SIZES):
        places.append(folder / str(owner))
        places[-1].mkdir(parents=True)
        _points(draw, size, 0.7 * owner).to_csv(places[-1] / "points.csv", index=False)
    put_together(places, folder / "all")
    _points(draw, 40, 0.5).to_csv(folder / "test.csv", index=False)
    return places


def put_together(places: Sequence[Path], folder: Path) -> None:
    """Write ``points.csv`` of all owners' points, who are numbered in this order."""
    frames = [pandas.read_csv(place / "points.csv") for place in places]
    owned = [frame.assign(owner=owner) for owner, frame in enumerate(frames)]
    folder.mkdir()
    pandas.concat(owned).to_csv(folder / "points.csv", index=False)


def _points(draw: np.random.Generator, size: int, shift: float) -> pandas.DataFrame:
    x = draw.normal(size=(size, 3))
    label = np.digitize(x @ [1.0, -1.0, 0.5] + shift, [-0.5, 0.7])
    return pandas.DataFrame({**dict(zip("abc", x.T, strict=True)), "label": label})
