"""Aggregation rules against byzfl, Flower and numpy: the fastest that is right, in the same run.

A way is right if its answers on two matrices of rows, one of them of rows that are alike but for
their last digits, are those of its own definition worked out in long doubles. (byzfl's Krum sums
the distances to one neighbour more than Blanchard's.) All ways take turns in one process, on one
thread.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from experiments.benchmark.side_by_side import Comparison, Conditions, milliseconds, worker
from pfl_flower.aggregation import rules

Matrix = NDArray[np.float64]
Way = Callable[[Matrix], Matrix]

SHAPE, QUICK_SHAPE = (50, 10_000), (20, 500)
LARGE, QUICK_LARGE = (1000, 100_000), (60, 5000)
TURNS = 40
"""Of each way, of which the fastest counts: whatever else runs on the cores only adds."""
RULES = ("krum", "multi-krum", "trimmed-mean", "median")
RIGHT = 1e-12
"""Of an entry, relative to the largest: of means of a few dozen numbers the rounding."""


def against_peers(conditions: Conditions) -> list[Comparison]:
    """Return a row for every rule, and one for what many long rows take."""
    shape, large = (QUICK_SHAPE, QUICK_LARGE) if conditions.quick else (SHAPE, LARGE)
    found = []
    for rule in RULES:
        conditions.say(f"aggregators: {rule}")
        measured = worker("aggregators", rule=rule, shape=shape)
        found.append(_row(rule, shape, measured))
    for rule in RULES:
        conditions.say(f"aggregators: {rule}, n = {large[0]}, d = {large[1]}")
        one = worker("aggregator-alone", rule=rule, shape=large)
        said = f"{one['seconds']:.2f} s, {one['peak'] / 2**20:,.0f} MiB at most"
        rival = f"the rows: {8 * math.prod(large) / 2**20:,.0f} MiB"
        what = f"{rule}, n = {large[0]}, d = {large[1]:,}, one thread"
        found.append(Comparison(key="h", what=what, ours=said, rival=rival))
    return found


def _row(rule: str, shape: tuple[int, int], measured: Mapping[str, Any]) -> Comparison:
    """Return a rule's row; where no peer is right, ours alone, and which peer there could be."""
    seconds, wrong = measured["seconds"], measured["wrong"]
    right = {name: some for name, some in seconds.items() if name != "ours" and name not in wrong}
    fastest = min(right, key=lambda name: right[name], default=None)
    others = [f"{name} {milliseconds([some])}" for name, some in right.items() if name != fastest]
    faults = [f"{name} is wrong" for name in wrong]
    absent = [f"{name} is not installed: pip install {name}" for name in measured["missing"]]
    what = f"{rule}, n = {shape[0]}, d = {shape[1]:,}, one thread"
    note = ", ".join([*others, *faults, *absent])
    if fastest is None:
        said = f"ours: {milliseconds([seconds['ours']])}"
        return Comparison(key="h", what=what, ours=said, rival="no peer here is right", note=note)
    return Comparison.of_times(
        "h",
        what,
        ("ours", [seconds["ours"]]),
        (f"the fastest right one, {fastest}", [seconds[fastest]]),
        note,
    )


def measure(*, rule: str, shape: tuple[int, int]) -> dict[str, Any]:
    """Return the seconds of every way to work out a rule, which are wrong, and what is missing."""
    f = shape[0] // 5
    drawn = np.random.default_rng(1).normal(size=shape)
    # Squares of these agree in all their digits: a difference of squares is rounding.
    cases = (drawn, 1e6 + 1e-4 * drawn)
    with threadpool_limits(1):
        torch.set_num_threads(1)
        ways = all_ways(rule, f)
        wrong = [
            name
            for name, way in ways.items()
            if not all(right(name, rule, way, f, c) for c in cases)
        ]
        seconds = dict.fromkeys(ways, math.inf)
        order = np.random.default_rng(2)
        for _ in range(TURNS):
            # In another order each time: what one leaves in the cache serves the next.
            for name in order.permutation(list(ways)):
                began = time.perf_counter()
                ways[name](drawn)
                seconds[name] = min(seconds[name], time.perf_counter() - began)
    missing = [] if "byzfl" in ways else ["byzfl"]
    return {"seconds": seconds, "wrong": wrong, "missing": missing}


