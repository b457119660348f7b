"""The study ``anyone``: every attack of ``attack_mod`` on a stranger's app, under every strategy.

The app is ``fedavg_digits`` beside this file, its own ServerApp and ClientApp as ``flwr run`` runs
them, here in one process. One of ten clients attacks.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.defences.presentation import COLOURS
from experiments.studies.standing import GUESSING, Stated
from experiments.studies.study import Result, Setting, Study
from experiments.studies.wording import Measured
from pfl_flower.interop.table import MOD_ATTACKS
from pfl_flower.run.checks import Check, Claim, Metrics, at_least, at_most, exactly
from pfl_flower.run.figures import save
from pfl_flower.support.console import logged_to
from pfl_flower.support.files import replace_file
from pfl_flower.support.foreign_text import one_line
from pfl_flower.support.seeding import seed_everything, undisturbed
from pfl_flower.transport.inprocess import run_in_process

Values: TypeAlias = NDArray[np.float64]

APP = Path(__file__).parent / "fedavg_digits"
CLIENTS = 10
NONE = "none"
BREAKING = ("nan", "wrong-shape", "honest")
"""What tests a server rather than a model: in the table the last is a client that boasts."""
SHOWN = {"honest": "exaggerated num-examples"}
FLOWERS = (
    "fedavg",
    "fedadam",
    "fedmedian",
    "fedtrimmedavg",
    "krum",
    "multikrum",
    "bulyan",
)
OURS = (
    "checked-fedavg",
    "robust-median",
    "robust-trimmed-mean",
    "robust-multi-krum",
    "robust-geometric-median",
    "robust-centred-clipping",
    "robust-median-fedadam",
)
PLAIN, CHECKED = "fedavg", "checked-fedavg"
ROBUST = tuple(name for name in OURS if name.startswith("robust"))
QUICK_ATTACKS = (NONE, "cga", "free-rider", *BREAKING)
QUICK_STRATEGIES = (PLAIN, "fedmedian", CHECKED, "robust-median")
CRASHED = "crashed"
BROKE_OFF = "broke off"


@contextmanager
def strangers_app() -> Iterator[tuple[Any, Any, dict[str, Any]]]:
    """Yield the example's ServerApp, ClientApp and run configuration, imported as Flower does."""
    sys.path.insert(0, str(APP))
    try:
        server = importlib.import_module("fedavg_digits.server_app").app
        client = importlib.import_module("fedavg_digits.client_app").app
    finally:
        sys.path.remove(str(APP))
    given = tomllib.loads((APP / "pyproject.toml").read_text())
    yield server, client, dict(given["tool"]["flwr"]["app"]["config"])


@contextmanager
def quiet() -> Iterator[None]:
    """Let Flower log warnings alone within: it says thirty lines a round."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def measure(setting: Setting) -> dict[str, Any]:
    """Return what became of the model, for each strategy and attack."""
    attacks = list(QUICK_ATTACKS if setting.quick else (NONE, *MOD_ATTACKS))
    strategies = list(QUICK_STRATEGIES if setting.quick else (*FLOWERS, *OURS))
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for strategy in strategies:
        for attack in attacks:
            setting.say(f"{strategy}, {attack}")
            played = NONE if setting.control else attack
            cells.setdefault(strategy, {})[attack] = play(setting, strategy, played)
    return {"cells": cells, "metrics": metrics(cells)}


def play(setting: Setting, strategy: str, attack: str) -> dict[str, Any]:
    """Return a run's last accuracies, and why it broke off if it did."""
    setting.folder.mkdir(parents=True, exist_ok=True)
    output = setting.folder / "run.json"
    output.unlink(missing_ok=True)
    with strangers_app() as (server, client, config):
        config |= {
            "attack": attack,
            "strategy": strategy,
            "seed": setting.seed,
            "output": str(output),
        }
        log = setting.folder / "run.log"
        with log.open("w") as file, logged_to(file), undisturbed(), quiet():
            # Flower draws the order of clients, part of a sum's bits, from Python's own generator.
            seed_everything(setting.seed)
            try:
                run_in_process(server, client, nodes=CLIENTS, run_config=config)
            except Exception as error:
                # The stranger's strategy: what it cannot bear is a result.
                return {"accuracy": math.nan, "next": math.nan, CRASHED: one_line(error)}
    written = json.loads(output.read_text())
    return {
        "accuracy": written["accuracy"][-1],
        "next": written["read as the next"][-1],
        "taken out": sum(written["taken out"]),
    }


