"""The client mod: what it sends, on which nodes, and that it is not there on the others."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

import pfl_flower as pfl
from pfl_flower.attacks.attack import Observation
from pfl_flower.attacks.untargeted import least_noticed
from pfl_flower.interop import table
from pfl_flower.interop.table import MOD_ATTACKS
from pfl_flower.interop.who import Attackers
from pfl_flower.support.seeding import seed_everything
from tests.interop import apps
from tests.interop.apps import CLIENTS, PULL, SIZE, client_app, flat, models, optimum, play

WHO = 3
RHO = np.ones(SIZE)
OWN = PULL * (optimum(WHO) - RHO)
"""How far the honest client goes in round 1."""
TARGET = {"weight": np.full((3, 1), 5.0), "bias": np.full(1, 5.0)}
OTHERS = [0, 1, 2, 4]
ROWS = np.stack([PULL * (optimum(n) - RHO) for n in (WHO, *OTHERS)])


def sent(mod: Any, who: int = WHO, kind: str = "float64", **app: Any) -> tuple[np.ndarray, Message]:
    """What a partition sends in round 1, as a model and as a message."""
    replies: dict[int, Message] = {}

    class Seen(apps.FedAvg):
        def aggregate_train(self, server_round: int, replies_: Any) -> Any:
            for reply in replies_:
                replies.setdefault(reply.metadata.src_node_id - 1000, reply)
            return None, None

    play(client_app(mod, **app), Seen(fraction_evaluate=0.0), rounds=1, kind=kind)
    record = next(one for one in replies[who].content.values() if isinstance(one, ArrayRecord))
    return flat(record), replies[who]


def min_max() -> np.ndarray:
    """Min-max of Shejwalkar and Houmansadr by bisection, for the ways of the five clients."""
    mean, away = ROWS.mean(axis=0), ROWS.std(axis=0, ddof=1)
    limit = max(np.linalg.norm(a - b) for a in ROWS for b in ROWS)
    low, high = 0.0, 100.0
    for _ in range(80):
        gamma = (low + high) / 2
        inside = max(np.linalg.norm(mean + gamma * away - row) for row in ROWS) <= limit
        low, high = (gamma, high) if inside else (low, gamma)
    return mean + low * away


class _Rounds(NamedTuple):
    rounds: torch.Tensor


Z = least_noticed(CLIENTS, 1)
WAYS = [
    ("sign-flip", {}, -OWN),
    ("sign-flip", {"strength": 2.5}, -2.5 * OWN),
    ("inner-product", {"surrogates": OTHERS}, 2 * 4 * -ROWS.mean(axis=0)),
    ("inner-product", {"surrogates": OTHERS, "strength": 0.5}, -0.5 * ROWS.mean(axis=0)),
    (
        "little-is-enough",
        {"surrogates": OTHERS},
        ROWS.mean(axis=0) + Z * ROWS.std(axis=0, ddof=1),
    ),
    (
        "little-is-enough",
        {"surrogates": OTHERS, "strength": 1.5},
        ROWS.mean(axis=0) + 1.5 * ROWS.std(axis=0, ddof=1),
    ),
    ("min-max", {"surrogates": OTHERS}, min_max()),
    ("free-rider", {}, 0 * OWN),
    ("stale", {"delay": 2}, OWN),
    ("honest", {"num_examples": 5}, OWN),
    ("model-replacement", {"target": TARGET, "weight": 0.25}, (5.0 - RHO) / 0.25),
    ("model-replacement", {"target": TARGET, "weight": 0.25, "coalition": 2}, (5 - RHO) / 0.5),
    ("cga", {"target": TARGET, "weight": 0.25}, (5.0 - RHO) / 0.25),
    ("cga", {"target": TARGET}, (5.0 - RHO) / 0.5),
    ("cga", {"target": TARGET, "num_examples": 99}, 5.0 - RHO),
]


@pytest.mark.parametrize(("attack", "given", "way"), WAYS)
def test_what_an_attack_sends_in_the_first_round(
    attack: str, given: dict[str, Any], way: np.ndarray
) -> None:
    """``theta - rho``, the opposite of the report: A Little Is Enough subtracts from reports."""
    theta, _ = sent(pfl.attack_mod(attack, partitions=[WHO], **given))
    np.testing.assert_allclose(theta - RHO, way, rtol=1e-12, atol=1e-12)


def test_every_attack_has_a_row() -> None:
    rows = {attack for attack, _, _ in WAYS}
    assert rows | {"gaussian", "nan", "wrong-shape"} == set(MOD_ATTACKS)


def test_the_readme_shows_the_table() -> None:
    readme = (Path(table.__file__).parent / "README.md").read_text()
    assert table.markdown() in readme


def test_gaussian_noise_is_as_long_as_it_says_and_another_in_every_round_and_seed() -> None:
    ways = [
        sent(pfl.attack_mod("gaussian", partitions=[WHO], seed=seed))[0] - RHO for seed in range(60)
    ]
    squares = np.mean([way @ way for way in ways])
    assert math.sqrt(squares) == pytest.approx(10 * np.linalg.norm(OWN), rel=0.2)
    assert abs(np.mean(ways)) < 2.0
    again = models(client_app(pfl.attack_mod("gaussian", partitions=[WHO])))
    assert len({model.tobytes() for model in again}) == len(again)


@pytest.mark.parametrize("attack", ["nan", "wrong-shape"])
def test_a_forgery_is_wrong_in_its_form(attack: str) -> None:
    _, reply = sent(pfl.attack_mod(attack, partitions=[WHO]))
    arrays = reply.content["arrays"]
    weight = arrays["weight"].numpy()
    assert np.isnan(weight).all() if attack == "nan" else weight.shape == (4, 1)
    assert arrays["count"].numpy() == 7 and arrays["count"].numpy().dtype == np.int64


@pytest.mark.parametrize("attack", ["sign-flip", "little-is-enough", "free-rider"])
@pytest.mark.parametrize(
    ("given", "who"),
    [
        ({"partitions": [1]}, {1}),
        ({"partitions": (0, 4)}, {0, 4}),
        ({"share": 0.4}, None),
        ({"share": 0.01}, None),
        ({}, {2}),
    ],
)
def test_it_is_there_on_the_nodes_that_are_named_and_on_no_other(
    attack: str, given: dict[str, Any], who: set[int] | None
) -> None:
    roles = {2: {"role": "strategic"}, 0: {"role": "hospital"}} if not given else {}
    bytes_sent: dict[bool, dict[int, tuple[Any, ...]]] = {}
    for attacked in (False, True):
        mods = [pfl.attack_mod(attack, **given)] if attacked else []
        seed_everything(3)
        seen = bytes_sent.setdefault(attacked, {})

        class Seen(apps.FedAvg):
            def aggregate_train(self, server_round: int, replies: Any, seen: Any = seen) -> Any:
                for reply in replies:
                    arrays = reply.content["arrays"]
                    metrics = dict(reply.content["metrics"])
                    data = tuple((name, array.data) for name, array in arrays.items())
                    seen[reply.metadata.src_node_id - 1000] = (data, metrics)
                return None, None

        _, grid = play(
            client_app(*mods, noise=0.1), Seen(fraction_evaluate=0.0), rounds=1, node_configs=roles
        )
        for node, context in grid.contexts.items():
            mine = [name for name in context.state if name.startswith("pfl")]
            assert bool(mine) == (attacked and node - 1000 in (who or ())) or who is None
    changed = {n for n in range(CLIENTS) if bytes_sent[True][n] != bytes_sent[False][n]}
    if who is None:
        assert len(changed) == max(1, round(given["share"] * CLIENTS))
        return
    assert changed == who


def test_who_is_drawn_hangs_on_the_seed_and_on_the_number_of_partitions() -> None:
    drawn = [Attackers(partitions=None, share=0.4, seed=seed).chosen(10) for seed in range(20)]
    assert {len(one) for one in drawn} == {4} and len(set(drawn)) > 10
    assert set().union(*drawn) == set(range(10))
    again = Attackers(partitions=None, share=0.4, seed=3)
    assert again.chosen(10) == drawn[3] and len(again.chosen(100)) == 40


@pytest.mark.parametrize(
    ("given", "node", "line"),
    [
        ({"partitions": [1]}, {}, "partitions = 1: expected nodes that know their partition-id"),
        ({"share": 0.5}, {}, "share = 0.5: expected nodes that know num-partitions"),
        ({"share": 0.5}, {"num-partitions": 2}, "expected nodes that know their partition-id"),
        ({"share": 0.5}, {"num-partitions": "2", "partition-id": 0}, "share = 0.5: expected nodes"),
    ],
)
def test_a_node_that_does_not_know_where_it_stands_is_one_line(
    given: dict[str, Any], node: dict[str, Any], line: str
) -> None:
    attackers = Attackers(**{"partitions": None, "share": None, "seed": 0, **given})
    with pytest.raises(pfl.ConfigError, match=line):
        attackers.has(node)
    assert attackers.has({**node, "role": "strategic"})


def test_evaluations_pass_as_they_are() -> None:
    for attack in ("nan", "sign-flip"):
        mod = pfl.attack_mod(attack, share=1.0)
        result, _ = play(client_app(mod), FedAvg(fraction_train=0.0), rounds=1)
        assert dict(result.evaluate_metrics_clientapp[1]) == {"accuracy": 0.5}


def test_an_error_of_the_apps_own_goes_out_as_it_is() -> None:
    """The mod neither hides it nor takes a surrogate's for a model."""
    error = Error(7, "the disk is full")
    before = Message(RecordDict(), 1, "train")
    before.metadata._message_id = "1"  # type: ignore[attr-defined]
    node = {"partition-id": 0, "num-partitions": 1}
    state = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={})
    mod = pfl.attack_mod("sign-flip", share=1.0)
    sent_back = mod(before, state, lambda message, context: Message(error, reply_to=message))
    assert sent_back.has_error() and sent_back.error.reason == "the disk is full"
    assert not state.state

    def fails_later(partition: int, values: Any) -> Any:
        seen.append(partition)
        if partition == WHO and seen.count(WHO) > 1:
            raise RuntimeError("no second run")
        return {}

    seen: list[int] = []
    reasons: list[str] = []

    class Seen(apps.FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            reasons.extend(reply.error.reason for reply in replies if reply.has_error())
            return None, None

    mod = pfl.attack_mod("min-max", partitions=[WHO])
    play(client_app(mod, forge=fails_later), Seen(fraction_evaluate=0.0), rounds=1)
    assert len(reasons) == 1 and "no second run" in reasons[0]


def test_what_was_accepted_is_what_float16_made_of_the_report() -> None:
    accepted: list[torch.Tensor] = []
    wish = torch.tensor([0.1, 1e6, -0.3, 7.0], dtype=torch.float64)

    class Wish:
        def init(self, rho: torch.Tensor) -> Any:
            return _Rounds(torch.zeros(1))

        def update(self, state: Any, observation: Observation) -> tuple[torch.Tensor, Any]:
            accepted.append(observation.accepted)
            return wish, state

    models(client_app(pfl.attack_mod(Wish(), partitions=[WHO])), rounds=2, kind="float16")
    first, second = accepted
    assert not bool(first.any())
    right = 1.0 - np.clip(1.0 - wish.numpy(), -65504, 65504).astype(np.float16).astype(float)
    np.testing.assert_array_equal(second.numpy(), right)
    assert not np.array_equal(right, wish.numpy())


def test_rounds_are_the_servers_where_a_node_was_not_asked_in_all() -> None:
    rounds: list[int] = []

    class Notes:
        def init(self, rho: torch.Tensor) -> Any:
            return _Rounds(torch.zeros(1))

        def update(self, state: Any, observation: Observation) -> tuple[torch.Tensor, Any]:
            rounds.append(int(observation.round))
            assert observation.eta_sum == observation.round - 1
            return torch.zeros_like(observation.rho), state

    class Skips(apps.FedAvg):
        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            messages = list(super().configure_train(server_round, arrays, config, grid))
            there = server_round != 2
            return [m for m in messages if there or m.metadata.dst_node_id != 1000 + WHO]

    mod = pfl.attack_mod(Notes(), partitions=[WHO])
    play(client_app(mod), Skips(fraction_evaluate=0.0), rounds=3)
    assert rounds == [1, 3]


def test_the_honest_state_is_the_same_as_without_it() -> None:
    """Surrogates run on a copy: the app counts its own rounds only."""
    mod = pfl.attack_mod("little-is-enough", partitions=[WHO], surrogates=3)
    _, grid = play(client_app(mod), rounds=4)
    assert all(context.state["own"]["rounds"] == 4 for context in grid.contexts.values())


def test_surrogates_that_are_all_alike_are_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    mod = pfl.attack_mod("little-is-enough", partitions=[WHO])
    for noise, warned in ((0.0, True), (0.1, False)):
        caplog.clear()
        sent(mod, noise=noise)
        assert ("gave one model" in caplog.text) == warned


def test_surrogates_are_other_draws_by_seed_and_leave_the_generators_alone() -> None:
    ways, left = [], []
    for seed in (0, 0, 1):
        seed_everything(7)
        mod = pfl.attack_mod("little-is-enough", partitions=[WHO], seed=seed, strength=1.0)
        ways.append(sent(mod, noise=0.3)[0])
        left.append(np.random.random())
    seed_everything(7)
    sent(lambda message, context, call_next: call_next(message, context), noise=0.3)
    assert np.array_equal(ways[0], ways[1]) and not np.allclose(ways[0], ways[2])
    assert left == [np.random.random()] * 3


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("attack", ["sign-flip", "free-rider", "nan"])
def test_types_are_kept(kind: str, attack: str) -> None:
    _, reply = sent(pfl.attack_mod(attack, partitions=[WHO]), kind=kind)
    kinds = {name: str(array.numpy().dtype) for name, array in reply.content["arrays"].items()}
    assert kinds == {"weight": kind, "count": "int64", "bias": kind}
    assert list(kinds) == ["weight", "count", "bias"]
    assert reply.content["arrays"]["count"].numpy() == 7


def test_float16_is_limited_and_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    mod = pfl.attack_mod("sign-flip", strength=1e6, partitions=[WHO])
    with caplog.at_level(logging.WARNING, logger="flwr"):
        _, reply = sent(mod, kind="float16")
    weight = reply.content["arrays"]["weight"].numpy()
    assert np.isfinite(weight).all() and np.abs(weight).max() == 65504
    assert "weight: 3 numbers beyond the range of float16" in caplog.text


@pytest.mark.parametrize("record", ["arrays", "model", "parameters of the net"])
def test_the_record_keeps_its_name(record: str) -> None:
    theta, reply = sent(pfl.attack_mod("sign-flip", partitions=[WHO]), record=record)
    assert record in reply.content
    np.testing.assert_allclose(theta - RHO, -OWN)


def test_the_client_claims_other_examples() -> None:
    mod = pfl.attack_mod("honest", num_examples=10**9, partitions=[WHO])
    assert sent(mod)[1].content["metrics"]["num-examples"] == 10**9
    assert sent(mod, who=1)[1].content["metrics"]["num-examples"] == 11


@pytest.mark.parametrize("form", ["npz", "pt", "dict", "tensors", "function"])
def test_a_target_is_a_file_or_layers_or_a_function(tmp_path: Path, form: str) -> None:
    tensors = {name: torch.from_numpy(values) for name, values in TARGET.items()}
    np.savez(tmp_path / "t.npz", **TARGET)
    torch.save(tensors, tmp_path / "t.pt")
    targets: dict[str, Any] = {
        "npz": str(tmp_path / "t.npz"),
        "pt": tmp_path / "t.pt",
        "dict": TARGET,
        "tensors": tensors,
        "function": lambda layers: {name: 0 * layers[name] + 5 for name in layers},
    }
    mod = pfl.attack_mod("cga", target=targets[form], weight=1.0, partitions=[WHO])
    np.testing.assert_allclose(sent(mod)[0], 5.0)


def test_a_function_sees_the_first_model_and_no_later_one() -> None:
    seen = []

    def target(values: Any) -> Any:
        seen.append(values["bias"].copy())
        return {name: 0 * one + 5 for name, one in values.items()}

    models(client_app(pfl.attack_mod("cga", target=target, partitions=[1, 2])), rounds=3)
    assert len(seen) == 2 and all(np.array_equal(one, [1.0]) for one in seen)


def test_an_attack_of_ones_own_remembers_from_round_to_round() -> None:
    class Count:
        def init(self, rho: torch.Tensor) -> Any:
            return _Rounds(torch.zeros(1))

        def update(self, state: Any, observation: Observation) -> tuple[torch.Tensor, Any]:
            seen = state.rounds + 1
            return observation.rho - float(seen), _Rounds(seen)

    found = models(client_app(pfl.attack_mod(Count(), share=1.0)), rounds=4)
    np.testing.assert_allclose([model[0] for model in found], [1, 2, 3, 4])


REFUSED = [
    (("flip",), {}, "attack = flip: expected sign-flip"),
    ((3,), {}, "attack = 3: expected"),
    (("sign-flip",), {"strength": 0}, "strength = 0: expected a number above 0"),
    (("sign-flip",), {"strength": math.nan}, "strength = nan"),
    (("sign-flip",), {"target": TARGET}, "target = .*: expected none, sign-flip reads strength"),
    (("free-rider",), {"strength": 1.0}, "strength = 1.0: expected none, free-rider reads none"),
    (("cga",), {}, "target = nothing: expected a value, which cga needs"),
    (("cga",), {"target": "/no/such.npz"}, "target = /no/such.npz: expected a file of weights"),
    (("cga",), {"target": 5}, "target = 5: expected a file of weights"),
    (("cga",), {"target": TARGET, "weight": 1.5}, "weight = 1.5: .* at most 1"),
    (("cga",), {"target": TARGET, "coalition": 0}, "coalition = 0: expected a whole number from 1"),
    (("model-replacement",), {"target": TARGET}, "weight = nothing"),
    (("stale",), {"delay": 0}, "delay = 0"),
    (("honest",), {}, "num_examples = nothing"),
    (("honest",), {"num_examples": -1}, "num_examples = -1"),
    (("honest",), {"num_examples": 2**63}, "num_examples = "),
    (("sign-flip",), {"partitions": [-1]}, "partitions = -1"),
    (("sign-flip",), {"partitions": []}, r"partitions = \[\]"),
    (("sign-flip",), {"partitions": "3"}, "partitions = '3'"),
    (("sign-flip",), {"partitions": 3}, "partitions = 3: expected a list"),
    (("sign-flip",), {"share": 0.0}, "share = 0.0"),
    (("sign-flip",), {"share": "half"}, "share = half"),
    (("sign-flip",), {"share": True}, "share = True"),
    (("sign-flip",), {"share": 0.5, "partitions": [1]}, "share = 0.5"),
    (("little-is-enough",), {"surrogates": 0}, "surrogates = 0"),
    (("little-is-enough",), {"surrogates": "ab"}, "surrogates = ab"),
    (("sign-flip",), {"weighted_by": ""}, 'weighted_by = ""'),
    (("sign-flip",), {"seed": 1.5}, "seed = 1.5"),
]


@pytest.mark.parametrize(("given", "named", "line"), REFUSED)
def test_wrong_arguments_are_one_line_before_the_app_starts(
    given: tuple[Any, ...], named: dict[str, Any], line: str
) -> None:
    with pytest.raises(pfl.ConfigError, match=line) as error:
        pfl.attack_mod(*given, **named)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "app", "line"),
    [
        ({"partitions": [5]}, {}, "partitions = 5: expected ids from 0 to 4"),
        ({"partitions": [WHO], "num_examples": 1, "weighted_by": "n"}, {}, "weighted_by = n"),
        ({"partitions": [WHO], "target": {"weight": np.ones((3, 1))}}, {}, "the layer bias"),
        (
            {"partitions": [WHO], "target": {"weight": np.ones(3), "bias": np.ones(1)}},
            {},
            "weight of the shape",
        ),
        (
            {
                "partitions": [WHO],
                "target": lambda layers: {k: v * np.nan for k, v in layers.items()},
            },
            {},
            "weight: expected finite",
        ),
        (
            {"partitions": [WHO]},
            {"forge": lambda partition, layers: {"arrays": None}},
            "a reply with arrays",
        ),
        (
            {"partitions": [WHO]},
            {"forge": lambda p, layers: {"arrays": apps.packed({"w": np.ones(2)})}},
            "layers weight, count, bias, not w",
        ),
    ],
)
def test_what_does_not_fit_the_app_is_its_error_reply(
    given: dict[str, Any], app: dict[str, Any], line: str
) -> None:
    attack = "cga" if "target" in given else "sign-flip"
    reasons: list[str] = []

    class Seen(apps.FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            reasons.extend(reply.error.reason for reply in replies if reply.has_error())
            return None, None

    mod = pfl.attack_mod(attack, **given)
    play(client_app(mod, **app), Seen(fraction_evaluate=0.0), rounds=1)
    assert reasons and line in reasons[0]
