"""How local PAC* learning is judged and drawn, whatever the loss and the regularisers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.drawing import legend_above, shade
from experiments.studies.standing import Stated
from experiments.studies.study import Result, Study
from experiments.studies.wording import Measured
from experiments.theory.pac import ENOUGH, LENGTH, Case, measure_pac
from experiments.theory.scenario import SETTLED
from pfl_flower.run.checks import Claim, at_least, at_most, between
from pfl_flower.run.figures import PALETTE, save

GUARANTEED, STATISTICAL = -0.25, -0.5
TYPICAL = (GUARANTEED + STATISTICAL) / 2
"""Exponents in I: the proofs' for every seed; the mean must be nearer to that of statistics."""
OWN = LENGTH / 2
"""Distance from which on a user has not learnt: it is half of theta_dagger's own length."""
OFF = 0.1
"""Error of an exponent that is fitted over two decades: a factor of 1.6 between their ends."""
Values = np.ndarray[Any, np.dtype[np.float64]]


def _words(measured: Measured) -> str:
    """Return how near honest users come with many points, worst case and seed, and how fast."""
    low, high = measured.low("exponent: *"), measured.high("exponent: *")
    return (
        f"With the fewest points the user is at least {measured.low('first: *'):.2g} from "
        f"theta_dagger, with the most at most {measured.high('last: *'):.2g}. Above 1,000 points "
        f"the distance falls as I^{high:z.2f} to I^{low:z.2f}, the others' part in it as "
        f"I^{measured.mean('exponent bias: *'):z.2f}."
    )


def _stated(where: str) -> tuple[Stated, ...]:
    """Return what the theorem says of every case, worst seed."""
    return (
        Stated(
            what="with enough points the user is within 0.1 of theta_dagger, whoever else lies",
            where=where,
            claim=Claim("last", at_most(ENOUGH)),
            against=at_least(LENGTH),
            why="Definition 1 for epsilon = 0.1 and 100,000 points; the opposite: no nearer than 0",
        ),
        Stated(
            what="the distance falls at least as the proofs guarantee",
            where=f"{where}, Appendix D and E",
            claim=Claim("exponent", at_most(GUARANTEED)),
            against=at_least(0),
            why="Equation 162 with Lemma 4's alpha = 3/4: I^(alpha - 1) = I^-1/4",
        ),
    )


def pac_study(name: str, claim: str, loss: str, cases: Mapping[str, Case], where: str) -> Study:
    """Return the study of local PAC* learning for a loss and some regularisers and queries."""
    return Study(
        name=name,
        claim=claim,
        words=_words,
        measure=partial(measure_pac, loss=loss, cases=cases),
        draw=partial(_draw, cases=cases, name=name),
        success=_learnt(cases),
        paper=_stated(where),
        always=_always(cases),
    )


def _learnt(cases: Iterable[str]) -> tuple[Claim, ...]:
    """Return what must fail where the honest user answers by noise."""
    return tuple(
        claim
        for label in cases
        for claim in (
            Claim(
                f"exponent: {label}",
                at_most(GUARANTEED),
                f"{label}: exponent of the distance in I, worst seed",
            ),
            Claim(
                f"exponent: {label}",
                at_most(TYPICAL),
                f"{label}: exponent of the distance in I, mean",
                average=True,
            ),
            Claim(f"last: {label}", at_most(ENOUGH), f"{label}: distance at the largest I"),
            Claim(
                f"pair: {label}",
                at_most(ENOUGH),
                f"{label}: distance at the largest I, two opposed honest users",
            ),
        )
    )


def _always(cases: Iterable[str]) -> tuple[Claim, ...]:
    """Return what holds of the adversaries and of the solver, whatever the honest user answers."""
    adversaries = (
        claim
        for label in cases
        for claim in (
            Claim(
                f"first: {label}",
                at_least(OWN),
                f"{label}: distance at I = 10, where adversaries win",
            ),
            Claim(
                partial(_bias_from_minus_one, label=label),
                between(-OFF, OFF),
                f"{label}: exponent of the adversaries' bias, from -1",
            ),
        )
    )
    return (*adversaries, Claim("residual", at_most(SETTLED), "equilibria: worst residual"))


def _bias_from_minus_one(metrics: Mapping[str, float], *, label: str) -> float:
    return metrics[f"exponent bias: {label}"] + 1


def _draw(results: Sequence[Result], folder: Path, *, cases: Mapping[str, Case], name: str) -> None:
    """Draw the distance to theta_dagger and the adversaries' part in it against I."""
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    sizes = np.array(results[0]["sizes"], dtype=float)
    for axes, what in zip(panels, ("distance", "bias"), strict=True):
        for index, label in enumerate(cases):
            _band(axes, sizes, _stacked(results, label, what), index, label)
        axes.set(xscale="log", yscale="log", xlabel="honest points $I$")
        axes.grid(alpha=0.3)
    _draw_alone(panels[0], sizes, results, cases)
    panels[0].axhline(ENOUGH, color="black", linewidth=0.8)
    panels[0].annotate(
        rf"$\varepsilon = {ENOUGH:g}$", (sizes[0], ENOUGH), (0, 4), textcoords="offset points"
    )
    guides = (("distance", -0.5, "$I^{-1/2}$"), ("bias", -1.0, "$I^{-1}$"))
    for axes, (what, exponent, text) in zip(panels, guides, strict=True):
        top = max(_stacked(results, label, what)[:, -1].max() for label in cases)
        _guide(axes, sizes, 2 * top, exponent, text)
    panels[0].set_ylabel(r"$\|\theta_h^*(\mathcal{D}) - \theta_h^\dagger\|$")
    panels[1].set_ylabel(
        r"$\|\theta_h^*(\mathcal{D}) - \mathrm{argmin}\,\mathcal{L}_h(\theta, \mathcal{D}_h)\|$"
    )
    legend_above(figure, panels[0], 6)
    save(figure, folder, name)


def _stacked(results: Sequence[Result], label: str, what: str) -> Values:
    return np.concatenate([np.array(result["curves"][label][what]) for result in results])


def _band(axes: Axes, sizes: Values, values: Values, index: int, label: str) -> None:
    """Draw the median over seeds and datasets, and the range; curves may lie on one another."""
    colour, style = PALETTE[index], ("-", "--", ":", "-.")[index]
    width = 2.6 - 0.3 * index
    axes.plot(sizes, np.median(values, axis=0), style, color=colour, linewidth=width, label=label)
    shade(axes, sizes, values, colour=colour, alpha=0.12)


def _draw_alone(
    axes: Axes, sizes: Values, results: Sequence[Result], cases: Mapping[str, Case]
) -> None:
    """Draw, once for each kind of queries, what the user would learn on its own."""
    first: dict[object, str] = {}
    for label, case in cases.items():
        first.setdefault(case.queries, label)
    for label in first.values():
        _, _, kind = label.partition(",")
        median = np.median(_stacked(results, label, "alone"), axis=0)
        axes.plot(
            sizes,
            median,
            marker=".",
            color="grey",
            linewidth=0.8,
            linestyle="-." if kind else "-",
            label=f"alone,{kind}" if kind else "alone",
        )


def _guide(axes: Axes, sizes: Values, last: float, exponent: float, label: str) -> None:
    """Draw a power law that ends at ``last`` over the upper half of the sizes, and name it."""
    upper = sizes[len(sizes) // 2 :]
    line = last * (upper / upper[-1]) ** exponent
    axes.plot(upper, line, color="black", linewidth=1.0)
    axes.annotate(label, (upper[1], line[1]), (6, 4), textcoords="offset points")
