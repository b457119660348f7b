"""What a poisoning method may use besides its aim."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfl_flower.attacks.poisoning.aim import Aim, gaussian_queries
from pfl_flower.data.sources import Source
from pfl_flower.objective.models import augment
from pfl_flower.support.run_settings import RunSettings


@dataclass(frozen=True)
class Recipe:
    """A strategic user's means of fabricating data.

    Attributes
    ----------
    settings : RunSettings
        The run's, with the ``poisoning-*`` keys.
    source : Source
        The run's data, public as far as ``training_set`` goes.
    user : int
        The strategic user's id.
    generator : torch.Generator
        Source of all randomness, on the CPU.
    """

    settings: RunSettings
    source: Source
    user: int
    generator: torch.Generator

    def queries(self, aim: Aim) -> Tensor:
        """Return ``poisoning-points`` queries of the kind that ``poisoning-queries`` names."""
        points, kind = self.settings.poisoning_points, self.settings.poisoning_queries
        if kind == "gaussian":
            return gaussian_queries(aim, points, generator=self.generator)
        if kind == "images":
            images = self.images(aim)
            order = torch.randperm(len(images), generator=self.generator)
            return images[order[:points].to(images.device)]
        shape = (points, aim.model.inputs - int(aim.bias))
        uniform = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        uniform = uniform.to(aim.attack_model)
        return augment(uniform) if aim.bias else uniform

    def images(self, aim: Aim) -> Tensor:
        """Return the training images, the constant feature included."""
        return self.source.training_set()[0].to(aim.attack_model)

    @property
    def box(self) -> tuple[float, float] | None:
        """[0, 1] if ``poisoning-box``."""
        return (0.0, 1.0) if self.settings.poisoning_box else None
