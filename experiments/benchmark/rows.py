"""The comparisons (a) to (g): each measures both sides in the same run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from experiments.benchmark.measure import (
    Bench,
    Row,
    milliseconds,
    ratio,
    round_seconds,
    slope,
    take_turns,
    worker,
)
from experiments.benchmark.roofline import Round
from experiments.benchmark.worker import FIGURE_1
from pfl_flower.config import parse_config
from pfl_flower.problem import build_problem

MIB = 2**20


def _figure_1(bench: Bench, **more: Any) -> dict[str, Any]:
    size = {"dataset": "digits", "points-per-user": "500"} if bench.quick else {"dataset": "mnist"}
    rounds = 10 if bench.quick else 30
    return {**FIGURE_1, **size, "device": bench.device, "rounds": rounds, **more}


def against_loops(bench: Bench) -> list[Row]:
    """Compare Figure 1's round with loop and vmap (a), its bound (d), its memory (e)."""
    settings = _figure_1(bench)
    sides = {
        "ours": partial(worker, "in-process", settings=settings),
        "loop": partial(worker, "rival", settings=settings, name="loop"),
        "vmap": partial(worker, "rival", settings=settings, name="vmap"),
    }
    found = take_turns(bench, "Figure 1's round", sides)
    times = {name: [round_seconds(one) for one in runs] for name, runs in found.items()}
    peaks = {name: [one["peak"] for one in runs] for name, runs in found.items()}
    gaps = {name: _gap(found["ours"][0]["rho"], found[name][0]["rho"]) for name in ("loop", "vmap")}
    named = {"loop": "nn.Module, autograd and Adam per user, in a loop", "vmap": "torch.func.vmap"}
    rows = []
    for name, text in named.items():
        mean, spread = ratio(times[name], times["ours"])
        rows.append(
            Row(
                key="a",
                what=f"Figure 1's round, {settings['dataset']}",
                ours=milliseconds(times["ours"]),
                rival=f"{text}: {milliseconds(times[name])}",
                ratio=mean,
                spread=spread,
                note=f"rho differs by {gaps[name]:.1g} (relative)",
            )
        )
    rows.append(_roofline(bench, settings, times["ours"]))
    mean, spread = ratio(peaks["loop"], peaks["ours"])
    rows.append(
        Row(
            key="e",
            what="peak memory of the process",
            ours=f"{statistics.fmean(peaks['ours']) / MIB:.0f} MiB",
            rival=f"loop: {statistics.fmean(peaks['loop']) / MIB:.0f} MiB",
            ratio=mean,
            spread=spread,
        )
    )
    return rows


