"""The benchmark's rivals compute the same as the product; its arithmetic; its command line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.__main__ import main
from experiments.benchmark import (
    aggregators,
    arguments,
    card,
    checked_round,
    command,
    overhead,
    side_by_side,
    time_to_target,
    worker,
    zeros,
)
from experiments.benchmark.roofline import Round
from experiments.benchmark.side_by_side import (
    Comparison,
    Conditions,
    ratio,
    round_seconds,
    take_turns,
)
from experiments.paper.protocols import AUTHORS_STEPS, PAPER
from pfl_flower.objective import point_blocks, two_layer
from pfl_flower.support.errors import RunFailedError
from pfl_flower.support.plugins import find
from pfl_flower.support.threads import thread_limit

SMALL = {
    **worker.FIGURE_1,
    "dataset": "digits",
    "points-per-user": "60",
    "users": 5,
    "strategic-users": "4",
    "rounds": 6,
    "lam": 0.7,
    "dtype": "float64",
    "device": "cpu",
}


@pytest.fixture(scope="module")
def ours() -> dict[str, Any]:
    return worker.in_process(settings=SMALL)


@pytest.mark.parametrize("name", ["loop", "vmap"])
def test_the_rivals_do_the_same_work(name: str, ours: dict[str, Any]) -> None:
    rival = worker.rival(settings=SMALL, name=name)
    one, other = torch.tensor(ours["rho"]), torch.tensor(rival["rho"])
    assert float(one.norm()) > 1
    assert float((one - other).norm() / one.norm()) < 1e-9
    assert len(rival["seconds"]) == len(ours["seconds"]) == 6


def test_the_authors_loop_does_the_same_work() -> None:
    settings = {**SMALL, **PAPER, **AUTHORS_STEPS, "evaluate-every": 1, "nu": 0.0}
    run, loop = (
        worker.in_process(settings=settings),
        worker.rival(settings=settings, name="notebook"),
    )
    one, other = torch.tensor(run["rho"]), torch.tensor(loop["rho"])
    assert float(one.norm()) > 1
    # An Adam step keeps a sum's sign alone where it is all rounding: a pixel that is always 0.
    assert float((one - other).norm() / one.norm()) < 1e-9
    assert len(loop["seconds"]) == len(run["seconds"]) == 6


def test_the_mathematics_alone_end_where_the_run_ends() -> None:
    settings = {**overhead.TINY, "points-per-user": "30", "rounds": 8, "lam": 0.7}
    run = worker.in_process(settings=settings, nodes=11)
    alone = worker.mathematics(settings=settings)
    one, other = torch.tensor(run["rho"]), torch.tensor(alone["rho"])
    assert float(one.norm()) > 1
    assert float((one - other).norm() / one.norm()) < 1e-9
    assert len(alone["seconds"]) == 8
    for changes in ({"local-solver": "adam"}, {"local-steps": 2}, {"batch-size": 3}):
        with pytest.raises(ValueError, match="expected single SGD steps"):
            worker.mathematics(settings={**settings, **changes})


def test_overhead_is_what_the_mathematics_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"in-process": 0.007, "simulation": 0.112, "mathematics": 0.002}
    monkeypatch.setattr(overhead, "worker", lambda case, **_: {"seconds": [seconds[case]]})
    whole, rest = overhead.against_simulation(Conditions(quick=True, repeats=1))
    assert whole.ratio == pytest.approx(16.0)
    assert rest.ratio == pytest.approx(22.0)
    assert (rest.ours, rest.rival) == ("in-process: 5 ms", "flwr run on Ray: 110 ms")


def test_a_round_of_figure_1_moves_its_data_once() -> None:
    work = Round(users=10, points=6000, features=785, classes=10, tests=10_000)
    assert work.bytes == 4 * (70_000 * 785 + 6 * 10 * 7850)
    assert work.flops == 2 * 130_000 * 7850
    assert work.bound(bandwidth=1e10, rate=1e12) == work.bytes / 1e10
    assert work.bound(bandwidth=1e12, rate=1e10) == work.flops / 1e10
    without_zeros = replace(work, share=0.2)
    assert without_zeros.flops == pytest.approx(work.flops / 5)
    # A number that is kept comes with its place; where most are kept all are better kept in order.
    assert without_zeros.bytes == pytest.approx(0.4 * 4 * 70_000 * 785 + 4 * 6 * 10 * 7850)
    assert replace(work, share=0.6).bytes == work.bytes


def test_ratios_and_round_times() -> None:
    assert ratio([4.0], [2.0]) == (2.0, 0.0)
    assert round_seconds({"seconds": [9.0, 9.0, 1.0, 2.0, 3.0]}) == 2.0
    assert round_seconds({"seconds": [9.0]}) == 9.0


def test_rows_are_shown_and_kept_as_they_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that is cut off between two rows has shown and kept the first; --row picks."""

    def measured(conditions: Conditions) -> Iterator[Comparison]:
        yield Comparison(key="a", what="work", ours="1 ms", rival="other: 2 ms", ratio=2.0)
        raise KeyboardInterrupt

    rows = {name: f"experiments.benchmark.overhead:{name}" for name in ("cut", "never")}
    monkeypatch.setattr(command, "COMPARISONS", rows)
    monkeypatch.setattr(overhead, "cut", measured, raising=False)
    assert main(["benchmark", "--row", "cut", "--quick", "--output", str(tmp_path)]) == 130
    kept = json.loads((tmp_path / "benchmark" / "benchmark.json").read_text())
    assert [row["what"] for row in kept["rows"]] == ["work"]
    assert list(kept["seconds"]) == ["cut"]
    assert "cut, 0 s: work; 1 ms; other: 2 ms; 2 ± 0" in capsys.readouterr().out


