"""Silent nodes at a real SuperLink: one holds its answers back, one loses a question."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from experiments.deployment.loopback import site
from experiments.deployment.machine import PATIENCE
from experiments.running.engines import ROOT
from experiments.running.superlink import COMPLETED, run_status, script
from pfl_flower import client_app, server_app
from pfl_flower.run.config import parse_config
from pfl_flower.run.keys import Scalar
from pfl_flower.run.rounds import read_rounds
from pfl_flower.transport.inprocess import run_in_process
from tests.support.fleet import Participant

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]

RUN = {
    "name": "silent",
    "dataset": "synthetic-logistic",
    "features": 6,
    "users": 2,
    "points-per-user": "40",
    "strategic-users": "none",
    "nu": 0.1,
    "rounds": 3,
    "evaluate-every": 0,
    "save-trajectory": True,
    "site": True,
    "min-nodes": 2,
    "reply-timeout": 2 * PATIENCE,
    "introduction-timeout": 2 * PATIENCE,
}


class Holding(Participant):
    """It answers when it is asked the next thing, as a SuperNode that is one answer late."""

    held: tuple[Message, RecordDict] | None = None

    def turn(self, keys: dict[str, Scalar]) -> None:
        question = self.pull()
        if question is None:
            return
        if self.held is not None:
            self.push(*self.held)
        self.held = question, self.answer(question, keys)


class Losing(Participant):
    """The first question of round 2 is pulled, and that is all."""

    def __init__(self, address: str, certificate: Path, key: Path) -> None:
        super().__init__(address, certificate, key)
        self.pulled: Counter[str] = Counter()

    def turn(self, keys: dict[str, Scalar]) -> None:
        question = self.pull()
        if question is None:
            return
        about = question.metadata.group_id
        self.pulled[about] += 1
        if about != "2" or self.pulled[about] > 1:
            self.push(question, self.answer(question, keys))


def test_held_answers_come_and_lost_questions_are_asked_again(tmp_path: Path) -> None:
    """Nobody is missed in any round, and the run is that of one process."""
    keys = parse_config({**RUN, "output-dir": str(tmp_path / "out")}).flat()
    with site(tmp_path / "site") as place:
        place.start_link()
        place.register("bob", "eve")
        address, certificate = f"127.0.0.1:{place.link_port}", place.state / "loopback.crt"
        bob = Holding(address, certificate, place.keys("bob") / "bob")
        eve = Losing(address, certificate, place.keys("eve") / "eve")
        words = " ".join(
            f"{key}={value!r}".replace("True", "true")
            for key, value in {**RUN, "output-dir": str(tmp_path / "out")}.items()
        )
        command = [script("flwr"), "run", str(ROOT), "site", "--stream", "--run-config", words]
        place.start("run", *command)

        def ended() -> bool:
            bob.turn(keys)
            eve.turn(keys)
            return place.ended("run")

        place.wait(ended, "the end of the run", 2 * PATIENCE)
        said = place.log("run")
        assert run_status(said, place.environment) == COMPLETED, said[-3000:]
    assert said.count(f"node {bob.node.node_id} answered as soon as") == 1
    assert f"node {eve.node.node_id} answered" not in said
    assert eve.pulled["2"] == 2
    rows = read_rounds(tmp_path / "out" / "silent" / "rounds.csv")[1:]
    assert [row["accepted"] for row in rows] == [2, 2, 2]
    assert "lost:1" in (tmp_path / "out" / "silent" / "rounds.csv").read_text()
    alone = parse_config({**RUN, "output-dir": str(tmp_path / "alone")})
    run_in_process(server_app.app, client_app.app, nodes=2, run_config=alone.flat())
    found, expected = (
        np.load(tmp_path / n / "silent" / "trajectory.npy") for n in ("out", "alone")
    )
    assert np.abs(found - expected).max() <= 1e-12
