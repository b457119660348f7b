"""The checking wrapper: what is taken out, what is left; honest rounds stay as they are."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, Strategy

import pfl_flower as pfl
from pfl_flower.interop.checked import TooFewRepliesError
from pfl_flower.interop.checks import PIECE, Limits, Sound, sound_or_fault
from tests.interop.apps import CLIENTS, SIZE, Forge, client_app, flat, layers, models, packed, play

BAD = 2
"""The partition whose replies are wrong."""


def metrics(**changed: Any) -> dict[str, Any]:
    given = {"num-examples": 12, "loss": 1.0, **changed}
    return {"metrics": MetricRecord({name: v for name, v in given.items() if v is not None})}


def arrays(**changed: Any) -> dict[str, Any]:
    made = {**layers(np.ones(SIZE)), **changed}
    return {"arrays": packed({name: v for name, v in made.items() if v is not None})}


def tampered(data: bytes, shape: tuple[int, ...] = (3, 1)) -> dict[str, Any]:
    record = packed(layers(np.ones(SIZE)))
    record["weight"].data = data
    record["weight"].shape = shape
    return {"arrays": record}


def header(text: str, body: bytes = b"") -> bytes:
    """An array in numpy's format with a header of one's own."""
    padded = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + body


def claims(shape: str, kind: str = "<f8") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("form", {"arrays": None}),
    ("form", {"more": packed({"w": np.ones(2)})}),
    ("form", {"metrics": None}),
    ("form", {"more": MetricRecord({"num-examples": 1})}),
    ("layers", arrays(bias=None)),
    ("layers", arrays(more=np.ones(1))),
    ("layers", arrays(weight=np.ones((4, 1)))),
    ("layers", arrays(weight=np.ones(3))),
    ("layers", arrays(weight=np.ones((3, 1), dtype=np.float32))),
    ("layers", arrays(weight=np.ones((3, 1), dtype=complex))),
    ("layers", arrays(weight=np.ones((3, 1), dtype=np.int64)[:2])),
    ("layers", tampered(b"")),
    ("layers", tampered(b"garbage" * 40)),
    ("layers", tampered(header(claims("(3, 1)")))),
    ("layers", tampered(header(claims("(3, 1)"), b"\0" * 25))),
    ("layers", tampered(header(claims("(10**12, 10**12)")))),
    ("layers", tampered(header(claims("(1000000000000, 1000000000000)")))),
    ("layers", tampered(header(claims("(-3, -1)"), b"\0" * 24))),
    ("layers", tampered(header(claims("(3, 1)", "|O"), b"\0" * 24))),
    ("layers", tampered(header("(" * 100), (3, 1))),
    ("not-finite", arrays(weight=np.array([[1.0], [np.nan], [1.0]]))),
    ("not-finite", arrays(bias=np.array([np.inf]))),
    ("not-finite", arrays(bias=np.array([-np.inf]))),
    ("not-finite", arrays(bias=np.array([1e300]))),
    ("norm", arrays(bias=np.array([1e6]))),
    ("norm", arrays(weight=np.full((3, 1), -20.0))),
    ("examples", metrics(**{"num-examples": None})),
    ("examples", metrics(**{"num-examples": 0})),
    ("examples", metrics(**{"num-examples": -5})),
    ("examples", metrics(**{"num-examples": math.nan})),
    ("examples", metrics(**{"num-examples": math.inf})),
    ("examples", metrics(**{"num-examples": [1, 2]})),
    ("examples", metrics(**{"num-examples": 1001})),
    ("metrics", metrics(loss=math.nan)),
    ("metrics", metrics(loss=[1.0, math.inf])),
    ("metrics", metrics(loss=[1.0, 2.0])),
    ("metrics", metrics(loss=None)),
    ("metrics", metrics(more=1)),
    ("metrics", {"metrics": None, "other": metrics()["metrics"]}),
    ("metrics", {"arrays": None, "other": packed(layers(np.ones(SIZE)))}),
]


def forging(made: dict[str, Any]) -> Forge:
    return lambda partition, values: made if partition == BAD else {}


def checked(**given: Any) -> pfl.Checked:
    limits = {"max_norm": 10.0, "max_examples": 1000.0, **given}
    return pfl.Checked(FedAvg(fraction_evaluate=0.0), **limits)


def without(bad: int) -> list[np.ndarray]:
    """What FedAvg makes of the other clients."""

    class Others(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            kept = [one for one in replies if one.metadata.src_node_id != 1000 + bad]
            return super().aggregate_train(server_round, kept)

    return models(client_app(), Others(fraction_evaluate=0.0))


@pytest.mark.parametrize(("reason", "made"), WRONG)
def test_a_wrong_reply_is_taken_out_and_the_round_goes_on(
    reason: str, made: dict[str, Any]
) -> None:
    strategy = checked()
    found = models(client_app(forge=forging(made)), strategy)
    np.testing.assert_allclose(found, without(BAD), rtol=1e-12)
    assert [(number, fault.node, fault.reason) for number, fault in strategy.faults] == [
        (number, 1000 + BAD, reason) for number in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    "made",
    [
        tampered(header(claims("(3, 1)", "|O"), b"\0" * 24)),
        tampered(header(claims("(9, 9)"), b"\0" * 24)),
        arrays(bias=np.array([np.nan])),
    ],
)
def test_layers_of_any_shape_are_still_read_with_care(made: dict[str, Any]) -> None:
    class Trees(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            return None, None

    strategy = pfl.Checked(Trees(fraction_evaluate=0.0), same_layers=False)
    play(client_app(forge=forging(made)), strategy, rounds=1)
    assert [fault.node for _, fault in strategy.faults] == [1000 + BAD]
    grown = pfl.Checked(Trees(fraction_evaluate=0.0), same_layers=False)
    play(client_app(forge=forging(arrays(weight=np.ones((9, 1))))), grown, rounds=1)
    assert not grown.faults


def test_every_reason_has_a_row() -> None:
    from pfl_flower.interop.checks import REASONS

    # Secrets have a file of tests of their own.
    assert {reason for reason, _ in WRONG} | {"error", "stranger", "forged"} == set(REASONS)


def test_errors_are_taken_out_and_metrics_say_how_many() -> None:
    def forge(partition: int, values: Any) -> Any:
        if partition == BAD:
            raise RuntimeError("no\nmore")
        return arrays(bias=np.array([np.nan])) if partition == 4 else {}

    strategy = checked()
    result, _ = play(client_app(forge=forge), strategy, rounds=2)
    said = dict(result.train_metrics_clientapp[2])
    assert said["taken-out"] == 2
    assert said["taken-out-error"] == said["taken-out-not-finite"] == 1 and "loss" in said
    honest, _ = play(client_app(), checked(), rounds=1)
    assert honest.train_metrics_clientapp[1]["taken-out"] == 0


def test_nobody_counts_twice_and_no_stranger_counts() -> None:
    strategy = checked()

    class Doubling(FedAvg):
        seen = 0

        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            replies = list(replies)
            Doubling.seen = len(replies)
            return super().aggregate_train(server_round, replies)

    strategy = pfl.Checked(Doubling(fraction_evaluate=0.0))
    aggregate = strategy.aggregate_train

    def twice(server_round: int, replies: Any) -> Any:
        replies = list(replies)
        strategy._sent.pop(1000 + BAD)
        return aggregate(server_round, [*replies, *replies])

    strategy.aggregate_train = twice  # type: ignore[method-assign]
    play(client_app(), strategy, rounds=1)
    assert Doubling.seen == CLIENTS - 1
    details = [fault.detail for _, fault in strategy.faults]
    assert details.count("it was not asked") == 2 and details.count("it replied twice") == 4


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_a_server_that_sends_wider_numbers_than_it_gets_is_no_fault(kind: str) -> None:
    """FedAdam's steps are taken in float64: from the second round on that is what it sends."""

    class Narrow(FedAdam):
        def configure_train(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any
        ) -> Any:
            wide = packed({name: array.numpy() for name, array in arrays.items()})
            return super().configure_train(server_round, wide, config, grid)

    def forge(partition: int, values: dict[str, np.ndarray]) -> Any:
        small = {n: v if n == "count" else v.astype(kind) for n, v in values.items()}
        if partition == BAD:
            small["bias"] = small["bias"].astype("float32" if kind != "float32" else "float16")
        return {"arrays": packed(small)}

    strategy = pfl.Checked(Narrow(fraction_evaluate=0.0))
    play(client_app(forge=forge), strategy, rounds=3, kind="float32")
    assert [(fault.node, fault.reason) for _, fault in strategy.faults] == [
        (1000 + BAD, "layers")
    ] * 3
    assert "bias" in strategy.faults[0][1].detail and "unlike most" in strategy.faults[0][1].detail


