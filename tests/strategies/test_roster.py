from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_flower.client_app import app as client_app
from pfl_flower.support.errors import NodesMissingError
from pfl_flower.transport.inprocess import InProcessGrid
from strategies.introductions import Introductions
from strategies.recruiting import wait_for_nodes
from strategies.roster import Roster, assign_users
from tests.support.runs import configure

CASES = [
    # users, strategic, roles by node, expected layout, expected strategic
    (3, {2}, {7: "auto"}, {7: (0, 1, 2)}, {2}),
    (3, {2}, {7: "auto", 8: "auto"}, {7: (0, 1), 8: (2,)}, {2}),
    (4, {0}, {7: "auto", 8: "auto", 9: "auto"}, {7: (1, 3), 8: (2,), 9: (0,)}, {0}),
    (3, {2}, {7: "strategic", 8: "auto"}, {7: (2,), 8: (0, 1)}, {2}),
    (3, set(), {7: "strategic", 8: "auto"}, {7: (2,), 8: (0, 1)}, {2}),
    (3, set(), {7: "auto", 8: "auto"}, {7: (0, 2), 8: (1,)}, set()),
    (3, {2}, {7: "strategic"}, {7: (0, 1, 2)}, {0, 1, 2}),
    (3, {2}, {7: "honest", 8: "auto"}, {7: (0, 1), 8: (2,)}, {2}),
    (3, {2}, {7: "honest", 8: "honest"}, {7: (0, 2), 8: (1,)}, set()),
    (4, {2, 3}, {5: "auto", 6: "auto", 7: "auto", 8: "auto"}, None, {2, 3}),
    # However many users are strategic, a node is left to the honest ones.
    (11, set(range(1, 11)), {7: "auto", 8: "auto"}, {7: (0,), 8: tuple(range(1, 11))}, None),
    (11, set(range(10)), {7: "auto", 8: "auto"}, {7: (10,), 8: tuple(range(10))}, None),
    (4, {1, 2, 3}, {5: "auto", 6: "auto", 7: "auto"}, {5: (0,), 6: (1, 3), 7: (2,)}, None),
    (4, {1, 2, 3}, {5: "auto", 6: "honest", 7: "auto"}, {6: (0,), 5: (1, 3), 7: (2,)}, None),
]


@pytest.mark.parametrize(("users", "strategic", "roles", "layout", "chosen"), CASES)
def test_the_layout(users, strategic, roles, layout, chosen) -> None:  # type: ignore[no-untyped-def]
    roster = assign_users(users, strategic, roles)
    assert roster.strategic == (strategic if chosen is None else chosen)
    if layout is not None:
        assert roster.nodes == layout
    assert sorted(user for group in roster.nodes.values() for user in group) == list(range(users))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_user_has_one_node_and_strategic_users_sit_apart(data: st.DataObject) -> None:
    users = data.draw(st.integers(1, 15))
    strategic = data.draw(st.sets(st.integers(0, users - 1)))
    roles = data.draw(
        st.dictionaries(
            st.integers(1, 99),
            st.sampled_from(["auto", "honest", "strategic"]),
            min_size=1,
            max_size=12,
        )
    )
    roster = assign_users(users, strategic, roles)
    placed = sorted(user for group in roster.nodes.values() for user in group)
    assert placed == list(range(users))
    reordered = dict(reversed(list(roles.items())))
    assert assign_users(users, strategic, reordered) == roster
    for node, group in roster.nodes.items():
        kinds = {user in roster.strategic for user in group}
        if roles[node] != "auto":
            assert kinds == {roles[node] == "strategic"}
        if len(roles) > 1:
            assert len(kinds) == 1


def grid(nodes: int, **node_configs: dict[str, str]) -> InProcessGrid:
    return InProcessGrid(
        client_app,
        nodes=nodes,
        run_config=configure().flat(),
        node_configs={int(key[1:]): value for key, value in node_configs.items()},
    )


def test_nodes_tell_their_role_and_a_broken_one_is_left_out() -> None:
    nodes = grid(3, n1={"role": "strategic"}, n2={"role": "king"})
    asked = Introductions(configure())
    asked.ask(nodes, list(nodes.get_node_ids()), 0)
    known = asked.known
    assert {node: said.role for node, said in known.items()} == {1000: "auto", 1001: "strategic"}
    assert asked.notices == {"cannot-1002": 1}


def test_waiting_for_nodes_ends_with_what_was_missing() -> None:
    with pytest.raises(NodesMissingError, match=r"min-nodes = 3: 2 came within node-timeout"):
        wait_for_nodes(grid(2), 3, 0.3, 0.0)
    assert wait_for_nodes(grid(2), 2, 5.0, 0.0) == [1000, 1001]


ROSTER = Roster({7: (0, 2), 8: (1, 3), 9: (4,)}, frozenset({3, 4}))


@pytest.mark.parametrize(
    ("users", "asked"),
    [
        ({0, 1, 2, 3, 4}, {7: (0, 2), 8: (1, 3), 9: (4,)}),
        ({1, 2, 3}, {7: (2,), 8: (1, 3)}),
        ({4, 9}, {9: (4,)}),
        (set(), {}),
    ],
)
def test_who_is_asked_through_which_node(
    users: set[int], asked: dict[int, tuple[int, ...]]
) -> None:
    assert ROSTER.asked(frozenset(users)) == asked
    assert not Roster().asked(frozenset(users))


@pytest.mark.parametrize(
    ("present", "found"),
    [((7, 8, 9), {7: (0, 2), 8: (1,)}), ((8, 9), {8: (1,)}), ((9,), {}), ((), {})],
)
def test_nodes_with_honest_users(
    present: tuple[int, ...], found: dict[int, tuple[int, ...]]
) -> None:
    assert ROSTER.with_honest_users(present) == found


def test_who_is_asked_is_worked_out_once_for_the_same_users() -> None:
    roster = Roster({7: (0, 2, 4), 8: (1, 3)}, frozenset({3}))
    everyone, some = frozenset(range(5)), frozenset({0, 2, 3})
    assert roster.asked(everyone) == {7: (0, 2, 4), 8: (1, 3)}
    assert roster.asked(everyone)[7] is roster.nodes[7], "what is known of them is known again"
    assert roster.asked(some) == {7: (0, 2), 8: (3,)}
    assert roster.asked(frozenset({4})) == {7: (4,)}
    assert len(roster._last) == 1, "samples of other rounds are not kept"
    assert roster.with_honest_users({8}) == {8: (1,)}
