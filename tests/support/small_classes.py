"""Three classes of points in the plane, as a data set of one's own: runs of nine parameters."""

from __future__ import annotations

import torch

from pfl_flower.data.sources import Images
from pfl_flower.data.spec import DataSpec

CENTRES = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]], dtype=torch.float64)


def small_classes(spec: DataSpec, *, spread: float = 1.2, points: int = 300) -> Images:
    """Points about three centres, so spread that no plane tells the classes apart."""
    draw = torch.Generator().manual_seed(spec.seed)
    labels = torch.arange(points) % len(CENTRES)
    noise = torch.randn((points, 2), generator=draw, dtype=torch.float64)
    features = CENTRES[labels] + spread * noise
    return Images(
        (features[60:], labels[60:]),
        (features[:60], labels[:60]),
        label_noise=spec.label_noise,
        seed=spec.seed,
    )
