"""The regularisers and the models by name."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from pfl_flower.support.extensions import Extension, Refusal, Table
from pfl_flower.support.options import Options
from pfl_flower.support.run_settings import RunSettings

REGULARIZERS: Table[Extension] = Table(
    "regularizer",
    {
        "squared-l2": Extension(
            factory="pfl_flower.objective.regularizers:SquaredL2",
            text="lam ||z||^2: every vector is a plausible gradient",
            source="Hanzely et al. 2020, Dinh et al. 2020",
        ),
        "l2": Extension(
            factory="pfl_flower.objective.regularizers:L2",
            text="lam ||z||: gradients in the ball of radius lam",
            reads=("gradient-rtol",),
            source="the paper",
        ),
        "smooth-l2": Extension(
            factory="pfl_flower.objective.regularizers:SmoothL2",
            text="lam sqrt(1 + ||z||^2): gradients in the ball of radius lam",
            reads=("gradient-rtol",),
            source="the paper",
        ),
    },
    own=Extension(text="a class as package.module:Name", reads=("gradient-rtol",)),
    keyed={"lam": "lam"},
)
"""R(rho, theta), with z = rho - theta."""


@dataclass(frozen=True, kw_only=True)
class ModelExtension(Extension):
    """A model.

    Attributes
    ----------
    linear : bool
        Whether scores are linear in the parameters, as exact solves and equilibria need.
    """

    linear: bool = False


def admits_nonlinear(settings: RunSettings) -> Refusal | None:
    """Refuse what is worked out for linear models alone."""
    reasons = {
        "for exact solves": settings.local_solver == "exact",
        "for an exact equilibrium": settings.equilibrium,
    }
    wrong = [reason for reason, holds in reasons.items() if holds]
    return Refusal("model", wrong[0]) if wrong else None


def admits_images(settings: RunSettings) -> Refusal | None:
    """Refuse points that are known to be no images, and what needs a linear model."""
    if settings.synthetic or settings.embedded:
        return Refusal("model", "for points that are no images")
    return admits_nonlinear(settings)


class CnnOptions(Options):
    """Of the two convolutions."""

    channels: int = Field(8, ge=1, description="of the first; the second has twice as many")


MODULE_KEYS = ("model-frozen", "model-weights")

MODELS: Table[ModelExtension] = Table(
    "model",
    {
        "linear": ModelExtension(
            factory="pfl_flower.objective.models:Linear",
            text="scores W x, with a bias where the data have one",
            source="the paper",
            linear=True,
        ),
        "two-layer": ModelExtension(
            factory="pfl_flower.objective.two_layer:TwoLayer",
            text="scores W2 [relu(W1 x); 1], hidden units in between",
            source="Appendix C.2",
            reads=("hidden",),
            admits=admits_nonlinear,
        ),
        "cnn": ModelExtension(
            factory="pfl_flower.objective.networks:cnn",
            text="two convolutions with group norm, each halving an image, and a linear layer",
            source="not in the paper",
            options=CnnOptions,
            reads=MODULE_KEYS,
            admits=admits_images,
        ),
    },
    own=ModelExtension(
        text="what makes a torch.nn.Module (or a Model) as package.module:Name",
        reads=MODULE_KEYS,
        admits=admits_nonlinear,
    ),
    passed=("shape", "outputs"),
)
"""From a point's shape and the number of scores to a torch module; or, for ``Model`` classes, from
the number of features."""
