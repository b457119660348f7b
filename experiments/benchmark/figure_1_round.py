"""Figure 1's round: against loops and vmap (a), its bound (d), its memory (e), the GPU (g)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from experiments.benchmark.roofline import Round
from experiments.benchmark.side_by_side import (
    Comparison,
    Conditions,
    both_times,
    milliseconds,
    ratio,
    round_seconds,
    take_turns,
    worker,
)
from experiments.benchmark.worker import FIGURE_1
from experiments.paper.protocols import AUTHORS_STEPS, PAPER
from pfl_flower.objective.sparse_features import Compressed
from pfl_flower.run.config import parse_config
from pfl_flower.run.problem import build_problem

MIB = 2**20


def _figure_1(conditions: Conditions, **more: Any) -> dict[str, Any]:
    digits, mnist = {"dataset": "digits", "points-per-user": "500"}, {"dataset": "mnist"}
    size = digits if conditions.quick else mnist
    rounds = 10 if conditions.quick else 30
    return {**FIGURE_1, **size, "device": conditions.device, "rounds": rounds, **more}


NAMED: Mapping[str, str] = {
    "loop": "nn.Module, autograd and Adam per user, in a loop",
    "vmap": "torch.func.vmap",
    "notebook": "the authors' loop",
}


def against_loops(conditions: Conditions) -> Iterator[Comparison]:
    """Compare Figure 1's round with loop and vmap (a), its bound (d), its memory (e)."""
    settings = _figure_1(conditions)
    row, ours, loop = _against("loop", conditions, settings)
    yield row
    yield _roofline(conditions, settings, [round_seconds(one) for one in ours])
    mean, spread = ratio([one["peak"] for one in loop], [one["peak"] for one in ours])
    mine, theirs = (
        f"{statistics.fmean(one['peak'] for one in runs) / MIB:.0f} MiB" for runs in (ours, loop)
    )
    yield Comparison(
        key="e",
        what="peak memory of the process",
        ours=mine,
        rival=f"loop: {theirs}",
        ratio=mean,
        spread=spread,
    )
    yield _against("vmap", conditions, settings)[0]


def on_one_thread(conditions: Conditions) -> list[Comparison]:
    """Compare Figure 1's round with the loop, one thread each (a), where threads do not matter."""
    settings = _figure_1(conditions, device="cpu")
    return [_against("loop", conditions, settings, threads=1)[0]]


def on_the_authors_protocol(conditions: Conditions) -> list[Comparison]:
    """Compare with the loop of the paper's notebooks, one thread each (a).

    As there theta and rho step together by Adam, and every round measures rho and all users.
    """
    theirs = {**PAPER, **AUTHORS_STEPS, "evaluate-every": 1}
    settings = _figure_1(conditions, **{**theirs, "device": "cpu"})
    return [_against("notebook", conditions, settings, threads=1)[0]]


def _against(
    name: str, conditions: Conditions, settings: Mapping[str, Any], *, threads: int = 0
) -> tuple[Comparison, list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the row of our round and a rival's, in turns, and what each of them measured."""
    sides = {
        "ours": partial(worker, "in-process", threads=threads, settings=settings),
        name: partial(worker, "rival", threads=threads, settings=settings, name=name),
    }
    said = f", {threads} thread" if threads else ""
    if settings.get("evaluate-every"):
        said = f" and local models' accuracies{said}"
    found = take_turns(conditions, f"Figure 1's round{said}", sides)
    ours, rival = found["ours"], found[name]
    row = Comparison.of_times(
        "a",
        f"Figure 1's round, {settings['dataset']}{said}",
        ("batched", [round_seconds(one) for one in ours]),
        (NAMED[name], [round_seconds(one) for one in rival]),
        f"rho differs by {_gap(ours[0]['rho'], rival[0]['rho']):.1g} (relative)",
    )
    return row, ours, rival


def _gap(ours: list[float], other: list[float]) -> float:
    one, two = torch.tensor(ours, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
    return float((one - two).norm() / one.norm()) if len(one) else math.nan


def _roofline(conditions: Conditions, settings: Mapping[str, Any], ours: list[float]) -> Comparison:
    found = worker("machine", device=conditions.device)
    problem = build_problem(parse_config({**settings, "name": "sizes"}))
    work = Round(
        users=10,
        points=int(settings["points-per-user"]),
        features=problem.model.inputs,
        classes=problem.model.outputs,
        tests=len(problem.test_set.labels),
    )
    kept = Compressed(problem.test_set.features)
    share = kept.count / kept.features.numel() if kept.pays(problem.model.outputs) else 1.0
    rates = found["bandwidth"], found["rate"]
    whole, work = work.bound(*rates), replace(work, share=share)
    bound = work.bound(*rates)
    mean, spread = ratio([bound] * len(ours), ours)
    return Comparison(
        key="d",
        what="roofline of Figure 1's round",
        ours=milliseconds(ours),
        rival=f"bound: {1e3 * bound:.3g} ms",
        ratio=mean,
        spread=spread,
        note=(
            f"{work.bytes / 1e6:.0f} MB, {work.flops / 1e9:.2f} Gflop without the zeros, with them "
            f"{1e3 * whole:.3g} ms; {conditions.device}: {found['bandwidth'] / 1e9:.1f} GB/s, "
            f"{found['rate'] / 1e9:.0f} Gflop/s"
        ),
    )


def on_the_card(conditions: Conditions) -> list[Comparison]:
    """Compare Figure 1's round on the GPU with the CPU (g), where there is a GPU."""
    if not torch.cuda.is_available():
        return [
            Comparison(
                key="g",
                what="GPU against CPU",
                ours="-",
                rival="-",
                note="torch sees no CUDA device",
            )
        ]
    cuda, cpu = (_figure_1(conditions, device=device, rounds=200) for device in ("cuda", "cpu"))
    sides = {
        "cuda": partial(worker, "in-process", settings=cuda),
        "cpu": partial(worker, "in-process", settings=cpu),
    }
    ours, theirs = both_times(conditions, "GPU against CPU", sides)
    return [
        Comparison.of_times(
            "g",
            "Figure 1's round",
            (torch.cuda.get_device_name(), ours),
            ("CPU", theirs),
            f"200 rounds: {200 * statistics.fmean(ours):.2f} s",
        )
    ]
