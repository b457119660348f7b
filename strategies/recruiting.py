"""Finding nodes before a run, and keeping enough of them while it lasts."""

from __future__ import annotations

import time
from collections import Counter
from logging import INFO, WARNING

from flwr.serverapp import Grid

from pfl_flower.run.config import RunConfig
from pfl_flower.support.errors import NodesMissingError
from pfl_flower.transport.flower_internals import log
from pfl_flower.transport.inprocess import InProcessGrid
from pfl_flower.transport.questions import Introduction
from strategies.introductions import Introductions
from strategies.roster import Roster, assign_users, reseat

POLL_SECONDS = 0.2
SETTLE_SECONDS = 1.0


class Recruiter:
    """Knows the nodes that can take part, and lays out the users over them.

    Parameters
    ----------
    config : RunConfig
        Its ``min-nodes`` and its timeouts.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.settle = SETTLE_SECONDS
        self.introductions = Introductions(config)

    @property
    def nodes(self) -> dict[int, Introduction]:
        """The nodes that can take part, and what they say of themselves."""
        return self.introductions.known

    def begin(self, grid: Grid) -> Roster:
        """Wait for the nodes, ask for their roles, and lay out the users.

        Raises
        ------
        NodesMissingError
            If fewer than ``min-nodes`` came or none can take part.
        """
        config = self.config
        self._meet(grid, self._wait(grid, config.min_nodes), 0)
        roster = assign_users(config.users, config.strategic(), self._roles())
        return self._said(roster)

    def resume(self, grid: Grid, before: Roster, round: int) -> Roster:
        """Wait for as many nodes as before, and seat the users where their memory is.

        With fewer nodes the users are laid out anew; they find what memory their nodes hold.

        Raises
        ------
        NodesMissingError
            If fewer than ``min-nodes`` came or none can take part.
        """
        config = self.config
        try:
            found = self._wait(grid, max(config.min_nodes, len(before.nodes)))
        except NodesMissingError as error:
            log(WARNING, "%s; the run was on %d nodes before", error, len(before.nodes))
            found = self._wait(grid, config.min_nodes)
        self._meet(grid, found, round)
        roster = reseat(before, self.nodes, self.nodes)
        if not roster.nodes.keys() <= self.nodes.keys():
            roster = assign_users(config.users, before.strategic, self._roles())
        return self._said(roster)

    def attend(self, grid: Grid, roster: Roster, round: int) -> tuple[Roster, frozenset[int]]:
        """Return the roster of a round and the nodes that are there.

        The users of a node that has gone are given to one that came since, as when a SuperNode was
        restarted. With fewer than ``min-nodes`` left, wait for ``node-timeout`` seconds.

        Raises
        ------
        NodesMissingError
            If it was in vain.
        """
        config = self.config
        deadline = time.monotonic() + config.node_timeout
        while True:
            present = frozenset(grid.get_node_ids())
            self.introductions.forget(present | roster.nodes.keys())
            self.introductions.look(grid, present, round - 1)
            if not roster.nodes.keys() <= present:
                if strangers := self.introductions.strangers(present):
                    self.introductions.ask(grid, strangers, round - 1)
                roster = self._moved(roster, reseat(roster, self.nodes, present))
            left = len(present & self.nodes.keys())
            if left >= config.min_nodes:
                return roster, present
            if time.monotonic() >= deadline:
                raise NodesMissingError(
                    f"min-nodes = {config.min_nodes}: {left} are left in round {round}, and no "
                    f"others came within node-timeout = {config.node_timeout:g} s"
                )
            time.sleep(POLL_SECONDS)

    def _wait(self, grid: Grid, minimum: int) -> list[int]:
        # The nodes of this process are there from the start, and none comes later.
        settle = 0.0 if isinstance(grid, InProcessGrid) else self.settle
        return wait_for_nodes(grid, minimum, self.config.node_timeout, settle)

    def _meet(self, grid: Grid, nodes: list[int], round: int) -> None:
        self.introductions.ask(grid, nodes, round, least=self.config.min_nodes)
        if len(self.nodes) < self.config.min_nodes:
            unheard = ", ".join(map(str, self.introductions.unheard))
            raise NodesMissingError(
                f"min-nodes = {self.config.min_nodes}: {len(self.nodes)} of {len(nodes)} nodes "
                f"can take part{f'; not heard of: {unheard}' if unheard else ''}"
            )

    def turned_away(self) -> Counter[str]:
        """Return notices of nodes that could not take part and of what was forged, once."""
        notices, self.introductions.notices = self.introductions.notices, Counter()
        return notices

    def _roles(self) -> dict[int, str]:
        return {node: said.role for node, said in self.nodes.items()}

    def _said(self, roster: Roster) -> Roster:
        users, strategic = self.config.users, sorted(roster.strategic) or "none"
        log(INFO, "%d users on %d nodes, strategic: %s", users, len(roster.nodes), strategic)
        return roster

    def _moved(self, before: Roster, after: Roster) -> Roster:
        for node in after.nodes.keys() - before.nodes.keys():
            log(WARNING, "node %d acts for users %s, whose node is gone", node, after.nodes[node])
        return after


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
