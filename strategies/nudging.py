"""Calls to silent nodes of a site: what they hold comes out, what they lost is asked again.

Flower delivers a message once, and a SuperNode of 1.41 or 1.42 pushes answers only after it has
pulled a message, whichever lie ready then. So a question is lost with the SuperNode that had pulled
it, or with the response in which it was pulled. And where a run ends while a node pulls one of its
messages, the node ignores the message, whose app is started all the same: that answer is pushed in
place of the next one, and from then on every answer waits at the node until another message comes,
in the runs of others too, until the SuperNode is started again.

A node takes messages in the order in which they were sent, one at a time. So a node that is silent
for long is called: asked something that takes no state. The call brings out an answer that waits
there; and if it is answered itself before its question is, the question is lost.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from logging import WARNING

from flwr.app import Message
from flwr.serverapp import Grid

from pfl_flower.transport.flower_internals import log
from pfl_flower.transport.nonces import genuine
from pfl_flower.transport.pulling import pull
from strategies.questions import Question, call_to

FIRST_CALL = 30.0
"""Seconds of silence: several times what a small round takes at a site. A call costs the node a
process of some seconds, and a node that is busy rather than silent pays it in vain."""
MOST_DOUBLINGS = 6
"""After so many calls in vain, one for each question, a node takes half an hour to be called."""
SOON = 10.0
"""Seconds from a call to an answer that waited for it: a SuperNode polls each 3."""
CALLED_AT_ONCE, AT_ONCE = 9, 1.0
"""Answers for which a node that held one back is called after a second; then it is tried whether it
still does, which its next start ends."""
HOLDS = (
    "node %d answered as soon as it was asked something else: its SuperNode may hold each answer "
    "back, as after a run that ended while it was asked, until it is started again; it is asked "
    "something else at once from now on"
)


@dataclass
class Patience:
    """How long each node may keep silent, as it was found to need; kept from round to round."""

    _in_vain: dict[int, int] = field(default_factory=dict)
    _holding: dict[int, int] = field(default_factory=dict)

    def seconds(self, node: int) -> float:
        """Return after how many seconds of silence a node is called."""
        if self._holding.get(node):
            return AT_ONCE
        return FIRST_CALL * 2.0 ** self._in_vain.get(node, 0)

    def learn(self, node: int, seconds: float) -> None:
        """Take note that a node answered a question so many seconds after it was called.

        Flower's logger says of whom it is found that it holds answers back.
        """
        if self._holding.get(node):
            self._holding[node] -= 1
        elif seconds <= SOON:
            if node not in self._holding:
                log(WARNING, HOLDS, node)
            self._holding[node] = CALLED_AT_ONCE
            self._in_vain.pop(node, None)
        else:
            self._in_vain[node] = min(MOST_DOUBLINGS, self._in_vain.get(node, 0) + 1)


@dataclass
class _Call:
    """A call, when it was sent, and the message of the question that it came after."""

    message: Message
    sent: float
    after: str


@dataclass
class Nudges:
    """The calls to the nodes of a site whose answers are waited for.

    Attributes
    ----------
    grid : Grid
        The site's.
    patience : Patience
        What earlier rounds have shown of its nodes.
    """

    grid: Grid
    patience: Patience
    _calls: dict[str, _Call] = field(default_factory=dict)

    def overtaken(self, waiting: Mapping[str, Question]) -> list[str]:
        """Return the questions in ``waiting`` whose nodes have answered a later call.

        Such a question's answer has come, and can be pulled after this, or it never will. Only what
        brings a call's secret back is an answer to it.
        """
        self._calls = {name: call for name, call in self._calls.items() if call.after in waiting}
        limits = {name: waiting[call.after].most for name, call in self._calls.items()}
        found = []
        for reply in pull(self.grid, list(limits), limits) if limits else []:
            # It stays: whatever answers a call, a question has one.
            call = self._calls.get(reply.metadata.reply_to_message_id)
            if call and reply.has_content() and genuine(call.message, reply):
                found.append(call.after)
        return found

    def settle(self, answered: Mapping[str, Question]) -> None:
        """Learn from questions that have been answered: their calls wait for nothing more."""
        now = time.monotonic()
        for name, call in [*self._calls.items()]:
            if call.after in answered:
                self.patience.learn(answered[call.after].node, now - call.sent)
                del self._calls[name]

    def call(self, silent: Mapping[str, float], waiting: Mapping[str, Question]) -> None:
        """Call the nodes that have been silent for too long, once for each question.

        ``silent`` are the seconds since each question in ``waiting`` was sent.
        """
        called = {call.after for call in self._calls.values()}
        due = [
            name
            for name, question in waiting.items()
            if name not in called and silent[name] >= self.patience.seconds(question.node)
        ]
        calls = [call_to(waiting[name].node) for name in due]
        if not calls:
            return
        pushed, now = set(self.grid.push_messages(calls)), time.monotonic()
        for name, message in zip(due, calls, strict=True):
            identifier = message.metadata.message_id
            if identifier in pushed:
                self._calls[identifier] = _Call(message, now, name)
