"""Who the nodes say they are: asked before a run, and of late ones between its rounds."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Iterable
from logging import INFO, WARNING

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from pfl_flower.run.config import RunConfig
from pfl_flower.support.errors import DeviceError
from pfl_flower.support.foreign_text import one_line
from pfl_flower.transport.flower_internals import APP_ERRORS, NODE_UNAVAILABLE, log
from pfl_flower.transport.inprocess import InProcessGrid
from pfl_flower.transport.nonces import failure_in, genuine, lacks_device
from pfl_flower.transport.questions import ROLES, Introduction, pack_question, unpack_introduction
from pfl_flower.transport.records import largest_words
from strategies.asking import Post, ask
from strategies.nudging import Patience
from strategies.questions import Question

MOST_REMEMBERED = 10_000
"""Nodes of which it is remembered that they cannot take part, or are slow: strangers may come and
go without end, and those that are forgotten are asked as if they came for the first time."""


AGAIN_SECONDS = 2.0
"""Between two questions to a node of which errors came: it may be on its way back."""


class Introductions:
    """What each node has said of itself; one that has not yet holds nobody up for long.

    Parameters
    ----------
    config : RunConfig
        Its ``introduction-timeout``, ``node-timeout`` and ``reply-timeout``.

    Attributes
    ----------
    known : dict
        The nodes that can take part, and what they said.
    notices : Counter
        Of nodes that could not take part, and of what came in place of their answers.
    patience : Patience
        With the silence of a site's nodes.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.known: dict[int, Introduction] = {}
        self.notices: Counter[str] = Counter()
        self.patience = Patience()
        self._refused: dict[int, None] = {}
        self._late: dict[int, None] = {}
        self._open: dict[int, list[Question]] = {}
        self._post: Post | None = None

    def ask(self, grid: Grid, nodes: Iterable[int], round: int, *, least: int = 0) -> None:
        """Ask nodes who they are, and wait for their answers.

        ``introduction-timeout`` is how long, and, as long as fewer than ``least`` can take part,
        the longer of ``node-timeout`` and ``reply-timeout``: the first answer takes a process that
        starts. Until then a node that is silent, or gone and back, is asked again, and so is one
        that comes. Who has not answered by then may do so later, see ``look``. ``round`` is the one
        up to which memory counts.
        """
        config, first = self.config, {node: self._question(node, round) for node in nodes}
        patience = max(config.reply_timeout, config.node_timeout, config.introduction_timeout)
        self._open |= {node: [question] for node, question in first.items()}
        if isinstance(grid, InProcessGrid):
            heard = ask(grid, list(first.values()), patience)
            self._take(heard.replies, 0)
            self.notices.update(heard.notices)
            # Nodes of this process have answered, or never will.
            for node in [*self._open]:
                self._refuse(node, "it did not answer in time")
            return
        post, began = self._posted(grid), time.monotonic()
        post.send(list(first.values()), patience)
        asked = dict.fromkeys(first, began)
        while any(node in self._open for node in asked):
            self._hear(post, least)
            passed = time.monotonic() - began
            enough = len(self.known) >= least and passed >= config.introduction_timeout
            if enough or passed >= patience:
                break
            if len(self.known) < least:
                self._ask_again(grid, asked, round, patience - passed)
            elif not post.open:
                break
            post.rest(began)
        for node in [node for node in asked if node in self._open]:
            self._note_late(node)

    def _ask_again(self, grid: Grid, asked: dict[int, float], round: int, left: float) -> None:
        """Ask those whose question is lost, as far as can be seen, and those who have come.

        That of a node that died is known to be lost once Flower has missed it for a while, or when
        nothing has come for ``introduction-timeout``; an answer to an earlier question counts, too.
        """
        post, now = self._posted(grid), time.monotonic()
        waiting = post.nodes
        for node in grid.get_node_ids():
            if node in self.known or node in self._refused:
                continue
            pause = self.config.introduction_timeout if node in waiting else AGAIN_SECONDS
            if now - asked.get(node, -math.inf) >= pause:
                question = self._question(node, round)
                self._open.setdefault(node, []).append(question)
                post.send([question], left)
                asked[node] = now

    def look(self, grid: Grid, present: Collection[int], round: int) -> None:
        """Hear who has answered since, without waiting, and ask those again that are late."""
        if self._post is None:
            return
        self._hear(self._post, 0)
        gone = [node for node in self._open if node not in present]
        self._post.forget(gone)
        for node in gone:
            del self._open[node]
        # Who was late once, and has come again, is asked, and nobody waits for it.
        back = self._late.keys() & present
        for node in back - self.known.keys() - self._refused.keys() - self._open.keys():
            self._open[node] = []
        waiting = self._post.nodes
        again = {node: self._question(node, round) for node in self._open if node not in waiting}
        self._open |= {node: [question] for node, question in again.items()}
        if again:
            self._post.send(list(again.values()), self.config.introduction_timeout)

    def strangers(self, present: Collection[int]) -> list[int]:
        """Return the nodes that are to be asked for the first time, and waited for."""
        known = self.known.keys() | self._refused.keys() | self._open.keys()
        return sorted(set(present) - known - self._late.keys())

    @property
    def unheard(self) -> list[int]:
        """The nodes that were asked and have not answered yet."""
        return sorted(self._open)

    def forget(self, keep: Collection[int]) -> None:
        """Forget what nodes said that are gone and act for nobody."""
        self.known = {node: said for node, said in self.known.items() if node in keep}

    def _question(self, node: int, round: int) -> Question:
        message = Message(pack_question(round, ()), node, MessageType.QUERY, group_id="roles")
        return Question(message, most=largest_words(self.config.users))

    def _posted(self, grid: Grid) -> Post:
        if self._post is None or self._post.grid is not grid:
            self._post = Post(grid, patience=self.patience)
        return self._post

    def _hear(self, post: Post, least: int) -> None:
        post.look()
        replies, post.heard.replies = post.heard.replies, []
        self._take(replies, least)
        self.notices.update(post.heard.notices)
        post.heard.notices.clear()

    def _take(self, replies: Iterable[Message], least: int) -> None:
        asked = {
            one.message.metadata.message_id: one
            for questions in self._open.values()
            for one in questions
        }
        for reply in replies:
            question = asked.pop(reply.metadata.reply_to_message_id, None)
            if question is None or question.node not in self._open:
                continue
            try:
                said = introduction(question, reply, self.config.users)
            except DeviceError as error:
                # The operator's own nodes: what is left out of the run would be the run.
                if not self.config.site:
                    raise
                self._refuse(question.node, one_line(str(error)))
                continue
            except ValueError as error:
                if not _passes(reply, hurt=len(self.known) < least):
                    self._refuse(question.node, one_line(str(error)))
                continue
            del self._open[question.node]
            self.known[question.node] = said
            self.notices.update({"absurd": said.absurd} if said.absurd else {})
            if question.node in self._late:
                log(INFO, "node %d has introduced itself, late", question.node)

    def _refuse(self, node: int, why: str) -> None:
        log(WARNING, "node %d cannot take part: %s", node, why)
        del self._open[node]
        if node not in self._late:
            self.notices[f"cannot-{node}"] += 1
        _remember(self._refused, node)

    def _note_late(self, node: int) -> None:
        log(
            WARNING,
            "node %d has not introduced itself in introduction-timeout = %g s: "
            "it is asked again between rounds",
            node,
            self.config.introduction_timeout,
        )
        self.notices[f"cannot-{node}"] += 1
        _remember(self._late, node)


def introduction(question: Question, reply: Message, users: int) -> Introduction:
    """Return what a node says of itself.

    Raises
    ------
    ValueError
        If it says nothing that can be used: why; DeviceError if it has not the run's device.
    """
    if reply.has_error():
        raise ValueError(reply.error.reason)
    if not genuine(question.message, reply):
        raise ValueError("others answer for it, or it does not bring back its question's secret")
    if (why := failure_in(reply.content)) is not None:
        lacking = lacks_device(reply.content)
        raise DeviceError(f"{why}, on node {question.node}") if lacking else ValueError(why)
    said = unpack_introduction(reply.content, users)
    if said.role not in ROLES:
        raise ValueError(f"role {one_line(said.role, 40)}")
    return said


def _passes(reply: Message, *, hurt: bool) -> bool:
    """Whether a reply says that a node was not there, or, if that hurts, that its process died."""
    if not reply.has_error():
        return False
    return reply.error.code == NODE_UNAVAILABLE or (hurt and reply.error.code not in APP_ERRORS)


def _remember(nodes: dict[int, None], node: int) -> None:
    nodes[node] = None
    while len(nodes) > MOST_REMEMBERED:
        del nodes[next(iter(nodes))]