@pytest.mark.parametrize("strategy", [FedAvg, FedAdam, FedMedian])
def test_an_honest_run_is_the_same_to_the_bit(strategy: Any) -> None:
    found = []
    for wrap in (False, True):
        random.seed(1)
        inner: Strategy = strategy(fraction_evaluate=0.0)
        found.append(models(client_app(), pfl.Checked(inner, max_norm=10.0) if wrap else inner))
    assert np.array_equal(found[0], found[1])


def test_the_median_bounds_what_is_too_long() -> None:
    def forge(partition: int, values: dict[str, np.ndarray]) -> Any:
        return arrays(bias=values["bias"] + 30.0) if partition == BAD else {}

    strategy = pfl.Checked(FedAvg(fraction_evaluate=0.0), max_norm_ratio=5.0)
    models(client_app(forge=forge), strategy, rounds=1)
    assert [fault.reason for _, fault in strategy.faults] == ["norm"]
    idle = pfl.Checked(FedAvg(fraction_evaluate=0.0), max_norm_ratio=5.0)
    models(client_app(pfl.attack_mod("free-rider", partitions=[0, 1, 2])), idle, rounds=1)
    assert not idle.faults


def test_too_few_are_an_error_that_keeps_the_model_and_the_state() -> None:
    def forge(partition: int, values: Any) -> Any:
        return arrays(bias=np.array([np.nan])) if forge.rounds else {}  # type: ignore[attr-defined]

    forge.rounds = 0  # type: ignore[attr-defined]
    inner = FedAdam(fraction_evaluate=0.0)
    strategy = pfl.Checked(inner, min_replies=2)
    sent: list[np.ndarray] = []

    class Loop(pfl.Checked):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            made = super().aggregate_train(server_round, replies)
            forge.rounds = 1  # type: ignore[attr-defined]
            assert made[0] is not None
            sent.append(flat(made[0]))
            return made

    strategy = Loop(inner, min_replies=2)
    with pytest.raises(TooFewRepliesError, match="round 2: 0 right replies, 2 are needed") as error:
        play(client_app(forge=forge), strategy, rounds=3)
    assert "5 not-finite" in str(error.value) and "\n" not in str(error.value)
    np.testing.assert_array_equal(flat(error.value.arrays), sent[0])
    assert inner.m_t is not None and len(error.value.faults) == CLIENTS


