"""The method for those who name none: what is exact and cheapest for the run's loss."""

from __future__ import annotations

from pfl_flower.attacks.poisoning.aim import Aim, PoisonedData
from pfl_flower.attacks.poisoning.recipe import Recipe
from pfl_flower.attacks.poisoning.table import POISONINGS, method_for
from pfl_flower.objective.losses import LeastSquares


def by_loss(aim: Aim, recipe: Recipe) -> PoisonedData:
    """Return one point for regression, else the data of least total weight."""
    method = method_for("auto", "least-squares" if isinstance(aim.loss, LeastSquares) else "")
    made: PoisonedData = POISONINGS.make(method, "", aim, recipe)
    return made
