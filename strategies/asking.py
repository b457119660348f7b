"""Asking nodes, and asking again those for whom another may have spoken.

Flower keeps one reply to a question and deletes the question once the reply is pulled: a forged one
silences the right one. A reply without its question's secret is therefore never the last word, and
neither is an error, which carries no content and could be anybody's: the node is asked again at
once, with a new message and a new secret, a few times at most. Clients answer a repeated question
as they did before (``clients.answers``). So is a node whose question is lost, see ``nudging``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from pfl_flower.transport.inprocess import InProcessGrid
from pfl_flower.transport.nonces import genuine, nonce_of
from pfl_flower.transport.pulling import is_site, pull
from strategies.nudging import Nudges, Patience
from strategies.questions import MOST_BYTES, Question, call_to

MOST_REPEATS = 3
"""How often a question is repeated: who has read a node's mail would have to win four races, and
what a forger can cost a node is three answers, on a real one a process of some seconds each."""
FORGED, ERROR_REPLY, LOST = "forged", "error-reply", "lost"
"""Why a question was repeated: a reply without its secret, an error of Flower's, or an answer to
what the node was asked later."""
SHORTEST_WAIT, LONGEST_WAIT = 0.02, 0.5
WAITED_SHARE = 0.05
"""Seconds between two looks at what has come: a twentieth of the time since the question, so that
looking too late adds little to a round, and a round of minutes is not looked at a thousand times.
Flower's own loop looks each 3 seconds, and each 0.1 in a simulation."""


@dataclass
class Heard:
    """What came of some questions.

    Attributes
    ----------
    replies : list of Message
        The last reply to each question that had one, and replies to nothing that was asked.
    notices : Counter
        Replies that were ``forged``, errors in place of one, ``error-reply``, and questions that
        were ``lost``.
    """

    replies: list[Message] = field(default_factory=list)
    notices: Counter[str] = field(default_factory=Counter)

    def take(self, replies: Iterable[Message], waiting: dict[str, Question]) -> list[Question]:
        """Take replies to questions by their messages' ids; return those that are to be repeated.

        A question that has been answered waits no longer.
        """
        again = []
        for reply in replies:
            question = waiting.pop(reply.metadata.reply_to_message_id, None)
            fault = None if question is None else _fault(question.message, reply)
            if fault is not None:
                self.notices[fault] += 1
            if question is None or fault is None or question.repeats >= MOST_REPEATS:
                self.replies.append(reply)
            else:
                question.repeat()
                again.append(question)
        return again


