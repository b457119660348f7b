"""A run's metrics, from the rows of its ``rounds.csv``."""

from __future__ import annotations


def last_metrics(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return a run's metrics: its last row, totals over rounds, the worst residual of all."""
    final = {key: value for key, value in rows[-1].items() if key not in ("seed", "round", "eta")}
    if "target_accuracy" in final:
        final["target_gap"] = final["target_accuracy"] - final["accuracy_target"]
    evaluated = ("local_accuracy", "active_accuracy", "idle_accuracy")
    local = {key: row[key] for row in rows for key in evaluated if key in row}
    return {
        **final,
        **local,
        "rejections_total": sum(row.get("rejections", 0) for row in rows),
        "unconverged_total": sum(row.get("unconverged", 0) for row in rows),
        "worst_residual_ever": max(row.get("worst_residual", 0.0) for row in rows),
        "seconds_total": sum(row.get("seconds", 0.0) for row in rows),
    }
