"""The regularisers and the models by name."""

from __future__ import annotations

from dataclasses import dataclass

from pfl_flower.support.extensions import Extension, Refusal, Table
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
            source="the paper",
        ),
        "smooth-l2": Extension(
            factory="pfl_flower.objective.regularizers:SmoothL2",
            text="lam sqrt(1 + ||z||^2): gradients in the ball of radius lam",
            source="the paper",
        ),
    },
    own=Extension(text="a class as package.module:Name"),
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
        "for synthetic data": settings.synthetic,
        "for an exact equilibrium": settings.equilibrium,
    }
    wrong = [reason for reason, holds in reasons.items() if holds]
    return Refusal("model", wrong[0]) if wrong else None


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
            factory="pfl_flower.objective.models:TwoLayer",
            text="scores W2 [relu(W1 x); 1], hidden units in between",
            source="Appendix C.2",
            reads=("hidden",),
            admits=admits_nonlinear,
        ),
    },
    own=ModelExtension(text="a class as package.module:Name", admits=admits_nonlinear),
    passed=("inputs", "outputs"),
)
"""From parameters and features to scores; the data set says how many of each."""