def test_a_strategy_with_a_loop_of_its_own_is_checked_as_well() -> None:
    class Own(FedAvg):
        loops = 0

        def start(self, *args: Any, **options: Any) -> Any:
            Own.loops += 1
            return super().start(*args, **options)

    inner = Own(fraction_evaluate=0.0)
    strategy = pfl.Checked(inner)
    forge = forging(arrays(bias=np.array([np.nan])))
    result, _ = play(client_app(forge=forge), strategy, rounds=2)
    assert Own.loops == 1 and len(strategy.faults) == 2
    assert np.isfinite(flat(result.arrays)).all()
    assert not {"configure_train", "aggregate_train"} & set(vars(inner))


def test_evaluations_are_checked() -> None:
    from flwr.app import Message, RecordDict

    app = client_app()
    inner = FedAvg()
    strategy = pfl.Checked(inner)
    aggregate = strategy.aggregate_evaluate

    def forged(server_round: int, replies: Any) -> Any:
        replies = list(replies)
        wrong = MetricRecord({"num-examples": 10, "accuracy": math.nan})
        replies[0].content = RecordDict({"metrics": wrong})
        assert isinstance(replies[0], Message)
        return aggregate(server_round, replies)

    strategy.aggregate_evaluate = forged  # type: ignore[method-assign]
    result, _ = play(app, strategy, rounds=1)
    said = dict(result.evaluate_metrics_clientapp[1])
    assert said == {"accuracy": 0.5, "taken-out": 1, "taken-out-metrics": 1}


