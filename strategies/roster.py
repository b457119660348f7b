"""Which node acts for which users: decided once, at the start of a run, by the server."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from pfl_flower.support.errors import NodesMissingError
from pfl_flower.transport.flower_internals import log
from pfl_flower.transport.messages import ROLES, Introduction, pack_request, unpack_introduction

POLL_SECONDS = 0.2
SETTLE_SECONDS = 1.0


@dataclass(frozen=True)
class Roster:
    """The users of each node, ascending, and the users who act strategically."""

    nodes: Mapping[int, tuple[int, ...]]
    strategic: frozenset[int]


def wait_for_nodes(grid: Grid, minimum: int, timeout: float, settle: float) -> list[int]:
    """Return the ids of at least ``minimum`` nodes, once their number has not changed for a while.

    Raises
    ------
    NodesMissingError
        If fewer have come after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    seen: list[int] = []
    changed, said = time.monotonic(), -1
    while True:
        now = time.monotonic()
        nodes = sorted(grid.get_node_ids())
        if nodes != seen:
            seen, changed = nodes, now
        if len(seen) >= minimum and now - changed >= settle:
            return seen
        if now >= deadline:
            if len(seen) >= minimum:
                return seen
            raise NodesMissingError(
                f"min-nodes = {minimum}: {len(seen)} came within node-timeout = {timeout:g} s"
            )
        if len(seen) < minimum and len(seen) != said:
            log(INFO, "waiting for %d nodes, %d are here (%.0f s)", minimum, len(seen), timeout)
            said = len(seen)
        time.sleep(min(POLL_SECONDS, settle or POLL_SECONDS))


def ask_nodes(
    grid: Grid, nodes: Sequence[int], timeout: float, resumed: int = 0
) -> dict[int, Introduction]:
    """Return how each node introduces itself; those that fail to, in a known role, are left out.

    ``resumed`` is the round that the server goes on from, up to which memory counts.
    """
    questions = [
        Message(pack_request(resumed, ()), node, MessageType.QUERY, group_id="roles")
        for node in nodes
    ]
    replies = grid.send_and_receive(questions, timeout=timeout)
    asked = {question.metadata.message_id: question.metadata.dst_node_id for question in questions}
    known: dict[int, Introduction] = {}
    for reply in replies:
        node = asked.get(reply.metadata.reply_to_message_id)
        if node is None or node in known:
            continue
        if reply.has_error():
            log(WARNING, "node %d cannot take part: %s", node, reply.error.reason)
            continue
        said = unpack_introduction(reply.content)
        if said.role not in ROLES:
            log(WARNING, "node %d cannot take part: role %.20r", node, said.role)
            continue
        known[node] = said
    return known


def assign_users(num_users: int, strategic: Iterable[int], roles: Mapping[int, str]) -> Roster:
    """Lay users out over nodes: a pure function of the user count, the nodes and their roles.

    Users go round robin over the nodes in the order of their ids. Strategic users sit on nodes of
    their own whenever there are two nodes or more: on the nodes that declare themselves strategic
    if there are any, else on a share of the nodes as large as theirs among the users. A node that
    declares itself strategic and would be left without a user takes one from the honest; all of its
    users are strategic, whatever the run says.
    """
    chosen = set(strategic)
    declared = sorted(node for node, role in roles.items() if role == "strategic")
    willing = sorted(node for node, role in roles.items() if role == "auto")
    sworn = sorted(node for node, role in roles.items() if role == "honest")
    honest_nodes = sworn + willing
    if declared:
        spare = [user for user in range(num_users) if user not in chosen]
        while len(chosen) < len(declared) and spare:
            chosen.add(spare.pop())
        if not honest_nodes:
            chosen = set(range(num_users))
        strategic_nodes = declared
    elif chosen and len(roles) > 1 and willing:
        share = round(len(roles) * len(chosen) / num_users)
        most = min(len(chosen), len(willing), len(roles) - 1)
        strategic_nodes = willing[-max(1, min(share, most)) :]
        honest_nodes = sworn + [node for node in willing if node not in strategic_nodes]
    else:
        strategic_nodes = honest_nodes
        if not willing:
            chosen = set()
    honest = [user for user in range(num_users) if user not in chosen]
    nodes: dict[int, list[int]] = {node: [] for node in roles}
    _deal(honest, honest_nodes, nodes)
    # Without a node to itself, a strategic user must not land on one that swore to be honest.
    _deal(sorted(chosen), [n for n in strategic_nodes if n not in sworn] or strategic_nodes, nodes)
    used = {node: tuple(sorted(users)) for node, users in nodes.items() if users}
    return Roster(used, frozenset(chosen))


def reseat(roster: Roster, nodes: Mapping[int, Introduction], present: Collection[int]) -> Roster:
    """Give the users of absent nodes to present ones that act for nobody, kinds kept apart.

    The users of a node move together, to the node that holds most of their memory; where no node
    may take them, they stay with the one that is absent.
    """
    seats = dict(roster.nodes)
    free = sorted(node for node in nodes if node in present and node not in seats)
    for absent in [node for node in roster.nodes if node not in present]:
        users = roster.nodes[absent]
        kinds = {"strategic" if user in roster.strategic else "honest" for user in users}
        fit = [node for node in free if nodes[node].role == "auto" or kinds == {nodes[node].role}]
        if fit:
            chosen = max(fit, key=lambda node: len(nodes[node].holds.intersection(users)))
            seats[chosen] = seats.pop(absent)
            free.remove(chosen)
    return Roster(seats, roster.strategic)


def _deal(users: Sequence[int], nodes: Sequence[int], hands: dict[int, list[int]]) -> None:
    for position, user in enumerate(users):
        hands[nodes[position % len(nodes)]].append(user)
