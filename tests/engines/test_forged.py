"""A participant who answers for another, on a real SuperLink: before and after the secrets.

Bob and Eve speak Flower's fleet API themselves. Bob is slow: Eve always comes first.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Error, Message, MessageType, MetricRecord, RecordDict
from numpy.typing import NDArray

from experiments.deployment.loopback import Site, site
from experiments.deployment.machine import PATIENCE
from experiments.running.engines import ROOT
from experiments.running.superlink import COMPLETED, run_status
from pfl_flower import client_app, server_app
from pfl_flower.run.config import parse_config
from pfl_flower.run.keys import Scalar
from pfl_flower.transport.inprocess import run_in_process
from pfl_flower.transport.node_metrics import METRICS
from pfl_flower.transport.records import ARRAYS, integers, packed
from pfl_flower.transport.training_replies import GRADIENTS
from pfl_flower.transport.wire import to_record, to_tensor
from strategies.asking import MOST_REPEATS
from tests.support.fleet import Participant, guesses

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]

RUN = {
    "name": "forged",
    "dataset": "synthetic-logistic",
    "features": 6,
    "users": 2,
    "points-per-user": "40",
    "strategic-users": "none",
    "nu": 0.1,
    "rounds": 2,
    "evaluate-every": 1,
    "save-trajectory": True,
    "site": True,
    "min-nodes": 2,
    "reply-timeout": PATIENCE,
}
BEFORE = '''
"""The apps without the secrets: as they were, in all that matters here."""

from pfl_flower import client_app, server_app
from pfl_flower.transport import broadcasts, questions
from strategies import asking, introductions, replies
from strategies import questions as asked

client = client_app.app
server = server_app.app
asking.MOST_REPEATS = 0
for module in (broadcasts, questions):
    module.fresh = lambda: ""
for module in (asking, introductions, replies, asked):
    module.genuine = lambda question, reply: True
'''
AROUND, TRIED = 3000, 20
"""Microseconds before and after that are guessed; how many guesses are sent, the right one last, if
it is among them, so that a busy machine is not kept busy with refusals."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A SuperLink; nobody's SuperNode."""
    with site(tmp_path_factory.mktemp("forged")) as made:
        made.environment["PYTHONPATH"] = str(ROOT)
        made.start_link()
        made.register("bob", "eve")
        yield made


@pytest.fixture(scope="module")
def both(place: Site) -> tuple[Participant, Participant]:
    address, certificate = f"127.0.0.1:{place.link_port}", place.state / "loopback.crt"
    bob, eve = (
        Participant(address, certificate, place.keys(name) / name) for name in ("bob", "eve")
    )
    return bob, eve


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app as it was before, to be run in place of this one."""
    folder = tmp_path_factory.mktemp("before")
    text = (ROOT / "pyproject.toml").read_text()
    for name, what in (("server", "serverapp"), ("client", "clientapp")):
        own = f'{what} = "pfl_flower.{name}_app:app"'
        assert own in text
        text = text.replace(own, f'{what} = "before:{name}"')
    (folder / "pyproject.toml").write_text(text)
    (folder / "before.py").write_text(BEFORE)
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


Forge = Callable[[Participant, Message, RecordDict, Message], int]
"""Eve, her own question, her answer to it, and Bob's question, which she may not look at: she does
what she does about Bob's, and returns how many replies she sent."""


def turned(said: RecordDict) -> RecordDict:
    """Return a report that pushes rho the other way, as any strategic user's might."""
    rows = to_tensor(said.array_records[ARRAYS][GRADIENTS])
    return RecordDict({**said, ARRAYS: to_record({GRADIENTS: -3.0 * rows})})


def by_guessing(eve: Participant, own: Message, said: RecordDict, bobs: Message) -> int:
    """She knows Bob's node and his user; of broadcasts alone, whose rows move rho."""
    if own.metadata.message_type != MessageType.TRAIN:
        return 0
    (hers,) = integers(own.content.config_records["config"], "users")
    users = packed([1 - hers])
    told = {"users": users}
    # What she says of the local model is said of Bob's.
    words = MetricRecord({**said.metric_records[METRICS], "accuracy-users": [1 - hers]})
    forged = RecordDict({**turned(said), "config": _with(said, told), METRICS: words})
    made = list(guesses(own, bobs.metadata.dst_node_id, users, AROUND))
    names = [guess.metadata.message_id for guess in made]
    right = names.index(bobs.metadata.message_id) if bobs.metadata.message_id in names else None
    print(f"{len(made)} guesses, and Bob's question is number {right}")
    last = TRIED if right is None else right + 1
    tried = made[max(0, last - TRIED) : last]
    for guess in tried:
        eve.push(guess, forged)
    return len(tried)


def by_reading(eve: Participant, own: Message, said: RecordDict, bobs: Message) -> int:
    """She has seen the id of Bob's question, in a log say, but not the question."""
    eve.push(bobs, turned(said) if ARRAYS in said else said)
    return 1


def by_an_error(eve: Participant, own: Message, said: RecordDict, bobs: Message) -> int:
    eve.push(bobs, Error(5, "Bob is gone, says Eve"))
    return 1


