"""A grid on which things go wrong at random, and the table of what did.

The table: ``python -m tests.support.rough_grid``.

Each round every honest user's reply meets a fault with some probability; the plan is drawn first,
so what the server counts can be held against what was done to it.
"""

from __future__ import annotations

import argparse
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from flwr.app import Error, Message, MessageType
from torch import Tensor

from pfl_flower.aggregation.reports import Reason
from pfl_flower.client_app import app as client_app
from pfl_flower.run.config import RunConfig
from pfl_flower.run.problem import build_problem
from pfl_flower.transport.broadcasts import pack_rho
from pfl_flower.transport.inprocess import FIRST_NODE_ID, InProcessGrid
from strategies.asking import ERROR_REPLY, FORGED, MOST_REPEATS
from strategies.parameter_server import ParameterServer
from strategies.round_record import RoundRecord
from tests.support.faults import ARRIVALS, BALLS, FAULTS, HARMLESS
from tests.support.runs import configure

GONE = "a node that is away"
RAISED = ("an exception", "an exit", "a dead process")
NOTHING = ("denormal", "minus zero")
KINDS = (*FAULTS, *HARMLESS, *ARRIVALS, GONE)
Plan = Mapping[int, Mapping[int, str]]
"""For each round the users whom something happens to, and what; one user on each node."""


def draw_plan(
    rounds: int, users: Iterable[int], rate: float, seed: int, kinds: Sequence[str] = KINDS
) -> Plan:
    """Draw what happens to whom."""
    draw, among = random.Random(seed), sorted(users)
    return {
        round: {user: draw.choice(kinds) for user in among if draw.random() < rate}
        for round in range(1, rounds + 1)
    }


class RoughGrid(InProcessGrid):
    """Delivers what the plan leaves of the replies, in any order, and nodes come and go."""

    def __init__(self, plan: Plan, config: RunConfig, seed: int = 0) -> None:
        super().__init__(client_app, nodes=config.users, run_config=config.flat())
        # The server looks once for nodes before the first round.
        self.plan, self.round = plan, -1
        self._draw = random.Random(seed)
        self._held: list[Message] = []
        self._released = 0

    def happening(self, node: int) -> str | None:
        """Return what happens to a node's user in this round."""
        return self.plan.get(self.round, {}).get(node - FIRST_NODE_ID)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are not away; the server looks once before every round."""
        self.round += 1
        return [node for node in self.contexts if self.happening(node) != GONE]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Return what arrives of the replies, and what was held back in the round before."""
        arrived: list[list[Message]] = []
        if self._released != self.round:
            arrived, self._held, self._released = [self._held], [], self.round
        arrived += [self._arrivals(message) for message in messages]
        self._draw.shuffle(arrived)
        return [reply for several in arrived for reply in several]

    def _arrivals(self, message: Message) -> list[Message]:
        node = message.metadata.dst_node_id
        kind = self.happening(node) if message.metadata.message_type == MessageType.TRAIN else None
        before = self.contexts[node]
        (reply,) = super().send_and_receive([message])
        if kind is None:
            return [reply]
        if kind in ARRIVALS:
            return ARRIVALS[kind][0](message, reply, self._held)
        if kind in HARMLESS:
            return [HARMLESS[kind][0](message, reply)]
        if kind in RAISED:
            # Flower drops the state of a call that did not return.
            self.contexts[node] = before
            return [Message(Error(2, f"{kind}: no\nmore"), reply_to=message)]
        return [FAULTS[kind][0](message, reply)]


def faults_of(regularizer: str) -> tuple[str, ...]:
    """Return what can happen under a regulariser."""
    return tuple(k for k in KINDS if k not in FAULTS or regularizer in FAULTS[k][2])


def serve(
    config: RunConfig,
    grid: InProcessGrid,
    strategy: type[ParameterServer] = ParameterServer,
    watch: Callable[[RoundRecord], None] = lambda record: None,
) -> list[RoundRecord]:
    """Run the server on a grid and return its records."""
    problem = build_problem(config)
    records: list[RoundRecord] = []

    def on_round(record: RoundRecord) -> None:
        records.append(record)
        watch(record)

    server = strategy(problem, on_round=on_round)
    server.recruiter.settle = 0.0
    start, wait = pack_rho(problem.initial), config.reply_timeout
    server.start(grid, start, num_rounds=config.rounds, timeout=wait)
    return records


def without(lost: Mapping[int, set[int]]) -> type[ParameterServer]:
    """Return a server that does not ask these users in these rounds."""

    class Asking(ParameterServer):
        def participants(self, round: int) -> frozenset[int]:
            return super().participants(round) - lost.get(round, set())

    return Asking


@dataclass
class Tally:
    """How often a fault was injected, and what the server made of it."""

    injected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    lost: int = 0


