from __future__ import annotations

import math
from pathlib import Path

import pytest

from pfl_flower.run.rounds import COLUMNS, ROUNDS_FILE, Rounds, numbers, read_rounds, write_together
from pfl_flower.support.errors import DataError

ROWS = [
    {"seed": 1, "round": 0, "norm_rho": 0.1 + 0.2, "notices": None},
    {"round": 1, "norm_rho": math.inf, "notices": "absurd:1;stray:2"},
    {"round": 2, "eta": 1e-300, "rejection_reasons": 'a "quoted", odd one\nof two lines'},
]
NUMBERS = [
    {"seed": 1.0, "round": 0.0, "norm_rho": 0.1 + 0.2},
    {"round": 1.0, "norm_rho": math.inf},
    {"round": 2.0, "eta": 1e-300},
]


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("stopped", [0, 1, 3])
def test_memory_and_file_say_the_same_also_when_resumed(
    written: bool, stopped: int, tmp_path: Path
) -> None:
    folder = tmp_path / "new" if written else None
    before = Rounds(folder)
    for row in ROWS[:stopped]:
        before.write(row)
    rounds = Rounds(folder, before.text)
    for row in ROWS[stopped:]:
        rounds.write(row)
    assert rounds.numbers == NUMBERS
    if folder is not None:
        # Before it is closed: each line is flushed.
        assert (folder / ROUNDS_FILE).read_bytes().decode() == rounds.text
        assert read_rounds(folder / ROUNDS_FILE) == NUMBERS
    before.close()
    rounds.close()
    assert rounds.numbers == NUMBERS


def test_what_came_after_the_checkpoint_is_forgotten(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path)
    rounds.write(ROWS[0])
    text = rounds.text
    rounds.write(ROWS[1])
    resumed = Rounds(tmp_path, text)
    assert resumed.numbers == read_rounds(tmp_path / ROUNDS_FILE) == NUMBERS[:1]
    resumed.close()
    rounds.close()


def test_a_file_that_two_runs_wrote_to_is_refused(tmp_path: Path) -> None:
    mixed = "seed,round\n1,0\n1,11,1\n"
    path = tmp_path / ROUNDS_FILE
    path.write_text(mixed)
    for read in (lambda: read_rounds(path), lambda: numbers(mixed)):
        with pytest.raises(DataError, match=r"^rounds\.csv: expected at most as many cells"):
            read()


def test_columns_that_one_run_has_come_last_and_are_empty_in_the_others(tmp_path: Path) -> None:
    for name, more in (("plain", ()), ("own", ("own_theta_mean",))):
        rounds = Rounds(tmp_path / name, more=more)
        rounds.write({"round": 1, "norm_rho": 2.5, **dict.fromkeys(more, 0.25)})
        rounds.close()
    together = tmp_path / "together.csv"
    write_together(together, [tmp_path / name / ROUNDS_FILE for name in ("plain", "own", "plain")])
    heading, *lines = together.read_text().splitlines()
    assert heading.split(",") == [*COLUMNS, "own_theta_mean"]
    assert [line.split(",")[-1] for line in lines] == ["", "0.25", ""]
    assert read_rounds(together)[1] == {"round": 1.0, "norm_rho": 2.5, "own_theta_mean": 0.25}