def _with(said: RecordDict, words: dict[str, bytes]) -> object:
    record = said.config_records["config"]
    return type(record)({**record, **words})


def kind(question: Message) -> tuple[str, str]:
    return question.metadata.message_type, question.metadata.group_id


def pulled(one: Participant, keys: dict[str, Scalar]) -> Message | None:
    """Return the next question; a call, to which a busy machine may lead, is answered as ever."""
    question = one.pull()
    while question is not None and question.metadata.group_id == "":
        one.push(question, one.answer(question, keys))
        question = one.pull()
    return question


class Course:
    """A run, and what Eve did in it."""

    def __init__(self, place: Site, folder: Path, name: str) -> None:
        self.place, self.folder, self.name = place, folder, name
        self.sent = self.hits = 0

    def play(self, both: tuple[Participant, Participant], forge: Forge, times: int) -> None:
        """Answer for both until the run has ended; Eve forges the first ``times`` of a question."""
        bob, eve = both
        for one in both:
            one.state.clear()
        keys = parse_config({**RUN, "output-dir": str(self.place.folder / self.name)}).flat()
        words = " ".join(
            f"{key}={value!r}".replace("True", "true") for key, value in self.settings().items()
        )
        command = [shutil.which("flwr", path=self.place.environment["PATH"]) or "flwr", "run"]
        self.place.start(
            self.name, *command, str(self.folder), "site", "--stream", "--run-config", words
        )
        asked: dict[tuple[str, str], int] = {}
        last: tuple[Message, RecordDict] | None = None

        def turn() -> bool:
            nonlocal last
            his, due = pulled(bob, keys), []
            # Both are asked at the same time: hers comes, too.
            while (hers := pulled(eve, keys)) or (
                his and (last is None or kind(last[0]) != kind(his))
            ):
                if hers is not None:
                    last = hers, eve.answer(hers, keys)
                    due.append(last)
            if his is not None and last is not None:
                asked[kind(his)] = asked.get(kind(his), 0) + 1
                if asked[kind(his)] <= times:
                    self.sent += forge(eve, *last, his)
                bob.push(his, bob.answer(his, keys))
            for one in due:
                eve.push(*one)
            return self.place.ended(self.name)

        self.place.wait(turn, "the end of the run", 2 * PATIENCE)
        said = self.place.log(self.name)
        assert run_status(said, self.place.environment) == COMPLETED, said[-3000:]

    def settings(self) -> dict[str, object]:
        return {**RUN, "output-dir": str(self.place.folder / self.name)}

    @property
    def trajectory(self) -> NDArray[np.float64]:
        return np.load(self.place.folder / self.name / "forged" / "trajectory.npy")

    @property
    def rows(self) -> list[dict[str, str]]:
        path = self.place.folder / self.name / "forged" / "rounds.csv"
        with path.open() as file:
            return list(csv.DictReader(file))[1:]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.float64]:
    folder = tmp_path_factory.mktemp("calm")
    config = parse_config({**RUN, "output-dir": str(folder)})
    run_in_process(server_app.app, client_app.app, nodes=2, run_config=config.flat())
    return np.load(folder / "forged" / "trajectory.npy")


def test_before_a_guess_was_enough(
    place: Site, both: tuple[Participant, Participant], before: Path, calm: NDArray[np.float64]
) -> None:
    """Eve's row counted as Bob's, and nobody was told."""
    course = Course(place, before, "before")
    course.play(both, by_guessing, 1)
    assert np.abs(course.trajectory - calm).max() > 0.1
    assert [row["accepted"] for row in course.rows] == ["2", "2"]
    assert [row["rejection_reasons"] + row["notices"] for row in course.rows] == ["", ""]


@pytest.mark.parametrize(
    ("name", "forge", "times", "notices"),
    [
        ("guessing", by_guessing, 1, ["", ""]),
        ("reading", by_reading, 1, ["forged", "forged"]),
        ("reading-on", by_reading, MOST_REPEATS, ["forged", "forged"]),
        ("errors", by_an_error, 1, ["error-reply", "error-reply"]),
    ],
)
def test_now_it_is_nobodys_word_and_bob_is_asked_again(
    place: Site,
    both: tuple[Participant, Participant],
    calm: NDArray[np.float64],
    name: str,
    forge: Forge,
    times: int,
    notices: list[str],
) -> None:
    """Introductions and broadcasts, with which accuracies come; the run is that of one process."""
    course = Course(place, ROOT, name)
    course.play(both, forge, times)
    assert course.sent == (2 * TRIED if name == "guessing" else (1 + 2) * times)
    assert np.abs(course.trajectory - calm).max() <= 1e-12
    assert [row["accepted"] for row in course.rows] == ["2", "2"]
    assert [row["rejection_reasons"] for row in course.rows] == ["", ""]
    said = [row["notices"].partition(":")[0] for row in course.rows]
    assert said == notices
    counted = sum(int(row["notices"].partition(":")[2] or 0) for row in course.rows)
    assert counted == (0 if name == "guessing" else course.sent)
    assert all(row["local_accuracy"] for row in course.rows)
