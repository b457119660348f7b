"""The ways to fabricate data by name: what ``attack = data`` runs the honest code on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from pydantic import Field

from pfl_flower.support.extensions import Extension, Refusal, Table
from pfl_flower.support.options import Options
from pfl_flower.support.run_settings import RunSettings

EVERY_LOSS = ("least-squares", "logistic", "softmax")
CLASSIFIERS = ("logistic", "softmax")
QUERIES = ("poisoning-points", "poisoning-queries", "poisoning-noise")
LABELS = ("poisoning-labels", "poisoning-draws", "poisoning-weight")
DESIGNS = ("poisoning-queries", "poisoning-box", "poisoning-integer")


class IndifferenceOptions(Options):
    """Of the projection into a box."""

    sweeps: int = Field(500, ge=1, description="Dykstra's sweeps, with poisoning-box")


class MatchingOptions(Options):
    """Of the search for queries."""

    rounds: int = Field(40, ge=1, description="most rounds of column generation")
    gap: float = Field(
        0.02, gt=0, description="how near to the lower bound of the labels it stops, a fraction"
    )


@dataclass(frozen=True, kw_only=True)
class PoisoningExtension(Extension):
    """A method.

    Attributes
    ----------
    losses : tuple of str
        The losses for which it makes data.
    """

    losses: tuple[str, ...] = EVERY_LOSS


def _admits(losses: tuple[str, ...], linear: bool, settings: RunSettings) -> Refusal | None:
    """Refuse another loss, and where the method designs queries another model than a linear one."""
    if settings.loss and settings.loss not in losses:
        return Refusal("poisoning", f"for a {settings.loss} loss")
    if linear and not settings.linear:
        return Refusal("poisoning", "for a model that is not linear")
    return None


def _row(
    place: str,
    text: str,
    source: str,
    *,
    losses: tuple[str, ...] = EVERY_LOSS,
    linear: bool = True,
    options: type[Options] = Options,
    reads: tuple[str, ...] = (),
) -> PoisoningExtension:
    return PoisoningExtension(
        factory=f"pfl_flower.attacks.poisoning.{place}",
        text=text,
        source=source,
        options=options,
        losses=losses,
        reads=reads,
        admits=partial(_admits, losses, linear),
    )


def method_for(name: str, loss: str) -> str:
    """Return the method of a name: ``auto`` is the exact and cheapest one for a loss.

    >>> method_for("auto", "least-squares"), method_for("auto", "softmax")
    ('single-point', 'matching')
    """
    return name if name != "auto" else "single-point" if loss == "least-squares" else "matching"


POISONINGS: Table[PoisoningExtension] = Table(
    "poisoning",
    {
        "auto": _row(
            "by_loss:by_loss",
            "single-point for regression, matching for classifiers",
            "",
            reads=DESIGNS,
        ),
        "single-point": _row(
            "single_point:by_single_point", "one point", "Theorem 5", losses=("least-squares",)
        ),
        "sampling": _row(
            "sampling:by_sampling",
            "random queries, answered by theta_spade",
            "Theorems 2 and 3",
            linear=False,
            reads=QUERIES,
        ),
        "indifference": _row(
            "indifference:by_indifference",
            "queries near which all labels are as probable: the paper's experiment",
            "Appendix I",
            losses=CLASSIFIERS,
            options=IndifferenceOptions,
            reads=(*QUERIES, *LABELS, "poisoning-box"),
        ),
        "matching": _row(
            "matching:by_matching",
            "the fewest labels whose gradient at theta_spade is what is needed: a linear programme",
            "not in the paper",
            losses=CLASSIFIERS,
            options=MatchingOptions,
            reads=DESIGNS,
        ),
        "repeated": _row(
            "repeated:by_repetition",
            "one query, repeated: as many labels as the lower bound asks for",
            "not in the paper",
            losses=("logistic",),
        ),
    },
    own=PoisoningExtension(
        text="a function as package.module:name",
        reads=(*QUERIES, *LABELS, "poisoning-box", "poisoning-integer"),
    ),
    passed=("aim", "recipe"),
)
"""From an ``Aim`` and a ``Recipe`` to ``PoisonedData``."""
