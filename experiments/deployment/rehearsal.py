"""Kill a site's server, SuperLink and nodes at random moments, and compare where rho ends.

::

    python -m experiments.deployment.rehearsal --kills 20 --seed 1 --folder /tmp/rehearsal

Nothing is started by hand that a site would not start by itself: the SuperLink again, as a service
manager does, and the run again (``run.sh``, with ``resume = "auto"``). SuperNodes come back by
``supernode.sh``, on their registrations in the SuperLink's database.

A node that dies with a question may miss its round, as any node may; the round then goes on
without its user. So it is the end that is compared and not each round: the run is one whose rho has
a limit, six times closer after each round with everybody, and it ends with ``SETTLING`` of these
after the last kill. The run in one process has as many rounds and no kills.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.deployment.loopback import Site, site
from experiments.running.superlink import COMPLETED, run_status
from pfl_flower import client_app, server_app
from pfl_flower.run.config import parse_config
from pfl_flower.run.rounds import read_rounds
from pfl_flower.transport.inprocess import run_in_process

NODES = ("alice", "bob", "carol")
LIMIT = 1e-9
SETTLING = 14
"""Rounds with everybody at the end: 0.15^14 of what the kills have moved rho by is below 1e-11."""
STEPS = 10
"""By how many rounds a run that was faster than the kills is made longer."""
PAUSES = 1.0, 25.0
"""Seconds before a kill, counted, as a coin falls, from the last kill or from the next round."""
VICTIMS = {
    "server": ("flwr-serverapp",),
    "superlink": ("flower-superlink",),
    "node": ("flower-supernode",),
    "app of a node": ("flwr-clientapp",),
}
"""What is killed, and the words of its command line."""
RUN: dict[str, object] = {
    "name": "rehearsal",
    "users": len(NODES),
    "strategic-users": "none",
    "dataset": "synthetic-logistic",
    "features": 6,
    "points-per-user": "40",
    "nu": 1.0,
    "server-lr": "0.2",
    "evaluate-every": 0,
    "save-trajectory": True,
    "checkpoint-every": 1,
}
AT_A_SITE = {
    "min-nodes": len(NODES),
    "node-timeout": 240.0,
    "reply-timeout": 120.0,
    "resume": "auto",
}


@dataclass
class Rehearsal:
    """A run on a site whose processes are killed.

    Attributes
    ----------
    place : Site
        The site.
    draw : random.Random
        Whom to kill, and when.
    rounds : int
        How long the run is to be, so far.
    kills : list of str
        What was killed.
    starts : int
        How often the run was started.
    """

    place: Site
    draw: random.Random
    rounds: int
    kills: list[str] = field(default_factory=list)
    starts: int = 0
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Print a line with the time and the last round."""
        print(f"{time.monotonic() - self.began:7.1f} s, round {self.done():3d}: {text}", flush=True)

    def folder(self) -> Path:
        """Return where the run writes."""
        return self.place.folder / "out" / "rehearsal"

    def done(self) -> int:
        """Return the last round that is written down."""
        path = self.folder() / "rounds.csv"
        rows = read_rounds(path) if path.exists() else []
        return int(rows[-1]["round"]) if rows else 0

    def keep_going(self) -> bool:
        """Start again what a site would; return whether the run has completed all its rounds."""
        if self.place.ended("link"):
            self.place.start_link()
            self.say("the SuperLink is started again")
        if self.starts and not self.place.ended("run"):
            return False
        if self.starts:
            said = self.place.log("run").rpartition("Using SuperLink")[2]
            try:
                status = run_status(said, self.place.environment)
            except subprocess.TimeoutExpired:
                return False  # A machine that is busy: it is asked again.
            if status == COMPLETED and self.done() >= self.rounds:
                return True
            if status.startswith(("running", "starting", "pending", "unknown")):
                # Flower learns within some seconds that the run of a dead SuperLink is over.
                return False
            self.say(f"the run is {status}: started again")
        where = {"output-dir": self.place.folder / "out", "rounds": self.rounds}
        self.place.run({**RUN, **AT_A_SITE, **where})
        self.starts += 1
        return False

    def kill(self) -> None:
        """Kill one of the processes that there are now."""
        for victim in self.draw.sample(sorted(VICTIMS), len(VICTIMS)):
            there = self.place.members(*VICTIMS[victim])
            if there and self.place.kill_one(self.draw.choice(there)):
                self.kills.append(victim)
                self.say(f"kill {len(self.kills)}: {victim}")
                return
        self.say("nothing to kill")

    def disturb(self, kills: int) -> None:
        """Kill so many times, and keep the run going meanwhile."""
        while len(self.kills) < kills:
            # Kills that are always sooner than a start would see nothing but starts.
            after = self.done() + self.draw.choice((0, 1))
            pause = self.draw.uniform(*PAUSES)
            while self.done() < after:
                self._wait()
            until = time.monotonic() + pause
            while time.monotonic() < until:
                self._wait()
            self.kill()

    def settle(self) -> None:
        """Let the run end with ``SETTLING`` rounds in which everybody was heard.

        On a busy machine a node may be late after the last kill too: then the run is made longer.
        """
        self.rounds = max(self.rounds, self.done() + SETTLING)
        while True:
            self.say(f"no more kills; the run is to have {self.rounds} rounds")
            while not self.keep_going():
                time.sleep(1)
            self.say("the run is finished:completed")
            whole = whole_rounds(read_rounds(self.folder() / "rounds.csv")[1:])
            if whole >= SETTLING:
                return
            self.say(f"somebody was not heard {whole} rounds before the end")
            self.rounds += SETTLING - whole

    def _wait(self) -> None:
        if self.keep_going():
            self.rounds += STEPS
            self.say(f"faster than the kills: the run is to have {self.rounds} rounds")
        time.sleep(1)