def alone(*, rule: str, shape: tuple[int, int]) -> dict[str, Any]:
    """Return the seconds of our rule on many long rows."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(tuple(shape), generator=draw, dtype=torch.float64)
    began = time.perf_counter()
    _ours(rule, shape[0] // 5)(rows)
    return {"seconds": time.perf_counter() - began}


def all_ways(rule: str, f: int) -> dict[str, Way]:
    """Return ours and the others' ways to the mean-scale answer ``(d,)`` of rows ``(n, d)``."""
    own = _ours(rule, f)
    ways: dict[str, Way] = {
        "ours": lambda rows: own(torch.from_numpy(rows)).numpy() / len(rows),
        **_numpy(rule, f),
        **_flower(rule, f),
    }
    library = byzfl_aggregators()
    if library is not None:
        named = {"krum": "Krum", "multi-krum": "MultiKrum", "trimmed-mean": "TrMean"}
        made = library.Median() if rule == "median" else getattr(library, named[rule])(f)
        ways["byzfl"] = made
    return ways


def right(name: str, rule: str, way: Way, f: int, rows: Matrix) -> bool:
    """Return whether a way's answer is that of its definition in long doubles."""
    wide = rows.astype(np.longdouble)
    if rule == "median":
        wanted = np.median(wide, axis=0)
    elif rule == "trimmed-mean":
        wanted = np.sort(wide, axis=0)[f : len(rows) - f].mean(axis=0)
    else:
        near = len(rows) - f - (1 if name == "byzfl" else 2)
        squares = np.array([((wide - row) ** 2).sum(axis=1) for row in wide])
        order = np.sort(squares, axis=1)[:, 1 : near + 1].sum(axis=1).argsort()
        wanted = wide[order[: 1 if rule == "krum" else len(rows) - f]].mean(axis=0)
    # Against the spread: rows that are alike are not all as right as one another.
    spread = np.abs(wide - wide.mean(axis=0)).max()
    slack = RIGHT * spread + 8 * np.finfo(np.float64).eps * np.abs(wide).max()
    return bool((np.abs(way(rows.copy()) - wanted) <= slack).all())


def byzfl_aggregators() -> ModuleType | None:
    """Return byzfl's rules, without the plots and data sets that its package imports as well."""
    if "byzfl" not in sys.modules:
        spec = importlib.util.find_spec("byzfl")
        if spec is None or spec.submodule_search_locations is None:
            return None
        bare = ModuleType("byzfl")
        bare.__path__ = list(spec.submodule_search_locations)
        sys.modules["byzfl"] = bare
    return importlib.import_module("byzfl.aggregators.aggregators")


def _ours(rule: str, f: int) -> Callable[[torch.Tensor], torch.Tensor]:
    own: Callable[..., torch.Tensor] = getattr(rules, rule.replace("-", "_"))
    return own if rule == "median" else partial(own, tolerance=f)


def _numpy(rule: str, f: int) -> dict[str, Way]:
    """Return what one would write by hand."""
    if rule == "median":
        return {"numpy": lambda rows: np.median(rows, axis=0)}
    if rule == "trimmed-mean":
        return {"numpy": lambda rows: np.sort(rows, axis=0)[f : len(rows) - f].mean(axis=0)}

    def by_products(rows: Matrix) -> Matrix:
        squares = np.einsum("nd,nd->n", rows, rows)
        pairs = squares[:, None] + squares - 2 * rows @ rows.T
        order = np.sort(pairs, axis=1)[:, 1 : len(rows) - f - 1].sum(axis=1).argsort()
        mean: Matrix = rows[order[: 1 if rule == "krum" else len(rows) - f]].mean(axis=0)
        return mean

    return {"numpy, by products": by_products}


def _flower(rule: str, f: int) -> dict[str, Way]:
    """Return Flower's own functions, on records made of the rows."""
    from flwr.app import ArrayRecord, RecordDict
    from flwr.serverapp.strategy import fedtrimmedavg, multikrum

    if rule == "median":
        return {}
    if rule == "trimmed-mean":
        # Half a row more guards what the fraction loses to rounding.
        return {"Flower": lambda rows: fedtrimmedavg.trim_mean(rows, (f + 0.5) / len(rows))}

    def selected(rows: Matrix) -> Matrix:
        contents = [RecordDict({"arrays": ArrayRecord([row])}) for row in rows]
        kept = multikrum.select_multikrum(contents, f, 1 if rule == "krum" else len(rows) - f)
        values = [record["arrays"].to_numpy_ndarrays()[0] for record in kept]  # type: ignore[union-attr]
        mean: Matrix = np.mean(values, axis=0)
        return mean

    return {"Flower": selected}