def metrics(cells: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, float]:
    """Return what the claims look at: a run that broke off has lost all accuracy."""
    found: dict[str, float] = {}
    sound = cells[PLAIN][NONE]["accuracy"]
    for strategy, row in cells.items():
        for attack, cell in row.items():
            where = f"{strategy}, {attack}"
            lost = sound - cell["accuracy"]
            found[f"{where}: lost"] = sound if math.isnan(lost) else lost
            found[f"{where}: read as the next"] = 0.0 if math.isnan(lost) else cell["next"]
            found[f"{where}: broke off"] = float(CRASHED in cell)
            found[f"{where}: taken out"] = float(cell.get("taken out", 0))
    found["accuracy without attack"] = sound
    return found


LEARNT = 0.7
"""Accuracy without an attack that is worth being lost: seven times guessing."""
HALF = 0.5
"""Share of the digits read as the attacker wants, from which the model is its own."""
KEPT = 0.08
"""Accuracy that a defence may cost: three standard errors of the difference of two accuracies of
0.85 on 360 test digits, ``3 sqrt(2 * 0.85 * 0.15 / 360)``."""
ROUNDS = 10
SUCCESS = (
    Claim(f"{PLAIN}, cga: read as the next", at_least(HALF), "FedAvg: CGA's model is read"),
    Claim(
        f"{PLAIN}, nan: lost",
        at_least(LEARNT - 2 * GUESSING),
        "FedAvg: one client's NaN is the model",
    ),
    Claim(f"{PLAIN}, wrong-shape: broke off", exactly(1), "FedAvg: a wrong shape ends the run"),
    Claim(f"{CHECKED}, nan: taken out", exactly(ROUNDS), "Checked: NaN is taken out, every round"),
    Claim(
        f"{CHECKED}, wrong-shape: taken out",
        exactly(ROUNDS),
        "Checked: a wrong shape is taken out, every round",
    ),
    Claim(
        f"{CHECKED}, honest: taken out",
        exactly(ROUNDS),
        "Checked: exaggerated examples are taken out, every round",
    ),
)
ALWAYS = (
    Claim("accuracy without attack", at_least(LEARNT), "FedAvg learns"),
    *(
        Claim(f"{CHECKED}, {attack}: lost", at_most(KEPT), f"Checked: {shown} costs little")
        for attack, shown in (
            (NONE, "honesty"),
            ("nan", "NaN"),
            ("wrong-shape", "a wrong shape"),
            ("honest", "exaggeration"),
        )
    ),
)


def judge(finals: Sequence[Metrics]) -> list[Check]:
    """Return what holds of each robust average that was run: CGA gets nowhere."""
    claims = []
    for strategy in ROBUST:
        if f"{strategy}, cga: lost" in finals[0]:
            claims += [
                Claim(
                    f"{strategy}, cga: read as the next",
                    at_most(2 * GUESSING),
                    f"{strategy}: CGA's model is not read",
                ),
                Claim(f"{strategy}, cga: lost", at_most(KEPT), f"{strategy}: CGA costs little"),
            ]
    return [claim.check(finals) for claim in claims]


def words(measured: Measured) -> str:
    """Return what one client of ten does to FedAvg, and what is left of it."""
    owned = measured.mean(f"{PLAIN}, cga: read as the next")
    sound = measured.mean("accuracy without attack")
    left = measured.high(f"{CHECKED}, nan: lost", f"{CHECKED}, wrong-shape: lost")
    read = measured.high("robust*, cga: read as the next")
    return (
        f"One client of ten makes FedAvg read {owned:.0%} of the digits as it wants (CGA); a NaN "
        f"costs {measured.mean(f'{PLAIN}, nan: lost'):.2f} of {sound:.2f} of accuracy, a wrong "
        f"shape the run. With Checked these cost {left:.3f} at most; under robust averages "
        f"{read:.0%} of the digits at most are read as CGA wants."
    )


