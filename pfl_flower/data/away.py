"""Points that lie on nodes alone: what a server knows that reads none of its users' points."""

from __future__ import annotations

from copy import copy
from typing import NoReturn

import torch
from torch import Tensor

from pfl_flower.data.sources import Source
from pfl_flower.data.spec import DataSpec
from pfl_flower.objective.user_data import UserData
from pfl_flower.support.errors import DataError


class Away(Source):
    """Sizes of points as a run tells them, and perhaps a common test set of this machine's own.

    Labels are class numbers 0 .. c - 1 where ``classes`` says c, and else a regression's answers.

    Parameters
    ----------
    spec : DataSpec
        Its ``columns``, ``shape`` and ``classes``.
    test : tuple of Tensor or None
        Features ``(m, q)``, the constant one included, and labels ``(m,)``; None where this machine
        has none.
    """

    bias = True
    at_hand = False

    def __init__(self, spec: DataSpec, test: tuple[Tensor, Tensor] | None = None) -> None:
        self._name = spec.name
        self.inputs, self.shape = spec.columns + 1, spec.shape or (spec.columns,)
        self.loss = "softmax" if spec.classes else "least-squares"
        self.outputs = spec.classes or 1
        labels = torch.zeros(0, dtype=torch.int64 if spec.classes else torch.float64)
        self._test = test or (torch.zeros((0, self.inputs), dtype=torch.float64), labels)

    def shared_out(self, *, tested: bool) -> Source:
        """Return the same, whose users have test sets of their own if ``tested``."""
        users = copy(self)
        users.tested = tested
        return users

    def draw(self, user: int, points: int, seed: int) -> UserData:
        """Raise DataError: nobody's points are here."""
        self._refuse()

    def training_set(self) -> tuple[Tensor, Tensor]:
        """Raise DataError: nobody's points are here."""
        self._refuse()

    def test_set(self) -> tuple[Tensor, Tensor]:
        """Return the common test set, which may be empty."""
        return self._test

    def stored(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the common test set."""
        return {"test": self._test}

    def _refuse(self) -> NoReturn:
        raise DataError(
            f"dataset = {self._name}: expected to be asked for its points on nodes alone, where "
            "they lie"
        )
