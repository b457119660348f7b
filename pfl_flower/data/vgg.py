"""VGG13-BN for small images (Appendix J): embeddings, and the linear classifier on top of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pfl_flower.support.errors import DataError

MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
"""Of CIFAR-10's training images in [0, 1], by channel."""
CHANNELS, WIDTH, CLASSES = 512, 4096, 10
LINEAR_DEVIATION = 0.01
LEAST_PIXELS = 32
"""Five halvings leave one pixel."""
COUNTER = "num_batches_tracked"


class VGG13(nn.Module):
    """torchvision's ``vgg13_bn`` with 1 x 1 average pooling: 512-4096-4096-c after the features.

    The names in the state dict are torchvision's, and those of the CIFAR-10 weights that the paper
    used (Phan, 2021), which therefore load. Parameters are not allocated: see ``initial`` and
    ``load_weights``.

    Parameters
    ----------
    classes : int
        Number of scores c.
    width : int
        Units of the two hidden layers; 4096 in the paper.
    """

    def __init__(self, classes: int = CLASSES, width: int = WIDTH) -> None:
        super().__init__()
        from torchvision.models import vgg13_bn

        self.classes, self.width = classes, width
        with torch.device("meta"):
            self.features = vgg13_bn(weights=None, init_weights=False).features
            self.classifier = nn.Sequential(
                nn.Linear(CHANNELS, width),
                nn.ReLU(inplace=True),
                nn.Dropout(),
                nn.Linear(width, width),
                nn.ReLU(inplace=True),
                nn.Dropout(),
                nn.Linear(width, classes),
            )

    @classmethod
    def initial(cls, draw: torch.Generator, *, classes: int = CLASSES, width: int = WIDTH) -> Self:
        """Return a network to train: torchvision's deviations for VGG, zero biases.

        With He's deviations in the linear layers too, the first scores are so large that a short
        training does not recover: on 2,000 images the third epoch's loss was 2.40 (peak step size
        0.02), against 1.83 with these (0.05).
        """
        network = cls(classes, width).to_empty(device="cpu")
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d):
                weight = module.weight
                nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu", generator=draw)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=LINEAR_DEVIATION, generator=draw)
                nn.init.zeros_(module.bias)
        return network

    def embed(self, images: Tensor) -> Tensor:
        """Return the last layer's inputs ``(n, 4096)`` for images ``(n, 3, h, w)`` in [0, 1]."""
        mean, deviation = (images.new_tensor(c).view(3, 1, 1) for c in (MEAN, DEVIATION))
        pooled = self.features((images - mean) / deviation).mean(dim=(2, 3))
        embedded: Tensor = self.classifier[:-1](pooled)
        return embedded

    def forward(self, images: Tensor) -> Tensor:
        """Return scores ``(n, c)`` of images ``(n, 3, h, w)`` in [0, 1]."""
        scores: Tensor = self.classifier[-1](self.embed(images))
        return scores


def unit(images: Tensor, device: torch.device) -> Tensor:
    """Return bytes ``(n, 3, h, w)`` as numbers in [0, 1], laid out as convolutions like them."""
    moved = images.to(device).contiguous(memory_format=torch.channels_last)
    return moved.to(torch.float32) / 255


def load_weights(path: Path) -> VGG13:
    """Return the network of a state dict, ready to embed; classes and width are the file's.

    Raises
    ------
    DataError
        If the file is missing, or is not the state dict of a VGG13-BN with 1 x 1 pooling.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises for a foreign file is not documented
        raise _foreign(path, f"torch cannot read it ({type(error).__name__})") from None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise _foreign(path, "it holds something else")
    head = state.get("classifier.6.weight", torch.empty(CLASSES, WIDTH))
    if head.ndim != 2:
        raise _foreign(path, f"classifier.6.weight has shape {tuple(head.shape)}")
    network = VGG13(*head.shape)
    network.load_state_dict(_fitting(path, state, network.state_dict()), assign=True)
    return network.eval()


def _fitting(path: Path, state: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the state in float32 if it is a state of the network."""
    unknown = sorted(set(state) - set(wanted))
    if unknown:
        raise _foreign(path, f"{unknown[0]} is not a part of one")
    fitting: dict[str, Any] = {}
    for name, tensor in wanted.items():
        if name.endswith(COUNTER):
            fitting[name] = torch.zeros((), dtype=torch.int64)
            continue
        if name not in state:
            raise _foreign(path, f"{name} is missing")
        if state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            raise _foreign(path, f"{name} has shape {shapes}")
        fitting[name] = state[name].to(torch.float32)
        if not bool(torch.isfinite(fitting[name]).all()):
            raise _foreign(path, f"{name} is not finite")
    return fitting


def _foreign(path: Path, fault: str) -> DataError:
    return DataError(f"embedding-weights = {path}: expected a VGG13-BN's state dict, and {fault}")
