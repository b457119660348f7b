"""A strategic user who never took part, and a memory that was lost, are no quiet runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from experiments.__main__ import NO_VERDICT, main
from experiments.running import preset_runs
from experiments.running.options import Options
from experiments.running.preset_runs import run_preset, show
from experiments.studies.study import Setting
from experiments.studies.variants import run_variant
from pfl_flower import api, server_app
from pfl_flower.client_app import app as client_app
from pfl_flower.run import figures, preset_claims
from pfl_flower.run.attendance import MEMORY, TOOK_PART, Attendance
from pfl_flower.run.checks import Check
from pfl_flower.run.conclusion import table
from pfl_flower.run.outcome import Outcome
from pfl_flower.run.presets import preset
from pfl_flower.run.problem import build_problem
from pfl_flower.support.errors import RunFailedError
from pfl_flower.transport.inprocess import InProcessGrid
from pfl_flower.transport.node_metrics import METRICS
from pfl_flower.transport.records import ARRAYS
from pfl_flower.transport.training_replies import GRADIENTS
from strategies import recruiting
from strategies.measuring import Measuring
from tests.support.runs import TINY, Tamper, configure, tampering


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for nodes that are all there, and no pictures."""
    monkeypatch.setattr(recruiting, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(figures, "run_figure", lambda *_: [])
    monkeypatch.setattr(preset_runs, "run_figure", lambda *_: [])


def outcome(
    tamper: Tamper | None = None,
    *,
    folder: Path | None = None,
    node_configs: Mapping[int, Mapping[str, Any]] | None = None,
    app: ClientApp | None = None,
    **keys: Any,
) -> Outcome:
    config = configure(**{"rounds": 3, **keys})
    chosen = app or (client_app if tamper is None else tampering(4, tamper))
    grid = InProcessGrid(chosen, nodes=2, run_config=config.flat(), node_configs=node_configs)
    return server_app.run(grid, build_problem(config), folder=folder)


def check(found: Outcome, name: str) -> Check:
    (one,) = [check for check in found.checks if check.name == name]
    return one


def reported(values: Any) -> Tamper:
    def tamper(broadcast: Message, reply: Message) -> Message:
        reply.content[ARRAYS] = ArrayRecord({GRADIENTS: Array(np.asarray(values))})
        return reply

    return tamper


def failing(broadcast: Message, reply: Message) -> Message:
    return Message(Error(2, "no"), reply_to=broadcast)


def empty(broadcast: Message, reply: Message) -> Message:
    return Message(RecordDict(), reply_to=broadcast)


def late_beginner(broadcast: Message, reply: Message) -> Message:
    last = broadcast.metadata.group_id == "3"
    return reply if last else failing(broadcast, reply)


SWORN = {0: {"role": "honest"}, 1: {"role": "honest"}}
PRESENT = "1 of 1"
BALL = {"regularizer": "l2"}
TAKING_PART: dict[str, tuple[Tamper | None, dict[str, Any], str, bool]] = {
    "it did": (None, {}, PRESENT, True),
    "once, at the end": (late_beginner, {}, PRESENT, True),
    "judged implausible": (reported(np.full((1, 6), 9.0)), BALL, PRESENT, True),
    "over the limit": (reported(np.full((1, 6), 9.0)), {"max_gradient_norm": 5.0}, PRESENT, True),
    "too much for rho": (reported(np.full((1, 6), 1e308)), {"server_lr": 10}, PRESENT, True),
    "never a number": (reported(np.full((1, 6), np.nan)), {}, "not-finite: user 4", False),
    "another shape": (reported(np.zeros((1, 5))), {}, "wrong-shape: user 4", False),
    "another precision": (
        reported(np.zeros((1, 6), dtype=np.float32)), {}, "wrong-dtype: user 4", False,
    ),
    "an error": (failing, {}, "client-error: user 4", False),
    "nothing": (empty, {}, "forged: user 4", False),
    "never asked": (None, {"participation": 0.2, "seed": 6}, "never asked: user 4", False),
    "three, one node": (
        failing, {"strategic_users": "0,3-4"}, "client-error: users 0,3-4", False,
    ),
    "an honest node": (
        None, {"node_configs": SWORN}, "on a node that is honest: user 4", False,
    ),
    "an honest node of a site": (None, {"node_configs": SWORN, "site": True}, PRESENT, True),
    "an error at a site": (failing, {"site": True}, "client-error: user 4", False),
}  # fmt: skip


@pytest.mark.parametrize("case", TAKING_PART)
def test_every_strategic_user_must_have_taken_part(case: str) -> None:
    tamper, keys, value, passed = TAKING_PART[case]
    found = outcome(tamper, **keys)
    named = len(found.config.strategic())
    assert check(found, TOOK_PART) == Check(TOOK_PART, value, f"{named} of {named}", passed)
    assert found.passed == passed
    assert f"failed: {TOOK_PART}" in table(found) or passed


def test_where_nobody_is_strategic_nobody_is_missed() -> None:
    found = outcome(strategic_users="none")
    assert [check.name for check in found.checks] == [
        one.name for one in outcome().checks if one.name != TOOK_PART
    ]


def test_a_presets_summary_has_the_check_and_so_has_each_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command, and by its exit code."""
    monkeypatch.setattr("clients.strategic.plausible_report", None)
    words = ["run", "digits-l2", "--rounds", "1", "--seeds", "1,2", "--output", str(tmp_path)]
    assert main([*words, "--set", "points-per-user=20"]) == 1
    (folder,) = tmp_path.iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    for seed in (1, 2):
        name = f"seed-{seed} {TOOK_PART}"
        (found,) = [check for check in summary["checks"] if check["name"] == name]
        assert (found["value"], found["passed"]) == ("client-error: user 10", False)
        own = json.loads((folder / f"seed-{seed}/summary.json").read_text())
        assert not own["passed"]
    assert f"FAILED  seed-1 {TOOK_PART} = client-error: user 10" in capsys.readouterr().out


def test_a_presets_claims_come_after_that() -> None:
    config = configure_preset("digits-squared-l2")
    rows = [{"round": 60, "norm_rho": 1.0, "unconverged": 0.0}]
    checks = preset_claims.all_checks(config, rows, {}, Attendance())
    failed = [check.name for check in checks if not check.passed]
    assert failed[0] == TOOK_PART
    assert "distance_to_target" in failed[1:]


def test_an_outcome_before_and_after_a_checkpoint_is_one(tmp_path: Path) -> None:
    """The attacker is heard before the run is stopped and never again, or never before."""
    for tamper, passed in ((None, True), (failing, False)):
        keys: dict[str, Any] = {"checkpoint_every": 1, "output_dir": str(tmp_path / str(passed))}
        folder = configure(**keys).folder()
        outcome(tamper, folder=folder, **keys, rounds=2)
        found = outcome(failing, folder=folder, **keys, resume="auto", rounds=4)
        assert check(found, TOOK_PART).passed == passed


def test_facts_are_what_json_keeps() -> None:
    told = Attendance()
    told.hear([3])
    told.miss(4, "no-reply")
    told.lose(5, 7, had=2, due=4)
    told.lose(6, 7, had=1, due=4)
    told.not_keep(5, (1, 2))
    told.not_keep(6, (2,))
    again = Attendance.of(json.loads(json.dumps(told.facts())))
    assert again == told
    config = configure(strategic_users="2-4", checkpoint_every=1)
    assert [(one.value, one.passed) for one in again.checks(config)] == [
        ("never asked: user 2; no-reply: user 4", False),
        ("not kept from round 5 on: users 1-2; that of round 2 in place of round 4's: user 7",
         False),
    ]  # fmt: skip
    assert [str(one) for one in again.left_out(config)] == [
        "users' memories that were lost, or older than they should be: 1 "
        "(user 7, round 5: that of round 2 in place of round 4's)",
        "users' memories that could not be kept on a disk: 2 (user 1, round 5, user 2, round 5)",
    ]


def test_a_thousand_users_are_named_in_one_line() -> None:
    told = Attendance()
    for user in range(0, 2000, 2):
        told.miss(user, "no-reply")
    found = told.checks(configure(users=2000, strategic_users="all", points_per_user=1))[0]
    assert isinstance(found.value, str) and len(found.value) <= 200 and not found.passed


STEPS = {"local_solver": "adam", "local_lr": 0.05, "server_lr": 0.05}


def stopped(folder: Path, **keys: Any) -> tuple[dict[str, Any], list[Path]]:
    """Return the keys that go on with a run after round 3, and the files of its nodes' memory."""
    asked = {**STEPS, "checkpoint_every": 3, "output_dir": str(folder), **keys}
    place = configure(**asked).folder()
    outcome(folder=place, rounds=3, **asked)
    # What later checkpoints would need is there as well: files of the rounds before.
    return {**asked, "folder": place, "resume": "auto", "rounds": 5}, sorted(
        (place / "state").iterdir()
    )


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def newest_of_each_node(files: list[Path]) -> None:
    for path in [path for path in files if path.name.startswith("round-00000003")]:
        flip(path)


def newest_of_one_node(files: list[Path]) -> None:
    flip(max(files))


def all_of_them(files: list[Path]) -> None:
    for path in files:
        path.unlink()


def nothing(files: list[Path]) -> None:
    assert len(files) == 6


LOST: dict[str, tuple[Any, str, bool]] = {
    "nothing": (nothing, "whole", True),
    "one bit of each node's newest file": (
        newest_of_each_node, "that of round 2 in place of round 3's: users 0-4", False,
    ),
    "all files": (all_of_them, "none in place of round 3's: users 0-4", False),
}  # fmt: skip


@pytest.mark.parametrize("site", [False, True])
@pytest.mark.parametrize("case", LOST)
def test_a_memory_that_was_lost_is_a_failed_check_and_at_a_site_the_nodes_word(
    case: str, site: bool, tmp_path: Path
) -> None:
    spoil, value, passed = LOST[case]
    keys, files = stopped(tmp_path, site=site)
    spoil(files)
    found = outcome(**keys)
    if not site:
        assert check(found, MEMORY) == Check(MEMORY, value, "whole", passed)
    assert found.passed == (passed or site)
    assert all(one.name != MEMORY for one in found.checks) or not site
    told = [one for one in found.left_out if "memories" in one.what]
    assert [one.count for one in told] == ([] if passed else [5])
    assert all(one.what.endswith(" (the nodes' word)") == site for one in told)
    assert [one["count"] for one in found.summary()["left_out"]] == [one.count for one in told]


def test_one_nodes_file_is_the_memory_of_its_users(tmp_path: Path) -> None:
    keys, files = stopped(tmp_path)
    newest_of_one_node(files)
    value = str(check(outcome(**keys), MEMORY).value)
    assert value in {
        f"that of round 2 in place of round 3's: user{whose}" for whose in ("s 0-3", " 4")
    }


def test_the_loss_is_told_of_once_and_stays_told(tmp_path: Path) -> None:
    """Also where the run is stopped and resumed once more, with all that there then is."""
    keys, files = stopped(tmp_path)
    all_of_them(files)
    first = check(outcome(**keys), MEMORY)
    again = check(outcome(**{**keys, "rounds": 7}), MEMORY)
    assert first == again and not again.passed


def test_users_who_are_asked_later_lost_theirs_all_the_same(tmp_path: Path) -> None:
    """Of those whom no round has asked since nothing is known, and nothing was used."""
    keys, files = stopped(tmp_path, participation=0.6, seed=3)
    all_of_them(files)
    found = outcome(**{**keys, "rounds": 9})
    lost = found.course.attendance.lost
    assert {round for round, _ in lost.values()} - {4}
    assert not check(found, MEMORY).passed


def test_a_node_that_starts_anew_without_a_disk_has_lost_its_users_memory() -> None:
    """Its process ended and nothing was kept: the server sees that it begins again."""

    class Forgetful(InProcessGrid):
        def push_messages(self, messages: Any) -> Any:
            for message in messages:
                if message.metadata.group_id == "3" and message.metadata.message_type == "train":
                    self.contexts[message.metadata.dst_node_id].state.clear()
                yield from super().push_messages([message])

    config = configure(rounds=4)
    grid = Forgetful(client_app, nodes=2, run_config=config.flat())
    found = server_app.run(grid, build_problem(config))
    value = "none in place of round 2's: users 0-4"
    assert check(found, MEMORY) == Check(MEMORY, value, "whole", False)
    assert MEMORY not in [one.name for one in outcome().checks]


def test_a_node_that_cannot_write_says_so(tmp_path: Path) -> None:
    """Its own folder is a file; the other node's is none of its business."""
    (tmp_path / "file").write_text("")
    own = {1: {"state-dir": str(tmp_path / "file")}}
    keys: dict[str, Any] = {"checkpoint_every": 1, "output_dir": str(tmp_path)}
    folder = configure(**keys).folder()
    found = outcome(folder=folder, node_configs=own, **keys)
    value = "not kept from round 1 on: user 4"
    assert check(found, MEMORY) == Check(MEMORY, value, "whole", False)
    kept = json.loads((folder / "summary.json").read_text())
    assert not kept["passed"]
    assert [one["what"] for one in kept["left_out"]] == [
        "users' memories that could not be kept on a disk"
    ]


@pytest.mark.parametrize("where", ["/proc/nope", "file"])
@pytest.mark.parametrize("engine", ["inprocess", "simulation"])
def test_a_state_dir_that_cannot_be_used_is_one_line(
    where: str, engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    chosen = str(tmp_path / where)
    words = ["run", "digits-l2", "--output", str(tmp_path / "out"), "--engine", engine, "--set"]
    words += ["rounds=1", "points-per-user=20", "checkpoint-every=1", f"state-dir={chosen}"]
    assert main(words) == NO_VERDICT
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"state-dir = {chosen}/seed-1: expected a folder to write to (")
    assert not (tmp_path / "out/digits-l2/seed-1/rounds.csv").exists()


def claiming(**said: Any) -> Tamper:
    def tamper(broadcast: Message, reply: Message) -> Message:
        spelled = {key.replace("_", "-"): value for key, value in said.items()}
        reply.content[METRICS] = MetricRecord(spelled)
        return reply

    return tamper


def claiming_accuracies(*values: float) -> ClientApp:
    """Return a client app that is honest but says this of its users' local models."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Any) -> Message:
        reply = client_app(message, context)
        metrics = cast(MetricRecord, reply.content[METRICS])
        if "accuracies" in metrics:
            said = {"accuracy-users": list(range(len(values))), "accuracies": list(values)}
            reply.content[METRICS] = MetricRecord({**metrics, **said})
        return reply

    for register in (app.query, app.evaluate):
        register()(client_app)
    return app


def test_a_node_of_a_site_does_not_decide_by_what_it_says_of_itself() -> None:
    lies = claiming(unconverged=1, worst_residual=1e9, unkept=1)
    mine, theirs = outcome(lies), outcome(lies, site=True)
    assert (mine.passed, theirs.passed) == (False, True)
    assert not check(mine, "unconverged_total").passed
    assert all(one.name != "unconverged_total" for one in theirs.checks)
    assert mine.summary()["nodes_word"] == []
    assert set(theirs.summary()["nodes_word"]) >= {"unconverged_total", "worst_residual_ever"}
    shown = "local solves that missed their tolerance (the nodes' word)"
    assert shown in table(theirs) and shown not in table(mine)
    assert "(the nodes' word)" not in table(mine)


def test_a_presets_claims_on_what_nodes_say_are_none_at_a_site() -> None:
    claims = {
        site: {
            claim.title
            for claim in preset_claims.claims_of(configure_preset("digits-squared-l2", site=site))
        }
        for site in (False, True)
    }
    assert claims[False] - claims[True] == {"unconverged_total"}
    assert claims[True]


def configure_preset(name: str, **keys: Any) -> Any:
    from pfl_flower.run.config import parse_config

    return parse_config({**preset(name), **keys})


def test_what_nodes_say_is_marked_in_a_presets_table(tmp_path: Path) -> None:
    import io

    from rich.console import Console

    settings = {"rounds": 1, "points-per-user": "20", "site": True}
    file = io.StringIO()
    console = Console(file=file, width=120)
    summary = run_preset("digits-l2", Options(output=tmp_path, settings=settings), console)
    (folder,) = tmp_path.iterdir()
    show(summary, folder, console)
    assert "unconverged_total (the nodes' word)" in file.getvalue()
    assert "local_accuracy (the nodes' word)" in file.getvalue()
    assert "accuracy_true (the nodes' word)" not in file.getvalue()


@pytest.mark.parametrize("site", [False, True])
@pytest.mark.parametrize(
    ("claimed", "absurd"),
    [
        ({"unconverged": 2}, 1),
        ({"unconverged": -1}, 1),
        ({"unkept": 2}, 1),
        ({"memory_users": [4], "memory_rounds": [-1]}, 2),
        ({"memory_users": [4], "memory_rounds": [0.5]}, 2),
        ({"memory_users": [3], "memory_rounds": [0]}, 1),
        ({"memory_users": [4], "memory_rounds": []}, 1),
        ({"accuracies": [1.5], "accuracy_users": [4]}, 2),
    ],
)
def test_what_cannot_be_is_left_out_and_counted(
    claimed: dict[str, Any], absurd: int, site: bool
) -> None:
    """One user is asked, who missed at most one tolerance; nobody's memory is of round -1."""
    found = outcome(claiming(**claimed), site=site, rounds=1)
    assert found.passed
    assert [(one.what, one.count) for one in found.left_out] == [
        ("entries of nodes' metrics that cannot be", absurd)
    ]


@pytest.mark.parametrize(
    ("values", "left_out"), [([1.5], 2), ([-0.1], 2), ([0.5, float("nan")], 3), ([0.25], 0)]
)
def test_an_accuracy_that_cannot_be_is_left_out_and_counted(
    values: list[float], left_out: int
) -> None:
    app = claiming_accuracies(*values)
    found = outcome(app=app, rounds=1, evaluate_every=1)
    assert sum(one.count for one in found.left_out) == left_out
    assert found.metrics.get("local_accuracy") == (0.25 if values == [0.25] else None)


@pytest.mark.parametrize("by_message", [False, True])
def test_an_attacker_says_nothing_of_the_honest_users_models(
    by_message: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One node acts for all: the attacker's accuracy is nobody's question."""
    asked: list[list[int]] = []
    app = ClientApp()

    def lied(message: Message, context: Any) -> Message:
        reply = client_app(message, context)
        metrics = cast(MetricRecord, reply.content[METRICS])
        said = {"accuracy-users": [0, 4], "accuracies": [0.25, 1.0]}
        reply.content[METRICS] = MetricRecord({**metrics, **said})
        return reply

    @app.evaluate()
    def evaluate(message: Message, context: Any) -> Message:
        from pfl_flower.transport.questions import unpack_question

        asked.append(list(unpack_question(message.content)[1]))
        return lied(message, context)

    app.query()(client_app)
    app.train()(client_app if by_message else lied)
    if by_message:  # as on users' own test sets
        monkeypatch.setattr(Measuring, "with_reports", lambda *args: {})
    config = configure(rounds=1, evaluate_every=1)
    grid = InProcessGrid(app, nodes=1, run_config=config.flat())
    found = server_app.run(grid, build_problem(config))
    assert asked == ([[0, 1, 2, 3]] if by_message else [])
    assert found.metrics["local_accuracy"] == 0.25


def test_the_key_of_a_site_moves_nothing() -> None:
    keys = {key.replace("-", "_"): value for key, value in configure(rounds=3).flat().items()}
    at_home, abroad = (api.run(**{**keys, "site": site}) for site in (False, True))
    assert np.array_equal(at_home.rho, abroad.rho)


def test_a_figure_is_not_made_of_a_run_whose_attacker_took_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {**TINY, "rounds": 1}
    setting = Setting(seed=1, folder=tmp_path, options=Options(output=tmp_path))
    assert run_variant(setting, "cga", keys).rounds == 1
    monkeypatch.setattr("clients.strategic.plausible_report", None)
    with pytest.raises(RunFailedError, match=f"cga, lam = 2: {TOOK_PART} = client-error: user 4"):
        run_variant(setting, "cga, lam = 2", {**keys, "lam": 2.0})
