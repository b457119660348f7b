"""f is a number of those who are asked, and no rule lowers it in silence."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from flwr.app import Error, Message

from pfl_flower import server_app
from pfl_flower.aggregation.combination import configured_rule
from pfl_flower.aggregation.rules import bind, krum, mixed, multi_krum, trimmed_mean
from pfl_flower.aggregation.table import AGGREGATIONS, LOWERED, lowered, most_tolerated
from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.problem import build_problem
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.seeding import generator
from pfl_flower.transport.inprocess import InProcessGrid
from tests.support.runs import configure, play, tampering

NAMED = [name for name in AGGREGATIONS if most_tolerated(name, 50) is not None]

FEW: list[tuple[dict[str, Any], str]] = [
    (
        {"aggregation": "multi-krum", "participation": 0.3},
        "participation = 0.3: expected at least 0.454545, so that 5 of 11 users are asked in a "
        "round, for an aggregation that withstands 1 of them",
    ),
    (
        {"aggregation": "krum", "participation": 0.3, "aggregation-tolerance": 1},
        "aggregation-tolerance = 1: expected 0, for the 3 of 11 users asked in a round",
    ),
    (
        {"aggregation": "krum", "participation": 0.2, "aggregation-tolerance": 0},
        "participation = 0.2: expected at least 0.272727, so that 3 of 11 users",
    ),
    (
        {"aggregation": "trimmed-mean", "participation": 0.2},
        "participation = 0.2: expected at least 0.272727, so that 3 of 11 users",
    ),
    (
        {"aggregation": "trimmed-mean", "participation": 0.6, "aggregation-tolerance": 4},
        "aggregation-tolerance = 4: expected 0 to 3, for the 7 of 11 users asked in a round",
    ),
    (
        {"aggregation": "trimmed-mean", "participation": 0.6, "strategic-users": "7-10"},
        'aggregation-tolerance = "": expected 0 to 3, for the 7 of 11 users asked in a round and '
        "this aggregation; empty stands for 4",
    ),
    (
        {"aggregation-mixing": True, "participation": 0.2},
        "participation = 0.2: expected at least 0.272727, so that 3 of 11 users",
    ),
    (
        {"aggregation": "median", "aggregation-mixing": True, "participation": 0.2},
        "participation = 0.2: expected at least 0.272727",
    ),
    (
        {"aggregation": "multi-krum", "participation": 0.6, "krum-selected": 7},
        "krum-selected = 7: expected at most 6, for the 7 of 11 users asked in a round, of whom 1",
    ),
]


@pytest.mark.parametrize(("keys", "said"), FEW, ids=[said[:70] for _, said in FEW])
def test_limits_are_those_of_the_users_who_are_asked(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(keys)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize("name", AGGREGATIONS)
@pytest.mark.parametrize("mixing", [False, True])
def test_what_is_admitted_is_what_a_full_round_needs(name: str, mixing: bool) -> None:
    """Over all samples and f: admitted if and only if a round in which all reply lowers nothing."""
    for asked in range(1, 12):
        for f in (0, 1, 2, 4):
            keys: dict[str, Any] = {"aggregation": name, "aggregation-mixing": mixing}
            if mixing or name in NAMED:
                keys["aggregation-tolerance"] = f
            keys["participation"] = asked / 11
            free = parse_config({}).model_copy(
                update={key.replace("-", "_"): value for key, value in keys.items()}
            )
            fits = most_tolerated(name, asked, mixing=mixing)
            try:
                admitted: RunConfig | None = parse_config(keys)
            except ConfigError:
                admitted = None
            assert (admitted is not None) == (fits is None or f <= fits)
            assert free.sample_size() == asked
            assert (admitted is None) == bool(lowered(free, asked)) or (
                fits is not None and fits < 0
            )


RULES = {
    "trimmed-mean": trimmed_mean,
    "krum": krum,
    "multi-krum": multi_krum,
    "mixing": lambda rows, tolerance: mixed(rows, tolerance=tolerance).sum(dim=0),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_lowers_f_to_what_is_said_and_heeds_any_other(name: str) -> None:
    rule = RULES[name]
    changed, draws = 0, generator(1, "rows")
    for k in [*range(1, 10)] * 8:
        rows = torch.randn((k, 3), generator=draws, dtype=torch.float64)
        most = most_tolerated("sum" if name == "mixing" else name, k, mixing=name == "mixing")
        assert most is not None
        for f in range(5):
            made = rule(rows, tolerance=f)
            assert torch.equal(made, rule(rows, tolerance=min(f, max(0, most))))
            changed += 0 < f <= most and not torch.equal(made, rule(rows, tolerance=f - 1))
    assert changed >= 5


def failing(*lost: int) -> Any:
    """Return the client app whose nodes of these users answer with an error."""
    app = tampering(-1, lambda message, reply: reply)

    def fail(message: Message, reply: Message) -> Message:
        return Message(Error(0, "lost"), reply_to=message)

    for user in lost:
        app = _after(app, user, fail)
    return app


def _after(app: Any, user: int, tamper: Any) -> Any:
    from flwr.clientapp import ClientApp

    from pfl_flower.transport.broadcasts import unpack_broadcast

    outer = ClientApp()

    @outer.train()
    def train(message: Message, context: Any) -> Message:
        if user in unpack_broadcast(message.content, torch.device("cpu")).users:
            return tamper(message, None)
        return app(message, context)

    for register in (outer.query, outer.evaluate):
        register()(app)
    return outer


LOST: list[tuple[dict[str, Any], tuple[int, ...], dict[str, int]]] = [
    ({"aggregation": "trimmed-mean"}, (), {}),
    ({"aggregation": "trimmed-mean"}, (0, 1), {}),
    ({"aggregation": "trimmed-mean"}, (0, 1, 2), {"lowered-f-0": 1}),
    ({"aggregation": "trimmed-mean", "aggregation_tolerance": 2}, (0,), {"lowered-f-1": 1}),
    ({"aggregation": "krum"}, (0,), {"lowered-f-0": 1}),
    ({"aggregation": "multi-krum", "krum_selected": 3}, (0, 1, 2), {"lowered-f-0": 1}),
    ({"aggregation": "median"}, (0, 1, 2), {}),
    ({"aggregation": "median", "aggregation_mixing": True}, (0, 1, 2), {"lowered-f-0": 1}),
    ({"aggregation": "krum"}, (0, 1, 2, 3, 4), {}),
]


@pytest.mark.parametrize(("keys", "lost", "expected"), LOST)
def test_a_round_with_too_few_reports_says_what_was_lowered(
    keys: dict[str, Any], lost: tuple[int, ...], expected: dict[str, int]
) -> None:
    (record,) = play(configure(**keys, rounds=1), nodes=5, app=failing(*lost))
    selected = {"lowered-krum-selected-2": 1} if "krum_selected" in keys else {}
    found = {name: count for name, count in record.notices.items() if name.startswith(LOWERED)}
    assert found == {**expected, **selected}


def test_the_summary_counts_the_rounds_in_which_f_was_lowered() -> None:
    config = configure(aggregation="trimmed-mean", rounds=3)
    grid = InProcessGrid(failing(0, 1, 2), nodes=5, run_config=config.flat())
    outcome = server_app.run(grid, build_problem(config))
    told = {one.what: (one.count, one.where) for one in outcome.left_out}
    words = "rounds with too few reports for the aggregation, f lowered to 0"
    assert told[words] == (3, "rounds 1 to 3")


def test_a_radius_is_as_precise_as_the_rows() -> None:
    rows = torch.tensor([[0.0], [0.0], [10.0]], dtype=torch.float64)
    config = configure(aggregation="centred-clipping", clipping_radius=0.1)
    moved = configured_rule(config)(rows)
    exact = bind(partial(AGGREGATIONS.load("centred-clipping"), radius=0.1), tolerance=1)(rows)
    assert torch.equal(moved, exact)
    single = float(torch.tensor(0.1, dtype=torch.float32))
    assert float(moved) != pytest.approx(float(moved) * single / 0.1, rel=1e-12)
    centre = 0.0
    for _ in range(3):
        centre += (2 * -centre + 0.1) / 3
    assert float(moved) == pytest.approx(3 * centre, rel=1e-15)


def test_a_radius_of_0_stays_at_the_median() -> None:
    rows = torch.randn((5, 3), generator=generator(1, "rows"), dtype=torch.float64)
    made = {
        name: configured_rule(configure(aggregation=name, **keys))(rows)
        for name, keys in {"median": {}, "centred-clipping": {"clipping_radius": 0.0}}.items()
    }
    assert torch.equal(made["median"], made["centred-clipping"])