def tally(plan: Plan, records: list[RoundRecord]) -> dict[str, Tally]:
    """Hold what was counted against what was injected; every rejection must have its fault."""
    found: dict[str, Tally] = defaultdict(Tally)
    for record in records:
        reasons = {fault.user: str(fault.reason) for fault in record.rejections}
        for user, kind in plan[record.round].items():
            found[kind].injected += 1
            found[kind].reasons[reasons.pop(user, "accepted")] += 1
            found[kind].lost += user not in record.accepted
        assert not reasons, f"round {record.round}: rejected without a fault, {reasons}"
    return found


def expected_reason(kind: str) -> str:
    """Return what the server has to say to a fault."""
    if kind == GONE:
        return "no-reply"
    if kind in FAULTS:
        return str(FAULTS[kind][1])
    reason = ARRIVALS[kind][1] if kind in ARRIVALS else None
    return "accepted" if reason is None else str(reason)


def repeats(kind: str) -> dict[str, int]:
    """Return what is counted of a node that is asked again and again, and is no better."""
    if kind in RAISED:
        return {ERROR_REPLY: 1 + MOST_REPEATS}
    forged = kind in FAULTS and FAULTS[kind][1] is Reason.FORGED
    return {FORGED: 1 + MOST_REPEATS} if forged else {}


def expected_notices(plan: Plan, rounds: int) -> Counter[str]:
    """Return what has to be left out; what is late in the last round never arrives."""
    expected: Counter[str] = Counter()
    for round, happened in plan.items():
        for kind in happened.values():
            if kind in ARRIVALS and not (kind == "late" and round == rounds):
                expected.update(ARRIVALS[kind][2])
            if kind in HARMLESS:
                expected["absurd"] += HARMLESS[kind][1]
            expected.update(repeats(kind))
    return +expected


def notices(records: list[RoundRecord]) -> Counter[str]:
    """Return what was left out in all rounds."""
    found: Counter[str] = Counter()
    for record in records:
        found.update(record.notices)
    return found


def markdown(found: Mapping[str, Tally]) -> str:
    """Return the table of faults."""
    lines = ["| fault | injected | counted as | reports lost |", "|---|---|---|---|"]
    for kind in KINDS:
        if kind in found:
            said = ", ".join(f"`{reason}` {n}" for reason, n in found[kind].reasons.items())
            also = ARRIVALS[kind][2] if kind in ARRIVALS else {}
            if kind in HARMLESS and HARMLESS[kind][1]:
                also = {"absurd": HARMLESS[kind][1]}
            also = {**also, **repeats(kind)}
            said += "".join(f"; left out, `{notice}` {n} each" for notice, n in also.items())
            lines.append(f"| {kind} | {found[kind].injected} | {said} | {found[kind].lost} |")
    injected, lost = (sum(getattr(t, key) for t in found.values()) for key in ("injected", "lost"))
    lines.append(f"| all | {injected} | | {lost} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Outcome:
    """A rough run, and the smooth one in which the users it lost were never asked."""

    plan: Plan
    records: list[RoundRecord]
    moved: float
    """Largest distance between the two in any round."""


def rough_run(
    config: RunConfig,
    *,
    rate: float,
    seed: int = 1,
    compare: int = 10**9,
    watch: Callable[[RoundRecord], None] = lambda record: None,
) -> Outcome:
    """Run with faults; then ``compare`` rounds without those whom they cost a report."""
    users = frozenset(range(config.users))
    kinds = faults_of(config.regularizer)
    plan = draw_plan(config.rounds, users - config.strategic(), rate, seed, kinds)
    records = serve(config, RoughGrid(plan, config, seed), watch=watch)
    lost = {record.round: set(users - record.accepted.keys()) for record in records}
    for round, happened in plan.items():
        # Valid, but next to nothing: as good as not there.
        lost[round] |= {user for user, kind in happened.items() if kind in NOTHING}
    shorter = config.model_copy(update={"rounds": min(config.rounds, compare)})
    smooth = serve(shorter, RoughGrid({}, shorter), without(lost))
    return Outcome(plan, records, _distance(records[: len(smooth)], smooth))


def _distance(one: list[RoundRecord], other: list[RoundRecord]) -> float:
    pairs: list[tuple[Tensor, Tensor]] = [(a.rho, b.rho) for a, b in zip(one, other, strict=True)]
    return max(float(torch.linalg.vector_norm(a - b)) for a, b in pairs)


def resident() -> float:
    """Return the memory of this process that is in use, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    for regularizer in BALLS:
        config = configure(rounds=asked.rounds, regularizer=regularizer)
        used: list[float] = []

        def watch(record: RoundRecord, used: list[float] = used) -> None:
            used.append(resident())

        outcome = rough_run(config, rate=asked.rate, seed=asked.seed, watch=watch)
        print(f"\n{regularizer}, {asked.rounds} rounds, {config.users} users on as many nodes\n")
        print(markdown(tally(outcome.plan, outcome.records)))
        print(f"\nFrom a run that never asked those users rho differs by {outcome.moved:.1e}.")
        print(f"Memory: {used[len(used) // 4]:.0f} MB after a quarter, {used[-1]:.0f} at the end.")


if __name__ == "__main__":
    main()
