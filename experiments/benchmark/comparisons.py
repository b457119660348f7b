"""The comparisons (a) to (g) by name: each measures both sides in the same run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from experiments.benchmark.measure import (
    Bench,
    Row,
    both_times,
    milliseconds,
    ratio,
    round_seconds,
    slope,
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


def against_simulation(bench: Bench) -> list[Row]:
    """Compare rounds of 11 nodes with next to no work, and their overhead, with Ray's (b)."""
    tiny = {**TINY, "rounds": 20 if bench.quick else 50}
    sides = {
        "in-process": partial(worker, "in-process", settings=tiny, nodes=11),
        "simulation": partial(worker, "simulation", settings=tiny, nodes=11),
        "mathematics": partial(worker, "mathematics", settings=tiny),
    }
    found = take_turns(bench, "overhead", sides)
    ours, theirs, bare = ([round_seconds(one) for one in found[name]] for name in sides)
    rows = []
    for what, less in (
        ("a round of 11 nodes, one point a user, d = 650", [0.0] * len(bare)),
        ("its overhead: all but the mathematics", bare),
    ):
        rows.append(
            Row.of_times(
                "b",
                what,
                ("in-process", _less(ours, less)),
                ("flwr run on Ray", _less(theirs, less)),
                f"the mathematics alone: {milliseconds(bare)}",
            )
        )
    return rows if bench.quick else [*rows, _overhead_of_large_rounds(bench)]


def _overhead_of_large_rounds(bench: Bench) -> Row:
    settings = {**TINY, "dataset": "mnist", "dtype": "float32", "rounds": 50}
    sides = {
        "in-process": partial(worker, "in-process", settings=settings, nodes=11),
        "mathematics": partial(worker, "mathematics", settings=settings),
    }
    ours, bare = both_times(bench, "overhead, d = 7,850", sides)
    return Row.of_times(
        "b",
        "a round of 11 nodes, one point a user, d = 7,850, 10,000 test images",
        ("in-process", ours),
        ("the mathematics alone", bare),
        f"overhead {milliseconds(_less(ours, bare))}",
    )


def _less(seconds: Sequence[float], part: Sequence[float]) -> list[float]:
    return [whole - some for whole, some in zip(seconds, part, strict=True)]


def large_messages(bench: Bench) -> list[Row]:
    """Compare a million parameters' way through a message with Flower's own arrays (b)."""
    call = {"arrays": partial(worker, "messages", parameters=1_000_000)}
    found = take_turns(bench, "large messages", call)["arrays"]
    ours, flower, copy = ([one[name] for one in found] for name in ("ours", "flower", "copy"))
    return [
        Row.of_times(
            "b",
            "1,000,000 parameters, float32, into a message and out of it",
            ("in-process", ours),
            ("flwr.app.Array and back", flower),
            f"the same bytes copied twice: {milliseconds(copy)}",
        )
    ]


GROWTH: Mapping[str, tuple[dict[str, Any], str, list[int]]] = {
    "users": ({"points-per-user": "10", "features": 20}, "users", [100, 1000, 10_000, 30_000]),
    "points": ({"features": 20}, "points-per-user", [1000, 10_000, 100_000]),
    "dimension": ({"points-per-user": "1000"}, "features", [30, 300, 3000]),
}
"""What stays, which key grows, and through which sizes; the quick form leaves the last out."""


def growth(bench: Bench) -> list[Row]:
    """Measure how a round's time grows with users, points per user and dimension (c)."""
    rows = []
    for name, (fixed, key, sizes) in GROWTH.items():
        asked, seconds = sizes[:-1] if bench.quick else sizes, []
        for size in asked:
            bench.say(f"growth with {name}: {size:,}")
            settings: dict[str, Any] = {
                "dataset": "synthetic-logistic",
                "local-solver": "sgd",
                "local-lr": 1e-4,
                "dtype": "float32",
                "evaluate-every": 0,
                "strategic-users": "0",
                "rounds": 6,
                "device": bench.device,
                **fixed,
                key: str(size) if key == "points-per-user" else size,
            }
            seconds.append(round_seconds(worker("in-process", settings=settings)))
        bench.points[f"growth with {name}"] = {"size": asked, "seconds": seconds}
        power = slope(asked[-2:], seconds[-2:])
        rows.append(
            Row(
                key="c",
                what=f"growth with {name}, {asked[0]:,} to {asked[-1]:,}",
                ours=f"{1e3 * seconds[0]:.3g} to {1e3 * seconds[-1]:.3g} ms",
                rival=f"linear growth: exponent 1; ours {power:.2f} between the last two",
                ratio=1 / power if power > 0 else math.nan,
                note=f"fitted over all sizes: {slope(asked, seconds):.2f}",
            )
        )
    return rows


NEAR = 0.1


def to_the_target(bench: Bench) -> list[Row]:
    """Measure the seconds until CGA has brought rho within 0.1 of the target (f)."""
    base = {"dataset": "digits", "points-per-user": "500", "evaluate-every": 0, "device": "cpu"}
    sides = {
        "exact": {**base, "rounds": 30},
        "steps": {**base, "rounds": 400, "local-solver": "adam"},
    }
    calls = {name: partial(worker, "in-process", settings=keys) for name, keys in sides.items()}
    found = take_turns(bench, "time to the target", calls)
    exact, steps = ([_until(one) for one in found[name]] for name in sides)
    mean, spread = ratio(exact, steps)
    for name in sides:
        one = found[name][0]
        bench.points[f"distance, {name}"] = {
            "seconds": torch.tensor(one["seconds"]).cumsum(0).tolist(),
            "distance": one["distances"],
        }
    return [
        Row(
            key="f",
            what=f"digits, CGA: seconds until rho is within {NEAR} of the target",
            ours=f"single steps: {statistics.fmean(steps):.2f} s",
            rival=f"exact solves: {statistics.fmean(exact):.2f} s",
            ratio=mean,
            spread=spread,
        )
    ]


def _until(measured: Mapping[str, Any]) -> float:
    total = 0.0
    for seconds, distance in zip(measured["seconds"], measured["distances"], strict=True):
        total += seconds
        if distance <= NEAR:
            return total
    return math.nan
