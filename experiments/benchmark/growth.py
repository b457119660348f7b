"""How a round's time grows with users, points per user and dimension (c)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from experiments.benchmark.side_by_side import Comparison, Conditions, round_seconds, worker
from experiments.studies.power_law import exponent

GROWTH: Mapping[str, tuple[dict[str, Any], str, list[int]]] = {
    "users": ({"points-per-user": "10", "features": 20}, "users", [100, 1000, 10_000, 30_000]),
    "points": ({"features": 20}, "points-per-user", [1000, 10_000, 100_000]),
    "dimension": ({"points-per-user": "1000"}, "features", [30, 300, 3000]),
}
"""What stays, which key grows, and through which sizes; the quick form leaves the last out."""


def against_linear(conditions: Conditions) -> list[Comparison]:
    """Measure how a round's time grows with users, points per user and dimension (c)."""
    rows = []
    for name, (fixed, key, sizes) in GROWTH.items():
        tried, seconds = sizes[:-1] if conditions.quick else sizes, []
        for size in tried:
            conditions.say(f"growth with {name}: {size:,}")
            settings: dict[str, Any] = {
                "dataset": "synthetic-logistic",
                "local-solver": "sgd",
                "local-lr": 1e-4,
                "dtype": "float32",
                "evaluate-every": 0,
                "strategic-users": "0",
                "rounds": 6,
                "device": conditions.device,
                **fixed,
                key: str(size) if key == "points-per-user" else size,
            }
            seconds.append(round_seconds(worker("in-process", settings=settings)))
        conditions.points[f"growth with {name}"] = {"size": tried, "seconds": seconds}
        power = exponent(tried[-2:], seconds[-2:])
        rows.append(
            Comparison(
                key="c",
                what=f"growth with {name}, {tried[0]:,} to {tried[-1]:,}",
                ours=f"{1e3 * seconds[0]:.3g} to {1e3 * seconds[-1]:.3g} ms",
                rival=f"linear growth: exponent 1; ours {power:.2f} between the last two",
                ratio=1 / power if power > 0 else math.nan,
                note=f"fitted over all sizes: {exponent(tried, seconds):.2f}",
            )
        )
    return rows
