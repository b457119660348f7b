from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from pfl_flower.transport.inprocess import InProcessGrid
from tests.support.runs import configure, play, trajectory

DIGITS = {
    "dataset": "digits",
    "users": 11,
    "points_per_user": "100",
    "strategic_users": "10",
    "nu": 0.001,
    "rounds": 10,
}


@pytest.mark.parametrize("regularizer", ["squared-l2", "l2", "smooth-l2"])
def test_the_number_of_nodes_does_not_matter(regularizer: str) -> None:
    config = configure(regularizer=regularizer)
    runs = [trajectory(play(config, nodes=nodes)) for nodes in (1, 2, 5, 11)]
    for other in runs[1:]:
        assert (other - runs[0]).abs().max() <= 1e-9


def test_the_number_of_nodes_does_not_matter_on_digits() -> None:
    config = configure(**DIGITS)
    runs = [trajectory(play(config, nodes=nodes)) for nodes in (1, 2, 5, 11)]
    assert runs[0].abs().max() > 0.1
    for other in runs[1:]:
        assert (other - runs[0]).abs().max() <= 1e-9


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("order", ["local-first", "simultaneous"])
@pytest.mark.parametrize("batch", [0, 8])
def test_single_steps_do_not_depend_on_the_nodes_either(
    solver: str, order: str, batch: int
) -> None:
    config = configure(local_solver=solver, update_order=order, batch_size=batch)
    runs = [trajectory(play(config, nodes=nodes)) for nodes in (1, 5)]
    assert (runs[0] - runs[1]).abs().max() <= 1e-9


def test_honest_and_poisoned_users_of_one_node_do_not_share_a_memory() -> None:
    config = configure(attack="data", local_solver="adam", server_lr=0.05)
    runs = [trajectory(play(config, nodes=nodes)) for nodes in (1, 5)]
    assert (runs[0] - runs[1]).abs().max() <= 1e-9


def test_the_update_orders_differ_by_when_theta_moves() -> None:
    """Simultaneous reports of round 1 come from theta_0 = rho_0: 0 under squared l2."""
    first = play(configure(local_solver="sgd", strategic_users="none"))[0]
    both = play(configure(local_solver="sgd", strategic_users="none", update_order="simultaneous"))[
        0
    ]
    assert not both.rho.any()
    assert first.rho.any()


def test_the_seed_matters() -> None:
    runs = [trajectory(play(configure(seed=seed))) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def counting_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        count = context.state.config_records.get("count", ConfigRecord({"n": 0}))
        context.state["count"] = ConfigRecord({"n": int(count["n"]) + 1})  # type: ignore[arg-type]
        message.content.config_records["ask"]["seen"] = True
        if message.content.config_records["ask"]["fail"]:
            raise ValueError("no")
        if message.content.config_records["ask"]["sleep"]:
            time.sleep(0.3)
        return Message(RecordDict({"count": context.state["count"]}), reply_to=message)

    return app


def ask(node: int, *, fail: bool = False, sleep: bool = False) -> Message:
    content = ConfigRecord({"fail": fail, "sleep": sleep, "seen": False})
    return Message(RecordDict({"ask": content}), node, MessageType.TRAIN)


def test_an_exception_is_an_error_reply_and_its_state_is_dropped() -> None:
    grid = InProcessGrid(counting_app(), nodes=2, run_config={})
    counts = []
    for fail in (False, True, False):
        message = ask(1000, fail=fail)
        (reply,) = grid.send_and_receive([message])
        assert reply.metadata.reply_to_message_id == message.metadata.message_id
        if fail:
            assert reply.has_error()
            assert reply.error.code == 2
            assert "ValueError" in str(reply.error.reason)
        else:
            counts.append(reply.content.config_records["count"]["n"])
    assert counts == [1, 2]
    assert "count" not in grid.contexts[1001].state


def test_messages_are_not_shared_across_nodes() -> None:
    grid = InProcessGrid(counting_app(), nodes=2, run_config={})
    shared = RecordDict({"ask": ConfigRecord({"fail": False, "sleep": False, "seen": False})})
    messages = [Message(shared, node, MessageType.TRAIN) for node in (1000, 1001)]
    replies = list(grid.send_and_receive(messages))
    assert shared.config_records["ask"]["seen"] is False
    replies[0].content.config_records["count"]["n"] = 99
    assert grid.contexts[1000].state.config_records["count"]["n"] == 1


def test_a_slow_reply_and_an_absent_node() -> None:
    grid = InProcessGrid(counting_app(), nodes=2, run_config={})
    replies = list(grid.send_and_receive([ask(1000, sleep=True), ask(1001)], timeout=0.2))
    assert [reply.metadata.src_node_id for reply in replies] == [1001]
    (lost,) = grid.send_and_receive([ask(5)])
    assert lost.error.code == 5


def test_the_engine_needs_no_ray() -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from tests.support.runs import configure, play\n"
        "assert len(play(configure(rounds=2))) == 2"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_big_messages_are_copied_by_reference_of_their_bytes() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    grid = InProcessGrid(app, nodes=1, run_config={})
    record = ArrayRecord([torch.zeros(1_000_000).numpy()])
    (reply,) = grid.send_and_receive(
        [Message(RecordDict({"arrays": record}), 1000, MessageType.TRAIN)]
    )
    sent, received = record["0"], reply.content.array_records["arrays"]["0"]
    assert received is not sent
    assert received.data is sent.data


def test_the_two_layer_network_runs_and_learns() -> None:
    config = configure(
        dataset="digits",
        model="two-layer",
        hidden=8,
        dtype="float32",
        local_solver="adam",
        users=3,
        points_per_user="200",
        strategic_users="none",
        server_lr=0.1,
        rounds=25,
    )
    from pfl_flower.run.evaluation import Evaluation
    from pfl_flower.run.problem import build_problem

    records = play(config, nodes=2)
    assert records[-1].rho.shape == (8 * 65 + 10 * 9,)
    assert Evaluation.of(build_problem(config))(records[-1].rho)["accuracy_true"] > 0.5
