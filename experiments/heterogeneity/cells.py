"""One cell of the study: where users with a coupling rest, and how well that serves them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clients.own_tests import judged, judged_alone
from experiments.running.preset_runs import may_keep
from experiments.studies.study import Setting
from pfl_flower.objective.regularizers import L2
from pfl_flower.run.config import parse_config
from pfl_flower.run.evaluation import Evaluation
from pfl_flower.run.keys import Scalar
from pfl_flower.run.problem import Problem, build_problem
from pfl_flower.run.results import write_json
from pfl_flower.solvers.equilibrium import Equilibrium, minimise
from pfl_flower.solvers.shared_loss import SharedLoss
from pfl_flower.support.versions import commit

Cell = dict[str, float]
"""Accuracies and what else is measured at one rest."""
USERS = 11
HONEST = tuple(range(USERS - 1))
"""Those whom the attack leaves honest, and of whom all accuracies are."""
FOUND = 1e-6
"""Residual of a rest: no answer of a few thousand digits hangs on the seventh digit of a score."""
BASE: Mapping[str, Scalar] = {
    "dataset": "experiments.heterogeneity.components:components",
    "users": USERS,
    "strategic-users": str(USERS - 1),
    "nu": 0.01,
    "equilibrium": True,
    "solver-tolerance": FOUND / 100,
}
EVEN = "inf"
"""The alpha at which everybody has the same share of every class, as ``similarity`` deals."""


def partition(alpha: str) -> dict[str, Scalar]:
    """Return the keys that make users differ so much.

    >>> partition("0.3"), partition("inf")
    ({'partition': 'dirichlet', 'partition-alpha': 0.3}, {'partition': 'similarity', \
'partition-similarity': 1.0})
    """
    if alpha == EVEN:
        return {"partition": "similarity", "partition-similarity": 1.0}
    return {"partition": "dirichlet", "partition-alpha": float(alpha)}


@dataclass(frozen=True)
class Chain:
    """The cells of one partition and one regulariser, for all lam.

    Attributes
    ----------
    setting : Setting
        How the study is asked to measure.
    alpha, regularizer : str
        Who holds what, and what couples them.
    lams : tuple of float
        In ascending order: each rest begins from the one before.
    """

    setting: Setting
    alpha: str
    regularizer: str
    lams: tuple[float, ...]

    def cells(self) -> dict[str, Any]:
        """Return ``alone``, and by lam the cells ``none`` and ``CGA``; kept from before if there.

        A study that was stopped goes on after its last whole chain.
        """
        path = self.setting.folder / f"alpha-{self.alpha}-{self.regularizer}.json"
        asked = {"lams": [*self.lams], "seed": self.setting.seed, **self._keys(self.lams[0])}
        kept = _read(path)
        if kept.get("asked") == asked and may_keep(kept, self.setting.options):
            return dict(kept["cells"])
        found = self._measured()
        self.setting.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"asked": asked, "commit": commit(), "cells": found})
        return found

    def _keys(self, lam: float) -> dict[str, Any]:
        own = {"regularizer": self.regularizer, "lam": lam, "seed": self.setting.seed}
        return {**BASE, **partition(self.alpha), **own}

    def _measured(self) -> dict[str, Any]:
        by_lam: dict[str, dict[str, Cell]] = {}
        starts: dict[str, Tensor | None] = {"none": None, "CGA": None}
        alone = math.nan
        for lam in self.lams:
            problem = build_problem(parse_config(self._keys(lam))).in_double
            if math.isnan(alone):
                alone = float(judged_alone(problem, HONEST).mean())
            by_lam[f"{lam:g}"] = {}
            for attack in starts:
                self.setting.say(f"alpha {self.alpha}, {self.regularizer}, lam {lam:g}, {attack}")
                found = at_rest(problem, attack == "CGA", starts[attack])
                starts[attack] = found.rho
                by_lam[f"{lam:g}"][attack] = worth(problem, found)
        return {"alone": alone, "by lam": by_lam}


def at_rest(problem: Problem, attacked: bool, start: Tensor | None) -> Equilibrium:
    """Return where rho and the models rest: all users honest, or the last one by CGA.

    See ``pfl_flower.run.at_equilibrium`` for what CGA comes to; ``start`` is only where the search
    begins.
    """
    target, radius = problem.target, problem.regularizer.radius
    if not attacked:
        everybody = problem.population((*HONEST, USERS - 1))
        return minimise(SharedLoss(everybody), start, tolerance=FOUND)
    honest = problem.population(HONEST)
    if math.isinf(radius):
        solution = honest.solve(target, target.repeat(honest.size, 1))
        worst = float(solution.residual.max())
        return Equilibrium(target, solution.theta, 0.0, worst, 0, worst <= honest.tolerance)
    shared = SharedLoss(honest, target[None], L2(lam=radius))
    found = minimise(shared, start, tolerance=FOUND)
    return found if found.converged else minimise(shared, target, tolerance=FOUND)


def worth(problem: Problem, found: Equilibrium) -> Cell:
    """Return what rho and the honest users' models are worth.

    ``theta``, ``worst`` and ``own rho`` are accuracies on users' own test sets, mean, least, and
    rho's mean; ``rho`` and ``hacked`` are rho's on the common test set, on the true labels and on
    the attacker's; ``reached`` whether rho is the attacker's target.
    """
    theta = found.theta[: len(HONEST)]
    nothing = torch.full((len(HONEST),), math.nan, dtype=torch.float64)
    served = judged(problem, HONEST, theta, found.rho, nothing)
    measured = Evaluation.of(problem)(found.rho)
    own = [one.theta for one in served.values()]
    return {
        "theta": sum(own) / len(own),
        "worst": min(own),
        "own rho": sum(one.rho for one in served.values()) / len(own),
        "rho": measured["accuracy_true"],
        "hacked": measured["accuracy_target"],
        "reached": float(torch.equal(found.rho, problem.target)),
        "converged": float(found.converged),
        "tested": float(len(own)),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}
