"""Training images cropped and mirrored at random, where the network is.

Draws are made on the CPU, so that a seed means the same crops on every device; they, the order of
an epoch and the bytes of the images go to the device once, and every batch is made there.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pfl_flower.data.image_folder import ImageSet
from pfl_flower.data.vgg import unit

BORDER = 4
"""Width of the black border before an image is cropped to its size."""
KEPT_ON_THE_DEVICE = 2**32
"""Bytes of images up to which all are moved to the device: 4 GiB, twenty-seven times CIFAR-10's.

Of larger sets a batch's images are moved when it is made.
"""


def windows(count: int, draw: torch.Generator) -> Tensor:
    """Draw what is seen of images: ``(count, 3)``, rows and columns shifted, whether mirrored."""
    corner = torch.randint(2 * BORDER + 1, (2, count, 1), generator=draw)
    mirrored = torch.rand((count, 1), generator=draw) < 0.5
    return torch.cat([corner[0], corner[1], mirrored.long()], dim=1)


def augmented(images: Tensor, seen: Tensor) -> Tensor:
    """Return images ``(b, 3, h, w)`` shifted by up to 4 pixels each way and mirrored.

    Parameters
    ----------
    images : Tensor
        Bytes.
    seen : Tensor
        As :func:`windows` draws them, ``(b, 3)``, on the same device.
    """
    count, _, height, width = images.shape
    place = images.device
    padded = nn.functional.pad(images, [BORDER] * 4)
    rows = seen[:, 0, None] + torch.arange(height, device=place)
    columns = seen[:, 1, None] + torch.arange(width, device=place)
    columns = torch.where(seen[:, 2, None] == 1, columns.flip(1), columns)
    first = torch.arange(count, device=place)[:, None, None, None]
    channel = torch.arange(3, device=place)[:, None, None]
    return padded[first, channel, rows[:, None, :, None], columns[:, None, None, :]]


def batches(
    images: ImageSet, order: Tensor, size: int, draw: torch.Generator, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of an epoch: augmented images in [0, 1] and their labels, on the device.

    Parameters
    ----------
    images : ImageSet
        Of which the training images are used.
    order : Tensor
        Their rows, in the order of the epoch.
    size : int
        Images of a batch. An incomplete last one is left out, unless it is the only one.
    draw : torch.Generator
        Of the CPU; it is used up to the end of the epoch before the first batch.
    device : torch.device
        Where batches are made.
    """
    steps = max(1, len(order) // size)
    size = min(size, len(order))
    seen = torch.stack([windows(size, draw) for _ in range(steps)]).to(device)
    fits = images.train.nbytes <= KEPT_ON_THE_DEVICE
    pixels = images.train.to(device) if fits else images.train
    rows = order[: steps * size].view(steps, size)
    labels = images.train_labels[rows].to(device)
    rows = rows.to(pixels.device)
    for step in range(steps):
        chosen = pixels[rows[step]].to(device)
        yield unit(augmented(chosen, seen[step]), device), labels[step]
