"""Where CGA against squared l2 converges: step sizes against numbers of honest users.

Predicted: where ``eta h < 1/2``, h the largest eigenvalue of the honest envelope's Hessian, and
nowhere else: see ``experiments.theory.convergence_rates.rate``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from experiments.studies.study import Setting
from experiments.theory.convergence_rates import LIMIT, curvature, honest_hessian
from experiments.theory.honest_users import draw_scenario
from experiments.theory.scenario import Scenario
from pfl_flower.objective.regularizers import SquaredL2
from pfl_flower.run.figures import PALETTE

LAM, POINTS, NU = 20.0, 10, 0.1
"""Strong coupling and few points, so that h is far below L, by a share that depends on N."""
CROWDS, QUICK_CROWDS = (1, 2, 4, 7, 12, 20), (1, 4)
STEPS, QUICK_STEPS = 15, 5
"""Number of step sizes, from ``eta L = 1/6`` to 8."""
NEAR, EDGES = 0.1, (0.89, 1.11)
"""Relative distance to the boundary within which a cell is not judged, and cells just outside."""
ROUNDS = 200


def measure_diagram(setting: Setting) -> dict[str, Any]:
    """Return, by number of users and step size, whether CGA converged, and what was predicted."""
    crowds = QUICK_CROWDS if setting.quick else CROWDS
    steps = np.geomspace(1 / 6, 8, QUICK_STEPS if setting.quick else STEPS).tolist()
    full = draw_scenario(
        "least-squares",
        SquaredL2(lam=LAM),
        seed=setting.seed,
        users=max(crowds),
        points=POINTS,
        nu=NU,
        idle=setting.control,
    )
    outcomes, shares, edges = [], [], []
    for crowd in crowds:
        setting.say(f"phase diagram, {crowd} users")
        scenario = replace(full, users=full.users[:crowd])
        smoothness, h = scenario.smoothness(), curvature(honest_hessian(scenario))
        outcomes.append([_outcome(scenario, step / smoothness) for step in steps])
        shares.append(h / smoothness)
        edges.append([_outcome(scenario, edge * LIMIT / h) for edge in EDGES])
    return {
        "crowds": crowds,
        "steps": steps,
        "outcomes": outcomes,
        "shares": shares,
        "edges": edges,
    }


def _outcome(scenario: Scenario, eta: float) -> int:
    """Return 1 where rho converges to the target, -1 where it flees from it, else 0."""
    away = float(torch.linalg.vector_norm(scenario.target))
    run = scenario.descend(
        [scenario.counter_gradient()],
        eta=eta,
        tolerance=1e-6 * away,
        rounds=ROUNDS,
        far=1e3 * away,
    )
    miss = float(torch.linalg.vector_norm(run.limit - scenario.target))
    if miss <= 1e-4 * away:
        return 1
    return -1 if miss >= 100 * away else 0


def agreement(diagram: Mapping[str, Any]) -> dict[str, float]:
    """Compare with the prediction ``eta h < 1/2``."""
    wrong = judged = beyond = fled = 0
    for outcomes, share in zip(diagram["outcomes"], diagram["shares"], strict=True):
        for outcome, step in zip(outcomes, diagram["steps"], strict=True):
            fled += outcome == -1
            beyond += outcome == 1 and step > 1 / 3
            if abs(step * share / LIMIT - 1) > NEAR:
                judged += 1
                wrong += outcome != (1 if step * share < LIMIT else -1)
    return {
        "wrong cells": wrong,
        "judged cells": judged,
        "wrong edges": sum(edge != [1, -1] for edge in diagram["edges"]),
        "beyond": beyond,
        "fled": fled,
    }


def draw_diagram(axes: Axes, diagrams: Sequence[Mapping[str, Any]]) -> None:
    """Draw the outcome of each cell over all seeds, and the predicted boundary of each seed."""
    steps, crowds = diagrams[0]["steps"], diagrams[0]["crowds"]
    outcomes = np.array([diagram["outcomes"] for diagram in diagrams])
    kinds = (
        ("converges to the target", (outcomes == 1).all(axis=0), "o", PALETTE[2]),
        ("diverges", (outcomes == -1).all(axis=0), "x", PALETTE[1]),
    )
    mixed = ~(kinds[0][1] | kinds[1][1])
    for label, cells, marker, colour in (
        *kinds,
        ("neither, or by the seed", mixed, "D", PALETTE[4]),
    ):
        row, column = np.nonzero(cells)
        axes.plot(
            np.array(steps)[column],
            np.array(crowds)[row],
            marker,
            color=colour,
            markersize=5,
            label=label,
        )
    boundaries = LIMIT / np.array([diagram["shares"] for diagram in diagrams])
    for boundary in boundaries:
        axes.plot(boundary, crowds, color="black", linewidth=0.8)
    axes.plot([], [], color="black", linewidth=0.8, label=r"$\eta h = 1/2$, each seed")
    axes.axvline(1 / 3, linestyle="--", color=PALETTE[0], label=r"Theorem 4: $\eta L = 1/3$")
    axes.set(xscale="log", yscale="log", xlabel=r"$\eta L$", ylabel="honest users")
    ticks = {"1/6": 1 / 6, "1/3": 1 / 3, **{str(value): value for value in (1, 2, 4, 8)}}
    axes.set_xticks(list(ticks.values()), list(ticks), minor=False)
    axes.set_xticks([], minor=True)
    axes.set_yticks(crowds, [str(crowd) for crowd in crowds], minor=False)
    axes.set_yticks([], minor=True)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