def test_the_cards_rows_come_first() -> None:
    assert next(iter(arguments.COMPARISONS)) == "gpu"


def test_a_worker_has_the_threads_it_is_given() -> None:
    tiny = {**SMALL, "rounds": 1}
    assert side_by_side.worker("in-process", threads=1, settings=tiny)["threads"] == 1
    with pytest.raises(RunFailedError, match=r"benchmark, in-process: .*nope"):
        side_by_side.worker("in-process", settings={**tiny, "dataset": "nope"})


def test_the_sides_take_turns() -> None:
    order: list[str] = []

    def side(name: str) -> Any:
        return lambda: order.append(name) or {"name": name}

    found = take_turns(Conditions(repeats=2), "x", {"a": side("a"), "b": side("b")})
    assert order == ["a", "b", "a", "b"]
    assert [one["name"] for one in found["b"]] == ["b", "b"]


def test_seconds_to_the_target_count_until_it_is_near() -> None:
    run = {"seconds": [1.0, 2.0, 4.0], "distances": [5.0, time_to_target.NEAR, 0.0]}
    assert time_to_target._until(run) == 3.0
    assert math.isnan(time_to_target._until({"seconds": [1.0], "distances": [1.0]}))


def test_the_command_leaves_table_figure_and_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(conditions: Conditions) -> list[Comparison]:
        conditions.points["growth with users"] = {"size": [1, 10], "seconds": [0.1, 1.0]}
        assert conditions.repeats == 1
        return [Comparison(key="a", what="work", ours="1 ms", rival="other: 2 ms", ratio=2.0)]

    monkeypatch.setattr(
        command, "COMPARISONS", {"made-up": "experiments.benchmark.overhead:measured"}
    )
    monkeypatch.setattr(overhead, "measured", measured, raising=False)
    assert main(["benchmark", "--quick", "--output", str(tmp_path)]) == 0
    kept = json.loads((tmp_path / "benchmark" / "benchmark.json").read_text())
    assert kept["rows"][0]["ratio"] == 2.0
    assert {path.suffix for path in (tmp_path / "benchmark").iterdir()} == {
        ".json",
        ".csv",
        ".png",
        ".pdf",
    }
    assert "other: 2 ms" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--row", "no"], "NAME = no: expected one of"),
        (["nope"], "NAME = nope: expected one of"),
        (["--repeats", "0"], "--repeats 0: expected"),
    ],
)
def test_bad_input_is_one_line(words: list[str], said: str, capsys: Any, tmp_path: Path) -> None:
    assert main(["benchmark", *words, "--output", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_comparison_that_is_offered_can_be_measured() -> None:
    for name, place in command.COMPARISONS.items():
        assert callable(find("NAME", name, place))


def test_a_worker_that_fails_says_why() -> None:
    from experiments.benchmark.side_by_side import worker as call
    from pfl_flower.support.errors import RunFailedError

    with pytest.raises(RunFailedError, match=r"benchmark, in-process: .*rounds"):
        call("in-process", settings={**SMALL, "rounds": 0})


def test_only_right_rules_are_peers() -> None:
    """On rows that are alike but for their last digits products of them pick others."""
    for rule in aggregators.RULES:
        ways = aggregators.all_ways(rule, 4)
        rows = np.random.default_rng(3).normal(size=(20, 500))
        alike = 1e6 + 1e-4 * rows
        for name, way in ways.items():
            assert aggregators.right(name, rule, way, 4, rows), (rule, name)
        judged = {name: aggregators.right(name, rule, way, 4, alike) for name, way in ways.items()}
        assert judged["ours"]
        if "krum" in rule:
            assert not judged["numpy, by products"]
            assert not judged["Flower"]
        assert not aggregators.right("ours", rule, lambda rows: rows[0], 4, rows)


def test_the_fastest_right_peer_is_the_one_compared_with() -> None:
    seconds = {"ours": 0.002, "numpy": 0.001, "byzfl": 0.003, "Flower": 0.004}
    measured = {"seconds": seconds, "wrong": ["numpy"], "missing": []}
    row = aggregators._row("krum", (5, 7), measured)
    assert row.ratio == pytest.approx(1.5)
    assert row.rival == "the fastest right one, byzfl: 3 ms"
    assert row.note == "Flower 4 ms, numpy is wrong"


def test_without_a_right_peer_the_row_says_which_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of Krum numpy's and Flower's ways are wrong, and byzfl need not be there."""

    def call(case: str, *, shape: tuple[int, int], rule: str) -> dict[str, Any]:
        if case == "aggregator-alone":
            return {"seconds": 1.0, "peak": 2**20}
        with thread_limit(1):
            return aggregators.measure(rule=rule, shape=(20, 50))

    monkeypatch.setattr(aggregators, "byzfl_aggregators", lambda: None)
    monkeypatch.setattr(aggregators, "worker", call)
    monkeypatch.setattr(aggregators, "TURNS", 1)
    rows = {row.what.split(",")[0]: row for row in aggregators.against_peers(Conditions())[:4]}
    krum, trimmed = rows["krum"], rows["trimmed-mean"]
    assert krum.rival == "no peer here is right" and math.isnan(krum.ratio)
    assert krum.ours.startswith("ours: ")
    wrong = "numpy, by products is wrong, Flower is wrong"
    assert krum.note == f"{wrong}, byzfl is not installed: pip install byzfl"
    assert trimmed.ratio > 0 and trimmed.note.endswith("byzfl is not installed: pip install byzfl")


def test_rows_without_a_ratio_leave_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(conditions: Conditions) -> list[Comparison]:
        return [Comparison(key="h", what="krum", ours="ours: 2 ms", rival="no peer here is right")]

    monkeypatch.setattr(
        command, "COMPARISONS", {"made-up": "experiments.benchmark.overhead:measured"}
    )
    monkeypatch.setattr(overhead, "measured", measured, raising=False)
    assert main(["benchmark", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "benchmark" / "benchmark.png").exists()


@pytest.mark.parametrize("batches", [0, 1])
def test_a_checked_round_is_the_plain_one(batches: int) -> None:
    """Nobody is taken out, and the models are the same but for the order of a sum's replies."""
    found = worker.checked(turns=1, batches=batches)
    assert found["taken out"] == 0
    # float32 sums of ten models whose entries are at most 0.1.
    assert found["apart"] < 1e-7
    assert min(found["checked"], found["plain"]) > 0
    parameters = sum(value.numel() for value in checked_round.network().state_dict().values())
    assert f"{parameters:,}" == checked_round.PARAMETERS


def test_what_a_check_adds_is_a_share_of_the_plain_round(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([(0.104, 0.1), (0.202, 0.2)])

    def measured(case: str, **_: Any) -> dict[str, float]:
        return dict(zip(("checked", "plain"), next(seconds), strict=True))

    monkeypatch.setattr(checked_round, "worker", measured)
    idle, training = checked_round.against_plain(Conditions(quick=True, repeats=1))
    assert idle.ratio == pytest.approx(1 / 1.04) and idle.note == "the check adds 4.0% (4.0 to 4.0)"
    assert training.note == "the check adds 1.0% (1.0 to 1.0)"
    assert "10 batches" in training.what and "no training" in idle.what


def test_lines_of_the_card_are_printed_and_kept_as_they_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part that fails is a line, the next one follows; what was found before a break is kept."""
    kept = tmp_path / "card.json"

    def works(asked: card.Asked) -> Iterator[card.Line]:
        yield card.Line("one", "1 ms", "<= 2 ms", True)
        raise RuntimeError("the card\nis gone")

    def broken(asked: card.Asked) -> Iterator[card.Line]:
        assert len(json.loads(kept.read_text())["lines"]) == 2
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(card, "PARTS", {"works": works, "broken": broken})
    with pytest.raises(KeyboardInterrupt):
        card.main(["--device", "cpu", "--output", str(kept)])
    lines = json.loads(kept.read_text())["lines"]
    assert [line["met"] for line in lines] == [True, False]
    said = capsys.readouterr().out.splitlines()
    assert said[1].endswith("one: 1 ms; goal <= 2 ms: met")
    assert said[2].endswith("works: failed: the card is gone; goal an answer: MISSED")
    assert card.main(["--device", "cpu", "--output", str(kept), "--only", "works"]) == 1


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_card_is_held_to_its_goals(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds that are too long miss a goal on a card; of a processor none is asked."""
    asked = card.Asked(device, quick=True)
    found = {
        "in-process": {"seconds": [0.5] * 9, "rho": [1.0, -2.0], "distances": [1.0, 0.5]},
        "simulation": {"distances": [1.0, 0.5 + 1e-6]},
        "machine": {"bandwidth": 1e12, "rate": 1e13},
        "waits": {"waits": 9.0, "launches": 100.0},
    }
    monkeypatch.setattr(card.Asked, "case", lambda self, name, seconds, **more: found[name])
    by_name = {
        line.name: line
        for part in (card.same_results, card.figure_1, card.waits, card.rounds, card.simulation)
        for line in part(asked)
    }
    missed = {name for name, line in by_name.items() if not line.met}
    always = {"simulation", "waits, figure 1"}
    slow = {"figure 1", "figure 1's bound", "many users", "exact solves, digits"}
    assert missed == (always | slow if device == "cuda" else always)
    assert by_name["same rho, adam"].found.startswith("0.0e+00")


def test_waits_are_counted_on_a_card_alone() -> None:
    assert worker.waits(settings=SMALL) == {"waits": None, "launches": None}


@pytest.mark.parametrize("share", [0.1, 1.0])
@pytest.mark.parametrize("what", sorted({what for _, what in zeros.WORK}))
def test_what_is_done_without_zeros_is_the_same_work(
    what: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(1)
    features = torch.rand((1, 600, 20), generator=draw)
    features[torch.rand(features.shape, generator=draw) > share] = 0.0
    labels = torch.randint(0, 10, (1, 600), generator=draw)
    monkeypatch.setattr(zeros, "points_of", lambda *_: (features, labels))
    monkeypatch.setattr(point_blocks, "BLOCK", 3000)
    monkeypatch.setattr(two_layer, "TURNED", 3000)
    with thread_limit(1):
        found = zeros.measure(dataset="digits", what=what, points=600)
    assert found["gap"] < 1e-5
    assert found["left out"] == (share < 0.5)
    assert 0 < found["ours"] < math.inf and 0 < found["dense"] < math.inf
    assert (what == "gradient") == (not math.isnan(found["mkl"]))


def test_the_first_users_points() -> None:
    features, labels = zeros.points_of("digits", 60)
    assert features.shape == (1, 60, 65) and features.dtype == torch.float32
    assert labels.shape == (1, 60)