def _gap(ours: list[float], other: list[float]) -> float:
    one, two = torch.tensor(ours, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
    return float((one - two).norm() / one.norm()) if len(one) else math.nan


def _roofline(bench: Bench, settings: Mapping[str, Any], ours: list[float]) -> Row:
    found = worker("machine", device=bench.device)
    problem = build_problem(parse_config({**settings, "name": "sizes"}))
    work = Round(
        users=10,
        points=int(settings["points-per-user"]),
        features=problem.model.inputs,
        classes=problem.model.outputs,
        tests=len(problem.test_set.labels),
    )
    bound = work.bound(found["bandwidth"], found["rate"])
    mean, spread = ratio([bound] * len(ours), ours)
    return Row(
        key="d",
        what="roofline of Figure 1's round",
        ours=milliseconds(ours),
        rival=f"bound: {1e3 * bound:.3g} ms",
        ratio=mean,
        spread=spread,
        note=(
            f"{work.bytes / 1e6:.0f} MB, {work.flops / 1e9:.2f} Gflop; {bench.device}: "
            f"{found['bandwidth'] / 1e9:.1f} GB/s, {found['rate'] / 1e9:.0f} Gflop/s"
        ),
    )


def _compared(
    bench: Bench, what: str, sides: Mapping[str, Callable[[], dict[str, Any]]]
) -> tuple[list[float], list[float], float, float]:
    """Return our round times, which come first, the other side's, and their ratio and spread."""
    found = take_turns(bench, what, sides)
    ours, theirs = ([round_seconds(one) for one in found[name]] for name in sides)
    return ours, theirs, *ratio(theirs, ours)


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
        own, other = _less(ours, less), _less(theirs, less)
        mean, spread = ratio(other, own)
        rows.append(
            Row(
                key="b",
                what=what,
                ours=f"in-process: {milliseconds(own)}",
                rival=f"flwr run on Ray: {milliseconds(other)}",
                ratio=mean,
                spread=spread,
                note=f"the mathematics alone: {milliseconds(bare)}",
            )
        )
    return rows if bench.quick else [*rows, _overhead_of_large_rounds(bench)]


def _overhead_of_large_rounds(bench: Bench) -> Row:
    settings = {**TINY, "dataset": "mnist", "dtype": "float32", "rounds": 50}
    sides = {
        "in-process": partial(worker, "in-process", settings=settings, nodes=11),
        "mathematics": partial(worker, "mathematics", settings=settings),
    }
    ours, bare, mean, spread = _compared(bench, "overhead, d = 7,850", sides)
    return Row(
        key="b",
        what="a round of 11 nodes, one point a user, d = 7,850, 10,000 test images",
        ours=f"in-process: {milliseconds(ours)}",
        rival=f"the mathematics alone: {milliseconds(bare)}",
        ratio=mean,
        spread=spread,
        note=f"overhead {milliseconds(_less(ours, bare))}",
    )


def _less(seconds: Sequence[float], part: Sequence[float]) -> list[float]:
    return [whole - some for whole, some in zip(seconds, part, strict=True)]


def large_messages(bench: Bench) -> list[Row]:
    """Compare a million parameters' way through a message with Flower's own arrays (b)."""
    call = {"arrays": partial(worker, "messages", parameters=1_000_000)}
    found = take_turns(bench, "large messages", call)["arrays"]
    ours, flower, copy = ([one[name] for one in found] for name in ("ours", "flower", "copy"))
    mean, spread = ratio(flower, ours)
    return [
        Row(
            key="b",
            what="1,000,000 parameters, float32, into a message and out of it",
            ours=f"in-process: {milliseconds(ours)}",
            rival=f"flwr.app.Array and back: {milliseconds(flower)}",
            ratio=mean,
            spread=spread,
            note=f"the same bytes copied twice: {milliseconds(copy)}",
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


def on_the_card(bench: Bench) -> list[Row]:
    """Compare Figure 1's round on the GPU with the CPU (g), where there is a GPU."""
    if not torch.cuda.is_available():
        return [
            Row(
                key="g",
                what="GPU against CPU",
                ours="-",
                rival="-",
                note="torch sees no CUDA device",
            )
        ]
    cuda, cpu = (_figure_1(bench, device=device, rounds=200) for device in ("cuda", "cpu"))
    sides = {
        "cuda": partial(worker, "in-process", settings=cuda),
        "cpu": partial(worker, "in-process", settings=cpu),
    }
    ours, theirs, mean, spread = _compared(bench, "GPU against CPU", sides)
    return [
        Row(
            key="g",
            what="Figure 1's round",
            ours=f"{torch.cuda.get_device_name()}: {milliseconds(ours)}",
            rival=f"CPU: {milliseconds(theirs)}",
            ratio=mean,
            spread=spread,
            note=f"200 rounds: {200 * statistics.fmean(ours):.2f} s",
        )
    ]


ROWS: Mapping[str, Callable[[Bench], list[Row]]] = {
    "figure-1": against_loops,
    "simulation": against_simulation,
    "messages": large_messages,
    "growth": growth,
    "target": to_the_target,
    "gpu": on_the_card,
}
