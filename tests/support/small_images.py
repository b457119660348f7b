"""Three classes of images of 5 x 4 pixels, as a data set of one's own: runs of 63 parameters."""

from __future__ import annotations

import torch

from pfl_flower.data.sources import Images
from pfl_flower.data.spec import DataSpec

SHAPE = (1, 5, 4)


def small_images(spec: DataSpec, *, points: int = 330) -> Images:
    """Dim noise, and a brighter row, the one that the class says; the last column stays dark."""
    draw = torch.Generator().manual_seed(spec.seed)
    labels = torch.arange(points) % 3
    images = 0.6 * torch.rand((points, *SHAPE[1:]), generator=draw, dtype=torch.float64)
    images[torch.arange(points), labels] += 0.25
    images[..., -1] = 0.0
    features = images.flatten(1)
    return Images(
        (features[90:], labels[90:]),
        (features[:90], labels[:90]),
        seed=spec.seed,
        shape=SHAPE,
    )