@dataclass
class Post:
    """Questions that are on their way on a grid, and what has come of them.

    Attributes
    ----------
    grid : Grid
        Flower's.
    heard : Heard
        What has come so far.
    waiting : dict
        The questions that nobody has answered yet, by their messages' ids.
    held : list
        Questions of a simulation that ended in an error, each with its time limit. Flower puts an
        actor that has died back among the idle ones, where it fails at once, and takes the one next
        that came back last: asked again at once, a node meets dead actors as long as the living
        ones are busy. So one question is let go for each answer. When no other is on its way, every
        node is asked something that takes no state: the dead fail at it first, the living come back
        after them, and are the next to be taken.
    patience : Patience
        With the silence of a site's nodes.
    """

    grid: Grid
    heard: Heard = field(default_factory=Heard)
    waiting: dict[str, Question] = field(default_factory=dict)
    held: list[tuple[Question, float]] = field(default_factory=list)
    patience: Patience = field(default_factory=Patience)
    _until: dict[str, tuple[float, float]] = field(default_factory=dict)
    _calls: dict[str, float] = field(default_factory=dict)
    _nudges: Nudges | None = None

    def __post_init__(self) -> None:
        """Call silent nodes where they are a site's."""
        if is_site(self.grid):
            self._nudges = Nudges(self.grid, self.patience)

    def send(self, questions: Sequence[Question], timeout: float) -> None:
        """Send questions, whose messages have ``timeout`` seconds, repeated ones too."""
        pushed = set(self.grid.push_messages([one.message for one in questions]))
        here = {one.message.metadata.message_id: one for one in questions}
        sent = {identifier: one for identifier, one in here.items() if identifier in pushed}
        self.waiting |= sent
        self._until |= dict.fromkeys(sent, (time.monotonic() + timeout, timeout))

    @property
    def open(self) -> bool:
        """Whether anything can still come."""
        return bool(self.waiting or self.held)

    @property
    def nodes(self) -> set[int]:
        """The nodes of whom an answer may come."""
        return {one.node for one in [*self.waiting.values(), *(one for one, _ in self.held)]}

    def look(self) -> None:
        """Take what has come, ask again where that is due, and wait no longer for what is late."""
        overtaken = self._nudges.overtaken(self.waiting) if self._nudges else []
        answered = self._take() if self.waiting else 0
        self._send_lost(overtaken)
        if self.held and not self.waiting and not answered:
            answered += self._call()
        for question, timeout in self.held[:answered]:
            self.send([question], timeout)
        del self.held[:answered]
        self._calls = self._calls if self.held else {}
        now = time.monotonic()
        for late in [one for one in self.waiting if self._until[one][0] <= now]:
            del self.waiting[late]
        self._until = {identifier: self._until[identifier] for identifier in self.waiting}
        if self._nudges:
            began = {one: until - timeout for one, (until, timeout) in self._until.items()}
            self._nudges.call({one: now - then for one, then in began.items()}, self.waiting)

    def _send_lost(self, overtaken: Iterable[str]) -> None:
        """Ask again what a node has not answered before it answered what it was asked later."""
        for lost in overtaken:
            question = self.waiting.get(lost)
            if question is not None and question.repeats < MOST_REPEATS:
                self.heard.notices[LOST] += 1
                timeout = self._until[lost][1]
                del self.waiting[lost]
                question.repeat()
                self.send([question], timeout)

    def _take(self) -> int:
        """Take what has come, and return how many answers there were."""
        asked = dict(self.waiting)
        limits = {identifier: one.most for identifier, one in asked.items()}
        replies = pull(self.grid, list(asked), limits)
        times = {id(one): self._until[key][1] for key, one in self.waiting.items()}
        failed = {one.metadata.reply_to_message_id for one in replies if one.has_error()}
        lost = {id(one) for key, one in self.waiting.items() if key in failed}
        for question in self.heard.take(replies, self.waiting):
            if id(question) in lost and not is_site(self.grid):
                self.held.append((question, times[id(question)]))
            else:
                self.send([question], times[id(question)])
        if self._nudges:
            answered = {one: asked[one] for one in asked.keys() - self.waiting.keys()}
            self._nudges.settle(answered)
        return len(replies) - len(failed)

    def _call(self) -> int:
        """Ask all nodes for nothing, and return how many questions may go now: one an answer.

        If nobody answers, all of them, for the last times.
        """
        now = time.monotonic()
        if not self._calls:
            nodes = self.grid.get_node_ids()
            calls = [call_to(node) for node in nodes]
            until = now + self.held[0][1]
            self._calls = {one: until for one in self.grid.push_messages(calls) if one}
            return 0 if self._calls else len(self.held)
        replies = pull(self.grid, list(self._calls), dict.fromkeys(self._calls, MOST_BYTES))
        came = {one.metadata.reply_to_message_id for one in replies}
        late = {one for one, until in self._calls.items() if until <= now}
        self._calls = {k: until for k, until in self._calls.items() if k not in came | late}
        answered = sum(not one.has_error() for one in replies)
        return answered or (0 if self._calls else len(self.held))

    def forget(self, nodes: Collection[int]) -> None:
        """Wait no longer for these nodes."""
        for identifier in [one for one, asked in self.waiting.items() if asked.node in nodes]:
            del self.waiting[identifier], self._until[identifier]
        self.held = [one for one in self.held if one[0].node not in nodes]

    def rest(self, began: float) -> None:
        """Wait until it is worth another look at what was asked at ``began``."""
        passed = time.monotonic() - began
        time.sleep(min(LONGEST_WAIT, max(SHORTEST_WAIT, WAITED_SHARE * passed)))


def ask(
    grid: Grid, questions: Sequence[Question], timeout: float, patience: Patience | None = None
) -> Heard:
    """Send questions and return what came back; each holds its last message afterwards.

    Every message has ``timeout`` seconds, a repeated one too: a forger can make a round up to
    ``1 + MOST_REPEATS`` times as long, and cannot take the time of the node that it spoke for.
    ``patience`` is what earlier rounds have shown of a site's nodes.
    """
    if not isinstance(grid, InProcessGrid):
        post, began = Post(grid, patience=patience or Patience()), time.monotonic()
        post.send(questions, timeout)
        while post.open:
            post.look()
            if post.open:
                post.rest(began)
        return post.heard
    heard, again = Heard(), list(questions)
    # Nodes of this process answer at once, each in a time of its own.
    while again:
        replies = list(grid.send_and_receive([one.message for one in again], timeout=timeout))
        again = heard.take(replies, {one.message.metadata.message_id: one for one in again})
    return heard


def _fault(question: Message, reply: Message) -> str | None:
    """Return why a reply is not the last word on its question, None if it is."""
    if reply.has_error():
        return ERROR_REPLY
    # A strategy of one's own may send messages of its own, without a secret.
    if nonce_of(question.content) is None or genuine(question, reply):
        return None
    return FORGED
