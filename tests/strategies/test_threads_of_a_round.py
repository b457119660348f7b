"""What a round computes is done by single threads, whole pieces of work each.

An operation that OpenMP shares among threads has the bits of their number, and leaves them waiting
busily for more: on two cores that took a third of Figure 1's round from the threads that worked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from torch.utils._python_dispatch import TorchDispatchMode

from pfl_flower.client_app import app as client_app
from pfl_flower.run.evaluation import Evaluation
from pfl_flower.run.problem import build_problem
from pfl_flower.support.threads import thread_limit
from pfl_flower.transport.broadcasts import pack_rho, unpack_rho
from pfl_flower.transport.inprocess import InProcessGrid
from strategies.parameter_server import ParameterServer
from strategies.round_record import RoundRecord
from tests.support.runs import configure

RUNS: Mapping[str, Mapping[str, Any]] = {
    "cga, adam": {"local_solver": "adam"},
    "omniscient": {"attack": "little-is-enough", "attack_knowledge": "omniscient"},
    "exact": {},
    "oracle": {"server_optimizer": "adam", "server_lr": 0.01, "estimator": "oracle"},
}


class _Shared(TorchDispatchMode):
    """Counts the operations that torch may share among several threads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.all = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.all += 1
        if torch.get_num_threads() > 1:
            self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", RUNS)
def test_no_operation_of_a_round_is_shared(name: str) -> None:
    keys = {"users": 9, "strategic_users": "8", "points_per_user": "20", "rounds": 3}
    config = configure(**{**keys, "evaluate_every": 1, **RUNS[name]})
    problem = build_problem(config)
    evaluation = Evaluation.of(problem)
    seen = _Shared()

    def after(record: RoundRecord) -> None:
        # What is written of a round, as far as it is computed.
        assert record.honest_sum.isfinite().all() and record.strategic_sum.isfinite().all()
        assert torch.get_num_threads() == 1

    def measured(round: int, arrays: ArrayRecord) -> MetricRecord | None:
        return MetricRecord(dict(evaluation(unpack_rho(arrays)))) if round else None

    with thread_limit(2):
        server = ParameterServer(problem, on_round=after)
        server.recruiter.settle = 0.0
        grid = InProcessGrid(client_app, nodes=2, run_config=config.flat())
        with ExitStack() as watched:
            begin = server.begin

            def begun(grid: Grid, arrays: ArrayRecord) -> ArrayRecord:
                arrays = begin(grid, arrays)
                watched.enter_context(seen)
                return arrays

            server.begin = begun  # type: ignore[method-assign]
            start = pack_rho(problem.initial)
            server.start(grid, start, num_rounds=config.rounds, evaluate_fn=measured)
        assert torch.get_num_threads() == 2
    assert seen.all > 100
    assert not seen.found
