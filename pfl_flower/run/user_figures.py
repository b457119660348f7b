"""Figures of a run's users: who holds what, and how well each is served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pfl_flower.data.table import PARTITIONS
from pfl_flower.run.columns import Table
from pfl_flower.run.config import RunConfig
from pfl_flower.run.figures import PALETTE, Picture, save
from pfl_flower.run.holdings import Holdings
from pfl_flower.support.foreign_text import in_figure
from pfl_flower.support.plugins import shown

HONEST, STRATEGIC, TESTS = PALETTE[0], PALETTE[1], PALETTE[5]
EACH = 40
"""More users than these are drawn together: their bubbles would hide one another."""
LARGEST = 420.0
"""Of a bubble, in square points: that of the largest count in a column of a quarter inch."""


def holdings_figure(held: Holdings, title: str, folder: Path) -> tuple[Path, Path]:
    """Write ``holdings.png`` and ``holdings.pdf``, and return their paths."""
    return save(draw_holdings(held, title), folder, "holdings")


def holdings_title(config: RunConfig) -> str:
    """Return a line on who holds what: the data set, the partition and its first key."""
    read = [key for key in PARTITIONS.row(config.partition).reads if key != "test-share"]
    told = [f"{key} = {shown(config.flat()[key])}" for key in read[:1]]
    return ", ".join([config.dataset, f"{config.users:,} users", shown(config.partition), *told])


def draw_holdings(held: Holdings, title: str) -> Picture:
    """Return a picture of users by classes: a bubble for each count, or of many users the shares.

    Strategic users have another colour; under them are the points that were dealt to them.
    """
    few = len(held.points) <= EACH
    figure = _draw_each(held) if few else _draw_many(held)
    figure.suptitle(in_figure(title), fontsize=11)
    return figure


def _draw_each(held: Holdings) -> Picture:
    users, classes = held.points.shape
    height = 1.2 + 0.24 * max(classes, 2)
    figure = Picture(figsize=(max(6.5, 1.6 + 0.27 * users), height + 1.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(height, 1.6))
    user, label = np.nonzero(held.points)
    counts = held.points[user, label]
    strategic = np.isin(user, sorted(held.strategic))
    cell = LARGEST * min(1.0, 11 / max(users, 11))
    for chosen, colour in ((~strategic, HONEST), (strategic, STRATEGIC)):
        area = cell * counts[chosen] / held.points.max()
        top.scatter(user[chosen], label[chosen], s=area, color=colour, alpha=0.85, linewidth=0)
    top.set(ylabel="class", ylim=(-0.8, classes - 0.2))
    if classes <= 20:
        top.set_yticks(range(classes), [in_figure(name) for name in held.classes])
    top.grid(alpha=0.25)
    top.set_title(f"area: points of a class, {held.points.max():,} at most", fontsize=9)
    _draw_bars(bottom, held)
    return figure


def _draw_bars(axes: Axes, held: Holdings) -> None:
    """Draw how many points each user trains on, and keeps for its test set."""
    users, train, tests = np.arange(len(held.train)), held.train.sum(1), held.tests.sum(1)
    strategic = np.isin(users, sorted(held.strategic))
    for chosen, colour, who in (
        (~strategic, HONEST, "honest: to train on"),
        (strategic, STRATEGIC, "strategic: to train on"),
    ):
        if chosen.any():
            axes.bar(users[chosen], train[chosen], color=colour, label=who, width=0.7)
    if tests.any():
        axes.bar(users, tests, bottom=train, color=TESTS, label="own test set", width=0.7)
    axes.set(xlabel="user", ylabel="points", ylim=(0, 1.05 * (train + tests).max()))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25, axis="y")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.45), ncols=3, frameon=False, fontsize=8)


def _draw_many(held: Holdings) -> Picture:
    """Draw sizes, ascending, and the classes' shares of users in the order of their main class."""
    users, classes = held.points.shape
    figure = Picture(figsize=(9.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = held.points.sum(axis=1)
    order = np.argsort(sizes, kind="stable")
    rank = np.arange(1, users + 1)
    left.plot(rank, sizes[order], color=HONEST, label="all points of a user", linewidth=1.6)
    chosen = np.isin(order, sorted(held.strategic))
    if chosen.any():
        left.plot(rank[chosen], sizes[order][chosen], "o", color=STRATEGIC, label="strategic")
    left.set(xlabel="users, by number of points", ylabel="points", ylim=(0, None))
    left.grid(alpha=0.25)
    left.legend(frameon=False, fontsize=8)
    shares = held.points / sizes[:, None]
    by_class = np.lexsort((-shares.max(axis=1), shares.argmax(axis=1)))
    image = right.imshow(
        shares[by_class].T,
        aspect="auto",
        origin="lower",
        cmap="cividis",
        vmin=0,
        vmax=1,
        interpolation="nearest",
        extent=(0.5, users + 0.5, -0.5, classes - 0.5),
    )
    right.set(xlabel="users, by their main class", ylabel="class")
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    if classes <= 20:
        right.set_yticks(range(classes), [in_figure(name) for name in held.classes])
    figure.colorbar(image, ax=right, label="share of a user's points")
    return figure


CURVES = (
    ("theta", "own model theta_n", "-", PALETTE[0]),
    ("rho", "global model rho", "--", PALETTE[1]),
    ("alone", "learned alone", ":", PALETTE[6]),
)


def served_figure(users: Table, title: str, folder: Path) -> tuple[Path, Path]:
    """Write ``users.png`` and ``users.pdf``, and return their paths."""
    return save(draw_served(users, title), folder, "users")


def draw_served(users: Table, title: str) -> Picture:
    """Return a picture of ``users.csv``: each model's values, sorted, and who gains by taking part.

    On the left the share of users whose value is at most so much; on the right each user's gain
    over what it would learn alone (over rho, where that is not known), by its training points.
    """
    figure = Picture(figsize=(9.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    measure = str(users["measure"][0])
    errors = measure != "accuracy"
    known = {name: users[name] for name, *_ in CURVES if name in users}
    for name, label, style, colour in CURVES:
        values = np.sort(known[name][np.isfinite(known[name])]) if name in known else np.empty(0)
        if len(values):
            share = np.arange(len(values) + 1) / len(values)
            left.step(
                share,
                [values[0], *values],
                style,
                where="pre",
                color=colour,
                label=label,
                linewidth=1.6,
            )
    left.set(xlabel="share of users, by value", ylabel=f"{measure} on own test set", xlim=(0, 1))
    if not errors:
        left.set_ylim(-0.03, 1.03)
    baseline = "alone" if "alone" in known else "rho"
    gain = known["theta"] - known[baseline]
    right.axhline(0, color="black", linewidth=0.8)
    right.plot(users["train"], -gain if errors else gain, "o", color=PALETTE[0], markersize=4)
    over = "learning alone" if baseline == "alone" else "rho"
    right.set(xlabel="points that a user trains on", ylabel=f"gain of theta_n over {over}")
    if users["train"].max() > 20 * users["train"].min():
        right.set_xscale("log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3, frameon=False, fontsize=8)
    figure.suptitle(in_figure(title), fontsize=11)
    return figure
