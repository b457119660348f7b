"""Small runs shared by the tests of the Flower side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from pfl_flower.client_app import app as client_app
from pfl_flower.data.table import DATASETS
from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.problem import build_problem
from pfl_flower.transport.broadcasts import pack_rho, unpack_broadcast
from pfl_flower.transport.inprocess import InProcessGrid
from strategies.parameter_server import ParameterServer
from strategies.round_record import RoundRecord

CPU = torch.device("cpu")

Tamper = Callable[[Message, Message], Message]
"""From a broadcast and the honest reply to it, to the reply that is sent."""

TINY: Mapping[str, Any] = {
    "dataset": "synthetic-logistic",
    "features": 6,
    "users": 5,
    "points-per-user": "40,20,30",
    "strategic-users": "4",
    "nu": 0.1,
    "rounds": 6,
    "evaluate-every": 0,
}


def configure(**changes: Any) -> RunConfig:
    """Return a tiny configuration; keys are spelled with underscores here."""
    spelled = {key.replace("_", "-"): value for key, value in changes.items()}
    base = dict(TINY)
    if DATASETS.row(spelled.get("dataset", TINY["dataset"])) is DATASETS["digits"]:
        del base["features"]
    return parse_config({**base, **spelled})


def tampering(user: int, tamper: Tamper) -> ClientApp:
    """Return a client app that is honest but for the node that acts for ``user``."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if user in unpack_broadcast(message.content, CPU).users:
            return tamper(message, reply)
        return reply

    for register in (app.query, app.evaluate):
        register()(client_app)
    return app


def play(
    config: RunConfig,
    *,
    nodes: int = 2,
    app: ClientApp = client_app,
    strategy: type[ParameterServer] = ParameterServer,
    node_configs: Mapping[int, Mapping[str, Any]] | None = None,
) -> list[RoundRecord]:
    """Run the strategy in this process and return the record of every round."""
    problem = build_problem(config)
    grid = InProcessGrid(app, nodes=nodes, run_config=config.flat(), node_configs=node_configs)
    records: list[RoundRecord] = []
    server = strategy(problem, on_round=records.append)
    server.recruiter.settle = 0.0
    server.start(grid, pack_rho(problem.initial), num_rounds=config.rounds)
    return records


def trajectory(records: list[RoundRecord]) -> Tensor:
    """Return rho of every round, ``(rounds, d)``."""
    return torch.stack([record.rho for record in records])
