"""Which node acts for which users, and who of them is strategic."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from pfl_flower.support.users import divided, selected, users_of
from pfl_flower.transport.questions import Introduction


@dataclass(frozen=True)
class Roster:
    """The users of each node, ascending, and the users who act strategically; nobody at first."""

    nodes: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    strategic: frozenset[int] = frozenset()
    _last: dict[frozenset[int], dict[int, tuple[int, ...]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        """Keep what is worked out of the users of a node for all rounds."""
        seats = {node: users_of(users) for node, users in self.nodes.items()}
        object.__setattr__(self, "nodes", seats)

    def asked(self, users: frozenset[int]) -> dict[int, tuple[int, ...]]:
        """Return which of these users each node acts for, nodes without any left out."""
        if users not in self._last:
            some = torch.tensor(sorted(users), dtype=torch.int64)
            found = {node: selected(members, some) for node, members in self.nodes.items()}
            self._last.clear()
            self._last[users] = {node: chosen for node, chosen in found.items() if chosen}
        return dict(self._last[users])

    def with_honest_users(self, present: Collection[int]) -> dict[int, tuple[int, ...]]:
        """Return the present nodes that act for honest users, and these."""
        found = {
            node: divided(users, self.strategic)[1]
            for node, users in self.nodes.items()
            if node in present
        }
        return {node: users for node, users in found.items() if users}


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
    for position, node in enumerate(nodes):
        hands[node].extend(users[position :: len(nodes)])