def draw(results: Sequence[Result], folder: Path) -> None:
    """Draw the accuracies of all pairs, and write them as a Markdown table: mean, and range."""
    strategies = list(results[0]["cells"])
    attacks = list(results[0]["cells"][strategies[0]])
    values = np.array(
        # What broke off is not a number, which JSON spells out.
        [
            [[float(r["cells"][s][a]["accuracy"]) for s in strategies] for a in attacks]
            for r in results
        ]
    )
    names = [SHOWN.get(attack, attack) for attack in attacks]
    _picture(values.mean(axis=0), names, strategies, len(results), folder)
    rows = [["attack", *strategies], ["---"] * (1 + len(strategies))]
    rows += [
        [name, *(spread(values[:, row, column]) for column in range(len(strategies)))]
        for row, name in enumerate(names)
    ]
    replace_file(folder / "anyone.md", "".join(f"| {' | '.join(row)} |\n" for row in rows))


def _picture(
    mean: Values, names: Sequence[str], strategies: Sequence[str], seeds: int, folder: Path
) -> None:
    figure = Figure(
        figsize=(2.2 + 0.62 * len(strategies), 1.9 + 0.36 * len(names)), layout="constrained"
    )
    axes = figure.subplots()
    axes.imshow(np.ma.masked_invalid(mean), cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(strategies)), strategies, rotation=40, ha="right", fontsize=9)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    for (row, column), value in np.ndenumerate(mean):
        colour = "white" if value < HALF else "black"
        text = BROKE_OFF if math.isnan(value) else f"{value:.2f}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    flowers = sum(name in FLOWERS for name in strategies)
    axes.axvline(flowers - 0.5, color="white", linewidth=3)
    over = f"mean of {seeds} seeds" if seeds > 1 else "one seed"
    title = f"accuracy with one client of ten attacking, {over}: Flower's strategies | ours"
    axes.set_title(title)
    save(figure, folder, "anyone")


def spread(accuracies: Values) -> str:
    """Return the mean over seeds and the range, or in how many the run broke off.

    >>> spread(np.array([0.5, 0.7])), spread(np.array([0.5])), spread(np.array([math.nan]))
    ('0.60 (0.50 to 0.70)', '0.50', 'broke off')
    >>> spread(np.array([0.5, math.nan]))
    'broke off in 1 of 2'
    """
    seeds, broken = len(accuracies), int(np.isnan(accuracies).sum())
    if broken:
        return BROKE_OFF if broken == seeds else f"{BROKE_OFF} in {broken} of {seeds}"
    mean = f"{accuracies.mean():.2f}"
    return f"{mean} ({accuracies.min():.2f} to {accuracies.max():.2f})" if seeds > 1 else mean


PAPER = (
    Stated(
        what="CGA hacks a model whose users can report any vector (here FedAvg's)",
        where="Section 5.1, Figure 1",
        claim=Claim(f"{PLAIN}, cga: read as the next", at_least(HALF)),
        against=at_most(2 * GUESSING),
        why="half of the digits are read as it wants; the opposite: as many as by guessing, twice",
    ),
)
STUDY = Study(
    name="anyone",
    claim=(
        "Ours, not the paper's: in a stranger's Flower app one client of ten owns FedAvg's model, "
        "and three lines, a check of replies or a robust average, take that away."
    ),
    words=words,
    measure=measure,
    judge=judge,
    draw=draw,
    seeds=(1, 2, 3),
    success=SUCCESS,
    always=ALWAYS,
    paper=PAPER,
    setting=(
        "A network of 64, 32 and 10 units on the digits, ten clients with Dirichlet(1) labels, "
        "5 local epochs, 10 rounds; the last client attacks. NaN, shapes and examples are checked "
        "by Checked(FedAvg(), max_norm=5, max_examples=1000); the robust rules know f = 1."
    ),
)
