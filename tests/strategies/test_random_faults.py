"""Faults drawn at random: each is counted for what it is, and costs its user a round at most."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from pfl_flower import client_app as client_module
from pfl_flower.aggregation.reports import Reason
from pfl_flower.client_app import app as client_app
from pfl_flower.run.left_out import left_out_of_rounds
from pfl_flower.run.problem import build_problem
from pfl_flower.support.errors import NodesMissingError
from pfl_flower.transport import inprocess
from pfl_flower.transport.broadcasts import pack_rho, unpack_broadcast
from pfl_flower.transport.inprocess import InProcessGrid
from strategies import recruiting
from strategies.parameter_server import ParameterServer
from strategies.round_record import counts
from strategies.server_state import ServerState
from tests.support.faults import ARRIVALS
from tests.support.rough_grid import (
    GONE,
    KINDS,
    RoughGrid,
    expected_notices,
    expected_reason,
    notices,
    resident,
    rough_run,
    serve,
    tally,
    without,
)
from tests.support.runs import configure, play, trajectory

FLAT_MB = 24.0
"""How much the memory of a process may grow in 1,500 rounds after the first 500."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


@pytest.mark.parametrize(
    ("regularizer", "rounds", "compare", "least"),
    [
        ("smooth-l2", 80, 80, 0),
        pytest.param("l2", 2000, 200, 10, marks=pytest.mark.slow),
    ],
)
def test_faults_at_random(regularizer: str, rounds: int, compare: int, least: int) -> None:
    """Every fault is counted under its reason; rho is that of a run without those it cost."""
    config = configure(rounds=rounds, regularizer=regularizer)
    used: list[float] = []
    outcome = rough_run(config, rate=0.3, compare=compare, watch=lambda _: used.append(resident()))
    assert [record.round for record in outcome.records] == list(range(1, rounds + 1))
    found = tally(outcome.plan, outcome.records)
    for kind, counted in found.items():
        assert set(counted.reasons) == {expected_reason(kind)}, kind
        assert counted.lost == (0 if expected_reason(kind) == "accepted" else counted.injected)
    assert min(found[kind].injected for kind in KINDS) >= least
    assert notices(outcome.records) == expected_notices(outcome.plan, rounds)
    assert outcome.moved <= 1e-9
    assert used[-1] - used[len(used) // 4] < FLAT_MB


@pytest.mark.parametrize("kind", [*ARRIVALS, GONE])
def test_how_a_reply_arrives(kind: str) -> None:
    """User 1's replies of rounds 2 and 3: lost for those rounds, or counted as if once."""
    config = configure(regularizer="l2")
    grid = RoughGrid({2: {1: kind}, 3: {1: kind}}, config)
    records = serve(config, grid)
    reason = expected_reason(kind)
    for record in records:
        hit = record.round in (2, 3) and reason != "accepted"
        assert [(fault.user, str(fault.reason)) for fault in record.rejections] == (
            [(1, reason)] if hit else []
        )
    lost = {2: {1}, 3: {1}} if reason != "accepted" else {}
    smooth = serve(config, RoughGrid({}, config), without(lost))
    assert (trajectory(records) - trajectory(smooth)).abs().max() <= 1e-9
    assert notices(records) == expected_notices(grid.plan, 10)


def test_events_are_in_the_metrics_of_the_round() -> None:
    class Reading(ParameterServer):
        seen: list[dict[str, object]] = []  # noqa: RUF012

        def aggregate_train(self, server_round, replies):  # type: ignore[no-untyped-def]
            arrays, metrics = super().aggregate_train(server_round, replies)
            self.seen.append(dict(metrics))
            return arrays, metrics

    config = configure(regularizer="l2", rounds=2)
    plan = {1: {0: "NaN", 1: "duplicated", 2: "NaN"}, 2: {0: "late", 3: "NaN metrics"}}
    serve(config, RoughGrid(plan, config), Reading)
    first, second = Reading.seen
    assert (first["rejections"], first["rejected-not-finite"], first["left-out-duplicate"]) == (
        2,
        2,
        1,
    )
    assert (second["rejected-no-reply"], second["left-out-absurd"]) == (1, 2)


def test_a_slow_client_costs_its_own_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs longer than reply-timeout in rounds 2 and 4, by a clock that is not the wall's."""
    clock = [0.0]
    monkeypatch.setattr(inprocess.time, "monotonic", lambda: clock[0])
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        told = unpack_broadcast(message.content, torch.device("cpu"))
        slow = told.users == (1,) and told.round in (2, 4)
        clock[0] += 31.0 if slow else 29.0
        return client_app(message, context)

    for register in (app.query, app.evaluate):
        register()(client_app)
    config = configure(reply_timeout=30.0)
    grid = InProcessGrid(app, nodes=5, run_config=config.flat())
    records = serve(config, grid)
    lost = [record.round for record in records if record.rejections]
    assert lost == [2, 4]
    for round in lost:
        (fault,) = records[round - 1].rejections
        assert (fault.user, fault.reason) == (1, Reason.NO_REPLY)
    smooth = serve(config, RoughGrid({}, config), without({2: {1}, 4: {1}}))
    assert (trajectory(records) - trajectory(smooth)).abs().max() <= 1e-9


class Leaving(InProcessGrid):
    """Nodes that are there in some rounds only; the server looks once a round."""

    def __init__(self, config, nodes: int, away: dict[int, set[int]]) -> None:  # type: ignore[no-untyped-def]
        super().__init__(client_app, nodes=nodes, run_config=config.flat())
        self.away, self.round = away, -1

    def get_node_ids(self) -> Iterable[int]:
        self.round += 1
        return [node for node in self.contexts if node not in self.away.get(self.round, set())]


def serve_on(config, grid, states=None, saved=None):  # type: ignore[no-untyped-def]
    problem, records = build_problem(config), []
    keep = None if states is None else states.append
    server = ParameterServer(problem, on_round=records.append, on_checkpoint=keep, saved=saved)
    server.recruiter.settle = 0.0
    server.start(grid, pack_rho(problem.initial), num_rounds=config.rounds)
    return records


def test_users_of_a_node_that_is_gone_go_to_one_that_came() -> None:
    """A SuperNode that was restarted has another id: it takes over what it acted for before."""
    config = configure(regularizer="l2", min_nodes=2)
    away = {**{t: {1002} for t in range(3)}, **{t: {1000} for t in range(3, 9)}}
    records = serve_on(config, Leaving(config, 3, away))
    assert all(len(record.accepted) == 5 for record in records)
    still = trajectory(serve_on(config, Leaving(config, 2, {})))
    assert (trajectory(records) - still).abs().max() <= 1e-9


@pytest.mark.parametrize(("role", "accepted"), [("auto", 5), ("honest", 4), ("strategic", 5)])
def test_strategic_users_go_to_no_node_that_swore_to_be_honest(role: str, accepted: int) -> None:
    config = configure(regularizer="l2")
    grid = Leaving(config, 3, {**{t: {1002} for t in range(3)}, **{t: {1001} for t in range(3, 9)}})
    grid.contexts[1002].node_config["role"] = role
    records = serve_on(config, grid)
    assert [len(record.accepted) for record in records[2:]] == [accepted] * 4


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only waiting moves."""
    clock = [0.0]
    monkeypatch.setattr(recruiting.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(
        recruiting.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds)
    )
    return clock


def test_too_few_nodes_are_waited_for(patience: list[float]) -> None:
    """Both are needed; the server looks five times in vain, then goes on without a loss."""
    config = configure(regularizer="l2", min_nodes=2, node_timeout=10.0)
    records = serve_on(config, Leaving(config, 2, {t: {1001} for t in range(3, 8)}))
    assert all(len(record.accepted) == 5 for record in records)
    assert patience[0] == pytest.approx(5 * recruiting.POLL_SECONDS)
    assert len(records) == 6


def test_after_the_limit_the_run_ends_with_its_state_saved(
    patience: list[float], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    """And goes on from there when the nodes are back, to the same rho."""
    config = configure(
        regularizer="l2",
        min_nodes=2,
        node_timeout=1.0,
        output_dir=str(tmp_path),
        checkpoint_every=50,
    )
    states: list[ServerState] = []
    gone = {t: {1001} for t in range(4, 99)}
    with pytest.raises(NodesMissingError) as caught:
        serve_on(config, Leaving(config, 2, gone), states)
    assert str(caught.value) == (
        "min-nodes = 2: 1 are left in round 4, and no others came within node-timeout = 1 s; "
        "resume = auto goes on from here"
    )
    assert patience[0] == pytest.approx(1.0, abs=0.3)
    assert [state.round for state in states] == [3]
    rest = serve_on(config, Leaving(config, 2, {}), [], states[0])
    still = trajectory(serve_on(config, Leaving(config, 2, {}), []))
    assert [record.round for record in rest] == [4, 5, 6]
    assert (trajectory(rest) - still[3:]).abs().max() <= 1e-9


def test_the_run_whose_nodes_left_has_a_checkpoint(
    patience: list[float], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    """Through the ServerApp: one line, and a file to go on from."""
    from pfl_flower.server_app import run
    from strategies.checkpoint import CHECKPOINT_FILE

    monkeypatch.setattr(recruiting, "SETTLE_SECONDS", 0.0)
    config = configure(min_nodes=2, node_timeout=1.0, output_dir=str(tmp_path))
    with pytest.raises(NodesMissingError):
        leaving = Leaving(config, 2, {t: {1001} for t in range(4, 99)})
        run(leaving, build_problem(config), folder=config.folder())
    assert (config.folder() / CHECKPOINT_FILE).exists()


def test_hostile_introductions_are_left_out() -> None:
    """A node that claims to be something else, or whose query fails, gets no users."""
    app = ClientApp()

    @app.query()
    def introduce(message: Message, context: Context) -> Message:
        reply = client_module.app(message, context)
        if context.node_id == 1001:
            reply.content.config_records["config"]["role"] = "king"
        if context.node_id == 1002:
            raise RuntimeError("no")
        if context.node_id == 1003:
            reply.content["config"] = type(reply.content["config"])({"role": 7, "holds": "all"})
        if context.node_id == 1004:
            del reply.content["config"]
        return reply

    for register in (app.train, app.evaluate):
        register()(client_app)
    records = play(configure(strategic_users="none"), nodes=5, app=app)
    assert all(len(record.accepted) == 5 for record in records)
    assert torch.isfinite(trajectory(records)).all()


def test_nodes_that_are_all_hostile_end_the_run_in_one_line() -> None:
    app = ClientApp()

    @app.query()
    def introduce(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        reply.content.config_records["config"]["role"] = "king\nof all"
        return reply

    for register in (app.train, app.evaluate):
        register()(client_app)
    with pytest.raises(NodesMissingError, match="min-nodes = 1: 0 of 2 nodes can take part"):
        play(configure(), nodes=2, app=app)


def test_a_node_that_cannot_take_part_is_left_out_and_named() -> None:
    config = configure(rounds=2)
    records = play(config, nodes=3, node_configs={1: {"role": "king"}})
    whole = play(config, nodes=2)
    assert torch.equal(trajectory(records), trajectory(whole))
    assert [record.notices for record in records] == [{"cannot-1001": 1}, {}]
    rows = f"round,notices\n1,{counts(records[0].notices)}\n2,\n"
    said = "nodes that could not take part, as the log says: node 1001: 1 (round 1)"
    assert [str(one) for one in left_out_of_rounds(rows)] == [said]
