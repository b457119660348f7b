"""An aggregation rule of one's own: nobody's report may be longer than the middle one.

Under squared l2 every report is plausible, and CGA's first ones are hundreds of times as long as an
honest user's. The rule shortens rows that are longer than the median length, and sums. It does what
a bounded GRAD does by itself, with a bound that follows the honest users.

    python -m experiments.examples.own_rule
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pfl_flower as pfl


def shortened(rows: Tensor, *, most: float = 1.0) -> Tensor:
    """Return the sum of the rows ``(k, d)``, none longer than ``most`` times the median length."""
    lengths = torch.linalg.vector_norm(rows, dim=1)
    allowed = most * lengths.median()
    # A row of length 0 is as short as it can be.
    scale = (allowed / lengths.clamp(min=torch.finfo(rows.dtype).tiny)).clamp(max=1)
    return (scale[:, None] * rows).sum(dim=0)


SMALL: dict[str, Any] = {"rounds": 25, "points_per_user": 100, "evaluate_every": 0}
"""Some seconds; without it the preset's own sizes."""


def main(**keys: Any) -> pfl.Sweep:
    """Run CGA, and nobody, against the sum, the median and this rule; print what is left."""
    grid = pfl.sweep(
        "digits-squared-l2",
        {"strategic_users": ["10", "none"], "aggregation": ["sum", "median", shortened]},
        **{**SMALL, **keys},
    )
    print(grid.table("accuracy_true", "accuracy_target"))
    return grid


if __name__ == "__main__":
    main()
