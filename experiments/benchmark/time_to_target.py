"""Seconds until CGA has brought rho near the target (f)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from experiments.benchmark.side_by_side import Comparison, Conditions, ratio, take_turns, worker

NEAR = 0.1


def against_exact_solves(conditions: Conditions) -> list[Comparison]:
    """Measure the seconds until CGA has brought rho within 0.1 of the target (f)."""
    base = {"dataset": "digits", "points-per-user": "500", "evaluate-every": 0, "device": "cpu"}
    sides = {
        "exact": {**base, "rounds": 30},
        "steps": {**base, "rounds": 400, "local-solver": "adam"},
    }
    calls = {name: partial(worker, "in-process", settings=keys) for name, keys in sides.items()}
    found = take_turns(conditions, "time to the target", calls)
    exact, steps = ([_until(one) for one in found[name]] for name in sides)
    mean, spread = ratio(exact, steps)
    for name in sides:
        one = found[name][0]
        conditions.points[f"distance, {name}"] = {
            "seconds": torch.tensor(one["seconds"]).cumsum(0).tolist(),
            "distance": one["distances"],
        }
    return [
        Comparison(
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
