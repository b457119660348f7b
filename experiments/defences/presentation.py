"""The pictures of ``defences``: worst case against cost, and a heat map for each crossed scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from experiments.defences.coverage import (
    SEEDS,
    crossed,
    every_run,
    having,
    missing,
    seeds_of,
)
from experiments.defences.document import report
from experiments.defences.judgement import Measured, Verdict, number
from experiments.defences.labels import offsets
from experiments.defences.plan import ATTACKS, NOBODY, SCENES
from experiments.defences.tables import (
    DIVERGED,
    HEAD,
    averaged,
    broken,
    means,
    ranked,
    shown,
    verdicts,
)
from experiments.studies.study import Result
from pfl_flower.run.columns import Table as Columns
from pfl_flower.run.figures import PALETTE, save
from pfl_flower.support.console import plain
from pfl_flower.support.files import replace_file

COLOURS = "cividis"
"""Light to dark with any colour vision, and in grey."""
Found = Mapping[str, Sequence[Verdict]]
"""By rule what is said of it in each seed."""
WIDTH = 150
"""Columns of the terminal that a scene's verdicts take."""
MAPS: Mapping[str, str] = {
    "accuracy": "accuracy of rho on true labels",
    "share": "share of the way from the rule's own rho without attack to the target",
}
NARROW = (
    "rule",
    "rho",
    "cost",
    "harm",
    "by",
    "share",
    "by",
    "untold",
    "theta",
    "harm",
    "worst",
    "",
)
"""The heads of a scene's verdicts in the terminal, where ``HEAD`` is too wide."""


def draw(results: Sequence[Result], folder: Path) -> None:
    """Draw all pictures, write the tables as Markdown, and print the verdicts."""
    scenes = crossed(results)
    panels = {_head(results, scene): verdicts(results, scene) for scene in scenes}
    save(summary(panels, f"Worst case against cost: {seeds_of(results)}"), folder, "defences")
    for scene in scenes:
        save(heat_maps(results, scene), folder, f"defences-{scene.replace('/', '-')}")
        show(scene, ranked(results, scene), Console())
    replace_file(folder / "defences.md", "\n".join(report(results)))
    replace_file(folder / "defences.csv", Columns.from_rows(list(every_run(results))).to_csv())
    for line in broken(results):
        Console().print(plain(line, "red"), soft_wrap=True)
    if lacking := missing({name: len(having(results, name)) for name in SCENES}, SEEDS):
        Console().print(lacking, highlight=False, soft_wrap=True)


def _head(results: Sequence[Result], scene: str) -> str:
    """Return what a scene's panel is called: its seeds too, where it has not all of them."""
    of_it = having(results, scene)
    return scene if len(of_it) == len(results) else f"{scene} ({seeds_of(of_it)})"


