"""Apps as strangers write them: convex clients whose optimum is known, with Flower alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from pfl_flower.transport.inprocess import InProcessGrid

CLIENTS, SIZE = 5, 4
PULL = 0.5
"""How far a client's local steps go towards its own optimum."""
NAMES = {"arrays": "arrays", "metrics": "metrics"}

Forge = Callable[[int, dict[str, np.ndarray]], Mapping[str, Any]]


def optimum(partition: int) -> np.ndarray:
    """Where a client's loss ``||theta - c_n||^2 / 2`` is least."""
    return np.random.default_rng(partition).normal(size=SIZE)


def layers(vector: np.ndarray, kind: str = "float64") -> dict[str, np.ndarray]:
    """A model of two floating layers and a counter."""
    return {
        "weight": vector[:3].reshape(3, 1).astype(kind),
        "count": np.array(7, dtype=np.int64),
        "bias": vector[3:].astype(kind),
    }


def flat(record: ArrayRecord) -> np.ndarray:
    """The floating layers as a vector."""
    parts = [record[name].numpy().ravel() for name in ("weight", "bias")]
    return np.concatenate(parts).astype(np.float64)


def packed(values: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in values.items()})


def client_app(
    *mods: Any,
    forge: Forge | None = None,
    noise: float = 0.0,
    examples: Callable[[int], Any] = lambda partition: 10 + partition,
    record: str = "arrays",
) -> ClientApp:
    """Return an app whose clients go half of the way to their own optimum.

    ``forge`` changes what a partition returns; ``noise`` is drawn from numpy's global generator.
    """
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        assert not [name for name in context.state if name.startswith("pfl")], "seen by the app"
        arrays = next(one for one in message.content.values() if isinstance(one, ArrayRecord))
        kind = str(arrays["weight"].numpy().dtype)
        rho = flat(arrays)
        theta = rho + PULL * (optimum(partition) - rho)
        if noise:
            theta = theta + noise * np.random.normal(size=SIZE)
        seen = context.state.get("own", MetricRecord({"rounds": 0}))
        context.state["own"] = MetricRecord({"rounds": int(seen["rounds"]) + 1})
        made: dict[str, Any] = {record: packed(layers(theta, kind))}
        made["metrics"] = MetricRecord(
            {"num-examples": examples(partition), "loss": float(np.square(theta).sum())}
        )
        if forge is not None:
            made = {**made, **forge(partition, layers(theta, kind))}
        return Message(
            RecordDict({n: v for n, v in made.items() if v is not None}), reply_to=message
        )

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 10, "accuracy": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def play(
    app: ClientApp,
    strategy: Strategy | None = None,
    *,
    rounds: int = 3,
    clients: int = CLIENTS,
    kind: str = "float64",
    node_configs: Mapping[int, Mapping[str, Any]] | None = None,
) -> tuple[Result, InProcessGrid]:
    """Run a strategy over the clients, from the model 1, 1, 1, 1."""
    grid = InProcessGrid(app, nodes=clients, run_config={}, node_configs=node_configs)
    chosen = strategy or FedAvg(fraction_evaluate=0.0)
    first = packed(layers(np.ones(SIZE), kind))
    return chosen.start(grid, first, num_rounds=rounds), grid


def models(app: ClientApp, strategy: Strategy | None = None, **options: Any) -> list[np.ndarray]:
    """Return the global model after each round."""
    seen: list[np.ndarray] = []
    chosen = strategy or FedAvg(fraction_evaluate=0.0)
    aggregate = chosen.aggregate_train

    def noted(server_round: int, replies: Any) -> Any:
        arrays, metrics = aggregate(server_round, replies)
        seen.append(flat(arrays) if arrays is not None else seen[-1])
        return arrays, metrics

    chosen.aggregate_train = noted  # type: ignore[method-assign]
    play(app, chosen, **options)
    return seen
