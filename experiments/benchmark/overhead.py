"""What a round costs beside its mathematics (b): against Ray, and in a message's arrays."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from experiments.benchmark.message_cost import USERS
from experiments.benchmark.side_by_side import (
    Comparison,
    Conditions,
    both_times,
    fresh_process,
    milliseconds,
    round_seconds,
    take_turns,
    worker,
)

TINY: Mapping[str, Any] = {
    "dataset": "digits",
    "points-per-user": "1",
    "local-solver": "sgd",
    "local-lr": 0.001,
    "evaluate-every": 0,
    "device": "cpu",
}
"""One point a user: next to no mathematics."""


def against_simulation(conditions: Conditions) -> list[Comparison]:
    """Compare rounds of 11 nodes with next to no work, and their overhead, with Ray's (b)."""
    tiny = {**TINY, "rounds": 20 if conditions.quick else 50}
    sides = {
        "in-process": partial(worker, "in-process", settings=tiny, nodes=11),
        "simulation": partial(worker, "simulation", settings=tiny, nodes=11),
        "mathematics": partial(worker, "mathematics", settings=tiny),
    }
    found = take_turns(conditions, "overhead", sides)
    ours, theirs, bare = ([round_seconds(one) for one in found[name]] for name in sides)
    rows = []
    for what, less in (
        ("a round of 11 nodes, one point a user, d = 650", [0.0] * len(bare)),
        ("its overhead: all but the mathematics", bare),
    ):
        rows.append(
            Comparison.of_times(
                "b",
                what,
                ("in-process", _less(ours, less)),
                ("flwr run on Ray", _less(theirs, less)),
                f"the mathematics alone: {milliseconds(bare)}",
            )
        )
    return rows if conditions.quick else [*rows, _overhead_of_large_rounds(conditions)]


def _overhead_of_large_rounds(conditions: Conditions) -> Comparison:
    settings = {**TINY, "dataset": "mnist", "dtype": "float32", "rounds": 50}
    sides = {
        "in-process": partial(worker, "in-process", settings=settings, nodes=11),
        "mathematics": partial(worker, "mathematics", settings=settings),
    }
    ours, bare = both_times(conditions, "overhead, d = 7,850", sides)
    return Comparison.of_times(
        "b",
        "a round of 11 nodes, one point a user, d = 7,850, 10,000 test images",
        ("in-process", ours),
        ("the mathematics alone", bare),
        f"overhead {milliseconds(_less(ours, bare))}",
    )


def _less(seconds: Sequence[float], part: Sequence[float]) -> list[float]:
    return [whole - some for whole, some in zip(seconds, part, strict=True)]


def large_messages(conditions: Conditions) -> list[Comparison]:
    """Compare a million parameters' way through a message with Flower's own arrays (b)."""
    call = {"arrays": partial(worker, "messages", parameters=1_000_000)}
    found = take_turns(conditions, "large messages", call)["arrays"]
    ours, flower, copy = ([one[name] for one in found] for name in ("ours", "flower", "copy"))
    return [
        Comparison.of_times(
            "b",
            "1,000,000 parameters, float32, into a message and out of it",
            ("in-process", ours),
            ("flwr.app.Array and back", flower),
            f"the same bytes copied twice: {milliseconds(copy)}",
        )
    ]


def a_message(conditions: Conditions) -> list[Comparison]:
    """Compare what this app adds to a message at a site with importing torch and Flower (b)."""
    sides = {role: partial(_second_message, role) for role in USERS}
    found = take_turns(conditions, "a message", sides)
    return [
        Comparison.of_times(
            "b",
            f"a message to an {role} user at a site, processor time".replace("an s", "a s"),
            ("all but these imports", [one["imports"] + one["answer"] for one in runs]),
            ("importing torch and Flower", [one["torch"] + one["flower"] for one in runs]),
            f"of ours, the app's imports: {milliseconds([one['imports'] for one in runs])}; "
            f"all of it in the run's first message: {milliseconds([one['first'] for one in runs])}",
        )
        for role, runs in found.items()
    ]


def _second_message(role: str) -> dict[str, float]:
    """Measure what answers a node's second message, after the process that answered the first.

    A node keeps what Python has compiled for the first one, unless its environment forbids it.
    """
    kept = {"PYTHONDONTWRITEBYTECODE": ""}
    with tempfile.TemporaryDirectory() as folder:
        first, second = (
            fresh_process("message_cost", role, number, folder, environment=kept)
            for number in ("1", "2")
        )
    return {**second, "first": first["imports"] + first["answer"]}
