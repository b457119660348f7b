"""What a strategic user has learned and the next message's process would have to learn again.

At a site every message has a process of its own. A target that is solved for, and is in no file of
the cache, costs it more than all else that an attack does; so it goes on in Flower's state, which
lasts as long as the run.
"""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from pfl_flower.run.problem import Problem
from pfl_flower.transport.wire import find, to_record, to_tensor

LEARNED = "learned-"
"""Begins the names of such records; no disk keeps them."""
TARGETS, SOURCE = f"{LEARNED}targets", f"{LEARNED}from"


def take_targets(problem: Problem, state: RecordDict) -> None:
    """Let a problem take the targets in a state, if they were learned from the same points."""
    if problem.has_targets:
        return
    kept, source = find(state, TARGETS, ArrayRecord), find(state, SOURCE, ConfigRecord)
    if kept is not None and source is not None and source.get("key") == problem.source.key:
        problem.take_targets({int(shift): to_tensor(target) for shift, target in kept.items()})


def keep_targets(problem: Problem, state: RecordDict) -> None:
    """Keep what a problem has learned in a state, for the process of the next message."""
    learned, source = problem.dear_targets(), ConfigRecord({"key": problem.source.key})
    if learned and find(state, SOURCE, ConfigRecord) != source:
        state[TARGETS] = to_record({str(shift): target for shift, target in learned.items()})
        state[SOURCE] = source