def summary(panels: Mapping[str, Found], title: str, own: str = "") -> Figure:
    """Return worst harm against cost, a panel for each scene; ``own`` is a rule to be marked."""
    rows, columns = -(-len(panels) // 2), min(2, len(panels))
    figure = Figure(figsize=(6.6 * columns, 0.6 + 5.0 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (scene, found) in zip(places, panels.items(), strict=False):
        harm_and_cost(axes, found, own)
        axes.set_title(scene.replace("/iid", ", users alike").replace("/0", ", Dirichlet 0"))
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    figure.supxlabel("what the rule costs where nobody attacks: accuracy of rho below the sum's")
    figure.supylabel("what the worst attack takes besides, of rho's accuracy")
    figure.suptitle(f"{title}. Lower left is better")
    return figure


def harm_and_cost(axes: Axes, found: Found, own: str = "") -> None:
    """Draw a point for each rule, by number: the key at the right begins with the best in all."""
    said = {rule: averaged(ones) for rule, ones in found.items()}
    points = {rule: (one.cost, max(0.0, one.harm)) for rule, one in said.items()}
    costs = [one.cost for ones in found.values() for one in ones]
    low, high = min(costs) - 0.004, 1.2 * max(costs) + 0.004
    axes.set_yscale("symlog", linthresh=0.02)
    axes.set_xscale("symlog", linthresh=0.02)
    axes.set(xlim=(low, high), ylim=(-0.003, 1.3))
    axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    ticks = [tick for tick in COSTS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    order = sorted(said, key=lambda rule: said[rule].lost)
    for rule in order:
        cost, harm = points[rule]
        costs, harms = [one.cost for one in found[rule]], [one.harm for one in found[rule]]
        colour = PALETTE[1] if rule == own else PALETTE[0]
        axes.plot([cost, cost], [min(harms), max(harms)], color=colour, lw=1, alpha=0.35)
        axes.plot([min(costs), max(costs)], [harm, harm], color=colour, lw=1, alpha=0.35)
        axes.plot(cost, harm, "o", ms=4, color=colour)
    _number(axes, [points[rule] for rule in order], own=order.index(own) if own in order else None)
    for place, rule in enumerate(order):
        axes.text(
            1.02,
            1 - (place + 0.7) / max(17.5, len(order) + 0.5),
            f"{place + 1}  {rule.rpartition(':')[2]}",  # a module's name would take half the panel
            transform=axes.transAxes,
            fontsize=8.5,
            color=PALETTE[1] if rule == own else "black",
        )


TICKS = (0, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1)
COSTS = (-0.05, -0.02, -0.01, 0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
PANEL = (320.0, 330.0)
"""About how large a panel is, in points of 1/72 inch."""


def _number(axes: Axes, points: Sequence[tuple[float, float]], own: int | None) -> None:
    """Write each point's number beside it, tied to it by a line."""
    onto = axes.transData + axes.transAxes.inverted()
    places = [tuple(map(float, place)) for place in onto.transform(points) * np.array(PANEL)]
    texts = [str(place + 1) for place in range(len(points))]
    moved = offsets([(x, y) for x, y in places], texts, PANEL)
    for place, (point, text, offset) in enumerate(zip(points, texts, moved, strict=True)):
        axes.annotate(
            text,
            point,
            offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=PALETTE[1] if place == own else "black",
            arrowprops={"arrowstyle": "-", "lw": 0.5, "alpha": 0.6, "shrinkA": 1, "shrinkB": 1},
        )


def heat_maps(results: Sequence[Result], scene: str) -> Figure:
    """Return a scene's two maps, one above the other: accuracy, and share of the way."""
    cells = means(results, scene)
    attacks, rules = list(cells), list(cells[NOBODY])
    size = 3.2 + 0.56 * len(rules), 2.2 + 0.62 * len(attacks)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(MAPS), 1, sharex=True)
    for axes, (measure, title) in zip(panels, MAPS.items(), strict=True):
        _heat_map(axes, cells, measure)
        axes.set_title(f"{scene}: {title}", fontsize=11)
    panels[-1].set_xticks(range(len(rules)), rules, rotation=40, ha="right", fontsize=9)
    figure.suptitle(
        f"{seeds_of(having(results, scene))}; in brackets what the attacker knows", fontsize=9
    )
    return figure


def _heat_map(axes: Axes, cells: Mapping[str, Mapping[str, Measured]], measure: str) -> None:
    values = grid(cells, measure)
    masked = np.ma.masked_where(~(abs(values) <= DIVERGED), values)
    axes.set_facecolor("white")
    # Small shares are what rules differ by.
    norm = PowerNorm(0.5 if measure == "share" else 1.0, vmin=0, vmax=1, clip=True)
    axes.imshow(masked, cmap=COLOURS, norm=norm, aspect="auto")
    names = [_labelled(attack) for attack in cells]
    axes.set_yticks(range(len(cells)), names, fontsize=9)
    for place, by_rule in enumerate(cells.values()):
        for column, (value, cell) in enumerate(zip(values[place], by_rule.values(), strict=True)):
            text = "broke" if "error" in cell else shown(value)
            dark = -DIVERGED <= value and float(norm(value)) < 0.5
            colour = "white" if dark else "black"
            axes.text(column, place, text, ha="center", va="center", color=colour, fontsize=7.5)
    axes.axhline(0.5, color="white", lw=2)


def _labelled(attack: str) -> str:
    knowledge = ATTACKS[attack].knowledge
    name = attack.partition(", omniscient")[0].partition(", on guesses")[0]
    return f"{name} [{knowledge}]" if knowledge else attack


def grid(cells: Mapping[str, Mapping[str, Measured]], measure: str) -> NDArray[np.float64]:
    """Return a measure of all cells, ``(attacks, rules)``; NaN where there is none."""
    values = [[number(cell, measure) for cell in by.values()] for by in cells.values()]
    return np.array(values, dtype=np.float64)


def show(title: str, rows: Sequence[Sequence[str]], console: Console) -> None:
    """Print a scene's verdicts."""
    table = Table(title=f"{title}: the least lost in the worst case first")
    assert len(NARROW) == len(HEAD)
    for column in NARROW:
        table.add_column(column, justify="left" if column in ("rule", "by") else "right")
    for row in rows:
        table.add_row(*row)
    Console(file=console.file, width=max(WIDTH, console.width)).print(table)
