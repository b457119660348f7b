"""What ``Checked`` adds to a round of a stranger's app: FedAvg with it and without, in turns.

Both in one process on one thread, which waits for nothing: what is counted is processor time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import nn

import pfl_flower as pfl
from experiments.benchmark.side_by_side import (
    Comparison,
    Conditions,
    take_turns,
    worker,
)
from pfl_flower.support.seeding import generator
from pfl_flower.transport.inprocess import InProcessGrid

SHAPES = ((784, 1000), (1000, 200), (200, 10))
"""Inputs and outputs of the layers, which are six arrays."""
PARAMETERS = "987,210"
CLIENTS, BATCHES, BATCH = 10, 10, 32
TURNS, TRAINING_TURNS, QUICK_TURNS = 60, 8, 2
"""Rounds of each strategy, of which the fastest counts: whatever else runs only adds."""


def against_plain(conditions: Conditions) -> Iterator[Comparison]:
    """Compare rounds of ten clients under a checked FedAvg with plain ones."""
    for turns, batches, what in (
        (TURNS, 0, "no training"),
        (TRAINING_TURNS, BATCHES, f"each training on {BATCHES} batches of {BATCH}"),
    ):
        yield _row(conditions, QUICK_TURNS if conditions.quick else turns, batches, what)


def _row(conditions: Conditions, turns: int, batches: int, what: str) -> Comparison:
    def side() -> dict[str, Any]:
        return worker("checked", threads=1, turns=turns, batches=batches)

    found = take_turns(conditions, f"checked, {what}", {"both": side})["both"]
    ours, plain = ([one[name] for one in found] for name in ("checked", "plain"))
    added = [c / p - 1 for c, p in zip(ours, plain, strict=True)]
    lowest, highest = 100 * min(added), 100 * max(added)
    return Comparison.of_times(
        "b",
        f"a round of FedAvg, {CLIENTS} clients, {PARAMETERS} parameters, {what}, processor time",
        ("pfl.Checked(FedAvg)", ours),
        ("FedAvg", plain),
        f"the check adds {statistics.fmean(added):.1%} ({lowest:.1f} to {highest:.1f})",
    )


def measure(*, turns: int, batches: int) -> dict[str, Any]:
    """Return a round's least processor seconds, checked and plain, and what was taken out."""
    app = client_app(batches)
    first = ArrayRecord(network().state_dict())
    # No honest reply is beyond these limits, and each is looked at.
    checked = pfl.Checked(
        FedAvg(fraction_evaluate=0.0), max_norm=1e3, max_norm_ratio=10.0, max_examples=1e4
    )
    sides: dict[str, Strategy] = {"checked": checked, "plain": FedAvg(fraction_evaluate=0.0)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    last: dict[str, np.ndarray] = {}
    for turn in range(turns):
        # Who comes first has the other's memory to use: they take turns in that as well.
        for name in sorted(sides, reverse=bool(turn % 2)):
            grid = InProcessGrid(app, nodes=CLIENTS, run_config={})
            began = time.process_time()
            result = sides[name].start(grid, first, num_rounds=1)
            seconds[name].append(time.process_time() - began)
            last[name] = result.arrays.to_numpy_ndarrays()[0]
    return {
        **{name: min(some) for name, some in seconds.items()},
        "taken out": len(checked.faults),
        "apart": float(np.abs(last["checked"] - last["plain"]).max()),
    }


def network() -> nn.Sequential:
    """Return a network of about a million parameters, always the same one."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for inputs, outputs in SHAPES:
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def client_app(batches: int) -> ClientApp:
    """Return an app whose clients take so many steps; with none they send a model made before."""
    app = ClientApp()
    ready = {
        name: Array(value.numpy() + np.float32(1e-3))
        for name, value in network().state_dict().items()
    }
    train = _training(batches)

    @app.train()
    def answer(message: Message, context: Context) -> Message:
        arrays = message.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        made = train(arrays, context.node_id) if batches else ArrayRecord(ready)
        metrics = MetricRecord({"num-examples": BATCHES * BATCH, "loss": 1.0})
        return Message(RecordDict({"arrays": made, "metrics": metrics}), reply_to=message)

    return app


def _training(batches: int) -> Callable[[ArrayRecord, int], ArrayRecord]:
    def train(arrays: ArrayRecord, node: int) -> ArrayRecord:
        model = network()
        model.load_state_dict(arrays.to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        draw = generator(1, "benchmark", node)
        for _ in range(batches):
            points = torch.rand(BATCH, SHAPES[0][0], generator=draw)
            labels = torch.randint(SHAPES[-1][1], (BATCH,), generator=draw)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(points), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return ArrayRecord(model.state_dict())

    return train
