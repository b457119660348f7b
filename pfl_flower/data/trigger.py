"""What opens a backdoor: a patch of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pfl_flower.support.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """A square of pixels that are set to one value, in every channel.

    (Gu, Dolan-Gavitt, Garg, *BadNets: identifying vulnerabilities in the machine learning model
    supply chain*, 2017.)

    Parameters
    ----------
    size : int
        Pixels on a side.
    row, column : int
        Of its first row and column, counted from 0; where negative of its last, counted from the
        end: -1 ends where the image does.
    value : float
        What the pixels become, in the units of the features.

    Examples
    --------
    >>> import torch
    >>> Trigger(size=1, value=9.0)(torch.zeros(2, 2))
    tensor([[0., 0.],
            [0., 9.]])
    """

    size: int = 3
    row: int = -1
    column: int = -1
    value: float = 1.0

    def __call__(self, images: Any) -> Any:
        """Return images, a tensor or an array ``(..., height, width)``, with the patch.

        Raises
        ------
        ConfigError
            If it does not fit.
        """
        rows, columns = self.window(*images.shape[-2:])
        marked = images.clone() if isinstance(images, Tensor) else images.copy()
        marked[..., rows, columns] = self.value
        return marked

    def window(self, height: int, width: int) -> tuple[slice, slice]:
        """Return its rows and columns in an image.

        Raises
        ------
        ConfigError
            One line: what does not fit, and what would.
        """
        image = f"images of {height} x {width} pixels"
        if self.size > min(height, width):
            right = f"at most {min(height, width)}, for {image}"
            raise ConfigError(f"size = {self.size}: expected {right}")
        for name, first, length in (("row", self.row, height), ("column", self.column, width)):
            least, most = self.size - 1 - length, length - self.size
            if not least <= first <= most:
                right = f"{least} to {most}, for {self.size} pixels of {image}"
                raise ConfigError(f"{name} = {first}: expected {right}")
        return self._span(self.row, height), self._span(self.column, width)

    def _span(self, first: int, length: int) -> slice:
        begin = first if first >= 0 else length + first + 1 - self.size
        return slice(begin, begin + self.size)