def test_what_the_node_was_sent_is_what_counts() -> None:
    """Two nodes with models of their own: each is compared with what it got."""

    class Two(FedAvg):
        def configure_train(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any
        ) -> Any:
            messages = list(super().configure_train(server_round, arrays, config, grid))
            for message in messages:
                if message.metadata.dst_node_id == 1001:
                    far = packed(layers(np.full(SIZE, 1000.0)))
                    record = message.content.copy()
                    record["arrays"] = far
                    message.content = record
            return messages

    strategy = pfl.Checked(Two(fraction_evaluate=0.0), max_norm=100.0)
    models(client_app(), strategy, rounds=1)
    assert [(fault.node, fault.reason) for _, fault in strategy.faults] == [(1001, "norm")]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"max_norm": 0}, "max_norm = 0: expected a number above 0"),
        ({"max_norm": "5"}, "max_norm = 5"),
        ({"max_norm": math.inf}, "max_norm = inf"),
        ({"max_norm_ratio": 0.5}, "max_norm_ratio = 0.5: expected a number from 1"),
        ({"max_examples": -1}, "max_examples = -1"),
        ({"min_replies": 0}, "min_replies = 0"),
        ({"min_replies": True}, "min_replies = True"),
    ],
)
def test_wrong_limits_are_one_line(given: dict[str, Any], line: str) -> None:
    with pytest.raises(pfl.ConfigError, match=line):
        pfl.Checked(FedAvg(), **given)


def test_a_check_around_a_check_weighs_by_the_same_metric() -> None:
    inner = pfl.RobustFedAvg("median", weighted_by_key="points")
    assert pfl.Checked(inner).limits.weighted_by == "points"


def test_what_is_no_strategy_is_one_line() -> None:
    with pytest.raises(pfl.ConfigError, match="strategy = 5: expected a flwr"):
        pfl.Checked(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, PIECE - 1, PIECE, 2 * PIECE + 3])
@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_lengths_are_those_of_all_numbers_whatever_their_size(size: int, kind: str) -> None:
    """Of layers of several pieces, and of squares beyond both ends of the layer's own range."""
    before = np.random.default_rng(size).normal(size=size).astype(kind)
    limits = Limits(norm=None, ratio=None, examples=None, weighted_by="n", same_layers=True)
    big, tiny = {"float16": (300.0, 1e-4), "float32": (1e25, 1e-25), "float64": (1e3, 1e-9)}[kind]
    for scale, start in ((1.0, before), (big, before), (tiny, 0 * before)):
        after = start.copy()
        after[-1] += np.array(scale, kind)
        content = RecordDict({"arrays": packed({"w": after})})
        found = sound_or_fault(content, {"w": start}, limits)
        right = np.linalg.norm(after.astype(float) - start.astype(float))
        assert isinstance(found, Sound) and right > 0
        assert found.norm == pytest.approx(right, rel=1e-5)
    after[-1] = np.nan
    found = sound_or_fault(RecordDict({"arrays": packed({"w": after})}), {"w": before}, limits)
    assert not isinstance(found, Sound) and found[0] == "not-finite"


def test_a_strategy_gets_its_own_methods_back_after_its_loop() -> None:
    class Own(FedAvg):
        def start(self, *args: Any, **options: Any) -> Any:
            return super().start(*args, **options)

    inner = Own(fraction_evaluate=0.0)
    kept = inner.aggregate_train
    inner.aggregate_train = kept  # type: ignore[method-assign]
    play(client_app(), pfl.Checked(inner), rounds=1)
    assert vars(inner)["aggregate_train"] is kept
    assert "configure_train" not in vars(inner)
