"""What leaving out zeros saves one user: our loops against dense products and MKL's sparse ones."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.benchmark.side_by_side import Comparison, Conditions, take_turns, worker
from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.losses import LOSSES
from pfl_flower.objective.models import Linear
from pfl_flower.objective.two_layer import TwoLayer
from pfl_flower.run.attack_plans import honest_users
from pfl_flower.run.config import parse_config
from pfl_flower.run.problem import build_problem
from pfl_flower.support.seeding import generator

POINTS, QUICK_POINTS, TURNS = 6000, 500, 7
"""Points of the user; how often each way is measured, of which the fastest counts."""
WORK = (
    ("mnist", "gradient"),
    ("mnist", "value"),
    ("mnist", "Hessian product"),
    ("mnist", "least squares"),
    ("mnist", "two layers"),
    ("fashion-mnist", "gradient"),
    ("fashion-mnist", "two layers"),
)


def against_all_numbers(conditions: Conditions) -> Iterator[Comparison]:
    """Compare one user's work on images without their zeros with the same on all numbers."""
    points = QUICK_POINTS if conditions.quick else POINTS
    for dataset, what in [("digits", name) for _, name in WORK[:5]] if conditions.quick else WORK:
        side = partial(worker, "zeros", threads=1, dataset=dataset, what=what, points=points)
        found = take_turns(conditions, f"zeros, {what}, {dataset}", {"both": side})["both"]
        ours, dense, sparse = ([one[name] for one in found] for name in ("ours", "dense", "mkl"))
        first = found[0]
        name = "without zeros" if first["left out"] else "all numbers, as few are zero"
        yield Comparison.of_times(
            "a",
            f"{what}, {points} points of {dataset}, 1 thread",
            (name, ours),
            ("dense products", dense),
            f"{first['share']:.2f} of the numbers are not zero; answers differ by "
            f"{first['gap']:.1g} (relative)",
        )
        if not math.isnan(sparse[0]):
            yield Comparison.of_times(
                "a",
                f"{what}, {points} points of {dataset}, 1 thread",
                (name, ours),
                ("MKL's sparse products", sparse),
            )


def measure(*, dataset: str, what: str, points: int) -> dict[str, Any]:
    """Return the least seconds of every way, the share of numbers left, and how answers differ."""
    features, labels = points_of(dataset, points)
    theta, losses = sides(what, features, labels)
    work = {name: _work(what, loss, theta) for name, loss in losses.items()}
    if what == "gradient":
        work["mkl"] = _by_mkl(losses["dense"], theta)
    answers = {name: one() for name, one in work.items()}
    seconds = {"mkl": math.nan, **dict.fromkeys(work, math.inf)}
    for _ in range(TURNS):
        for name, one in work.items():
            began = time.perf_counter()
            one()
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    gaps = [float((one - answers["dense"]).norm()) for one in answers.values()]
    return {
        **seconds,
        "share": int(features.count_nonzero()) / features.numel(),
        "gap": max(gaps) / float(answers["dense"].norm()),
        "left out": _left_out(losses["ours"]),
    }


def points_of(dataset: str, points: int) -> tuple[Tensor, Tensor]:
    """Return the first honest user's features ``(1, n, q)`` in single precision, and labels."""
    settings = {"dataset": dataset, "points-per-user": str(points), "device": "cpu"}
    problem = build_problem(parse_config({**settings, "name": "zeros"}))
    one = problem.source.draw(honest_users(problem)[0], points, problem.config.seed)
    return one.features[None].float(), one.labels[None]


def sides(what: str, features: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, LocalLoss]]:
    """Return a theta, and the user's loss as it is used and with all numbers."""
    inputs, classes = features.shape[2], int(labels.max()) + 1
    least_squares = what == "least squares"
    model = {
        "least squares": Linear(inputs, 1),
        "two layers": TwoLayer(inputs, classes),
    }.get(what, Linear(inputs, classes))
    loss = LOSSES["least-squares" if least_squares else "softmax"]()
    given = labels.to(features.dtype) if least_squares else labels
    made = {
        name: LocalLoss.build(model, loss, features, given, compress=compress)
        for name, compress in (("ours", True), ("dense", False))
    }
    # Not the same for all classes: of that softmax takes no notice.
    return torch.randn((1, model.dim), generator=generator(1)) * 0.01, made


def _work(what: str, loss: LocalLoss, theta: Tensor) -> Callable[[], Tensor]:
    if what == "value":
        return lambda: loss.value(theta)
    if what == "Hessian product":
        product = loss.hessian_map(theta)
        return lambda: product(theta)
    return lambda: loss.gradient(theta)


def _left_out(loss: LocalLoss) -> bool:
    """Whether the loss leaves out zeros."""
    if isinstance(loss.model, TwoLayer):
        return any(kept is not None for kept in loss._kept)
    return any(part.compressed is not None for _, part in loss.parts)


def _by_mkl(loss: LocalLoss, theta: Tensor) -> Callable[[], Tensor]:
    """Return the gradient by torch's sparse matrices, one of them by columns."""
    features, labels = loss.features[0], loss.labels[0]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        rows, columns = (
            torch.sparse_csr_tensor(
                csr.crow_indices().int(), csr.col_indices().int(), csr.values(), csr.shape
            )
            for csr in (features.to_sparse_csr(), features.T.contiguous().to_sparse_csr())
        )

    def gradient() -> Tensor:
        weights = theta.view(loss.model.outputs, loss.model.inputs)
        slopes = loss.loss.gradient(rows @ weights.T.contiguous(), labels)
        return (columns @ slopes).T.reshape(1, -1)

    return gradient