def whole_rounds(rows: list[dict[str, float]]) -> int:
    """Return how many rounds at the end have everybody's report.

    >>> whole_rounds([{"accepted": 3}, {"accepted": 2}, {"accepted": 3}, {"accepted": 3}])
    2
    """
    count = 0
    for row in reversed(rows):
        if row["accepted"] != len(NODES):
            break
        count += 1
    return count


def undisturbed(folder: Path, rounds: int) -> NDArray[np.float64]:
    """Return rho of every round of the run in one process."""
    config = parse_config({**RUN, "rounds": rounds, "output-dir": str(folder)})
    run_in_process(
        server_app.app, client_app.app, nodes=len(NODES), run_config=config.flat(), node_configs={}
    )
    found: NDArray[np.float64] = np.load(config.folder() / "trajectory.npy", allow_pickle=False)
    return found


def rehearse(folder: Path, kills: int, seed: int) -> bool:
    """Run on a site in a folder, kill, and return whether rho ends where it would have."""
    with site(folder / "site") as place:
        place.start_server()
        place.register(*NODES)
        for node in NODES:
            place.start_node(node)
        place.wait(lambda: place.online() == len(NODES), "the nodes")
        played = Rehearsal(place, random.Random(seed), rounds=STEPS)
        played.say(f"{len(NODES)} nodes are online; seed {seed}")
        played.disturb(kills)
        played.settle()
        found = np.load(played.folder() / "trajectory.npy", allow_pickle=False)
        rows = read_rounds(played.folder() / "rounds.csv")[1:]
    whole = undisturbed(folder / "alone", played.rounds)
    apart = float(np.linalg.norm(found[-1] - whole[-1]))
    complete = sum(row["accepted"] == len(NODES) for row in rows)
    counts = ", ".join(f"{played.kills.count(name)} {name}" for name in VICTIMS)
    print(f"{len(played.kills)} kills: {counts}; the run was started {played.starts} times")
    print(f"{len(rows)} rounds, {complete} of them with everybody's report")
    print(f"rho ends {apart:.1e} from where it ends without kills; at most {LIMIT:g} is right")
    return apart <= LIMIT and found.shape == whole.shape and len(rows) == played.rounds


def main() -> int:
    """Return 0 if rho ended at the same point, 1 if not."""
    parser = argparse.ArgumentParser(prog="experiments.deployment.rehearsal", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True, help="one that does not exist yet")
    given = parser.parse_args()
    if given.folder.exists():
        parser.error(f"--folder {given.folder}: expected a folder that does not exist yet")
    # What was started is stopped however this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return 0 if rehearse(given.folder.resolve(), given.kills, given.seed) else 1


if __name__ == "__main__":
    sys.exit(main())
