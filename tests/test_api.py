"""The library's face: what ``import pfl_flower as pfl`` offers."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
from matplotlib.figure import Figure
from torch import Tensor

import pfl_flower as pfl
from pfl_flower.run.checks import Claim, at_least
from pfl_flower.run.preset_claims import CLAIMS, NO_CLAIM, claims_of, preset_of
from pfl_flower.run.presets import preset, preset_names
from strategies import recruiting
from tests.support.runs import TINY

SMALL: dict[str, Any] = {key.replace("-", "_"): value for key, value in TINY.items()}


class Nothing(NamedTuple):
    """Nothing is remembered."""


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, with an empty home: what is written unasked is found there."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("HOME", str(empty))
    monkeypatch.setenv("PFL_CACHE_DIR", str(tmp_path / "cache"))
    return empty


def test_the_import_is_light_and_the_names_are_there() -> None:
    code = (
        "import sys, pfl_flower as pfl\n"
        "assert not {'torch', 'flwr', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert set(pfl.__all__) <= set(dir(pfl))\n"
        "assert all(getattr(pfl, name) is not None for name in pfl.__all__)\n"
        "import pfl_flower.run.config\n"
        "assert callable(pfl.run)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = pfl.nope


def test_a_run_is_arrays_numbers_and_a_table_and_leaves_nothing(
    nowhere: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = pfl.run(**SMALL, lam=0.3, seed=2, save_trajectory=True)
    assert result.rho.shape == (6,)
    assert result.rounds["round"].tolist() == list(range(7))
    assert result.metrics["norm_rho"] == pytest.approx(np.linalg.norm(result.rho))
    assert result.rounds["norm_rho"][-1] == result.metrics["norm_rho"]
    assert result.trajectory is not None
    assert np.array_equal(result.trajectory[-1], result.rho)
    assert (result.config["lam"], result.config["seed"]) == (0.3, 2)
    assert result.passed is all(check.passed for check in result.checks) is True
    assert "round 6/6" in result.log
    assert capfd.readouterr() == ("", "")
    assert not list(nowhere.iterdir())


def test_the_nodes_of_this_process_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def asleep(seconds: float) -> None:
        raise AssertionError(f"waited {seconds} s")

    monkeypatch.setattr(recruiting, "time", SimpleNamespace(monotonic=time.monotonic, sleep=asleep))
    assert pfl.run(**SMALL).passed


def test_the_number_of_nodes_changes_nothing() -> None:
    alone, many = pfl.run(**SMALL, nodes=1), pfl.run(**SMALL, nodes=5)
    assert np.allclose(alone.rho, many.rho, rtol=0, atol=1e-9)
    assert not np.array_equal(alone.rho, pfl.run(**SMALL, seed=2).rho)


def test_what_is_written_is_what_is_loaded(tmp_path: Path) -> None:
    written = pfl.run(**SMALL, output=tmp_path / "mine", save_trajectory=True)
    saved = pfl.run(**SMALL, save_trajectory=True).save(tmp_path / "saved")
    for folder in (tmp_path / "mine", saved):
        loaded = pfl.load(folder)
        assert np.array_equal(loaded.rho, written.rho)
        assert np.array_equal(loaded.gradient, written.gradient)
        assert np.array_equal(loaded.trajectory, written.trajectory)  # type: ignore[arg-type]
        assert loaded.folder == folder
        kept = {key: value for key, value in loaded.metrics.items() if "seconds" not in key}
        assert kept == {k: v for k, v in written.metrics.items() if "seconds" not in k}
        assert loaded.checks == written.checks
        assert loaded.rounds.columns == written.rounds.columns
    assert (tmp_path / "mine" / "run.png").exists()


def test_a_picture_shows_itself_and_a_bar_where_it_is_asked_for(
    capfd: pytest.CaptureFixture[str],
) -> None:
    result = pfl.run(**SMALL, progress=True)
    assert "6/6" in capfd.readouterr().err
    picture = result.plot()
    assert isinstance(picture, Figure)
    assert picture._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    # Others may have imported pyplot; it does not know of this picture.
    assert getattr(picture, "number", None) is None


class Push:
    """Reports what leads away from the target."""

    def __init__(self, user: Any, *, gain: float = 1.0) -> None:
        self.target, self.gain = user.target, gain

    def init(self, rho: Tensor) -> Nothing:
        return Nothing()

    def update(self, state: Nothing, seen: Any) -> tuple[Tensor, Nothing]:
        return self.gain * (self.target - seen.rho), state


def test_plug_ins_are_python_objects_with_options() -> None:
    push, twice = (
        pfl.run(**SMALL, attack=Push, attack_options={"gain": gain}) for gain in (1.0, 2.0)
    )
    assert not np.array_equal(push.rho, twice.rho)
    assert "under tests.test_api:Push attack" in push.title
    summed = pfl.run(**SMALL)
    halved = pfl.run(**{**SMALL, "rounds": 1}, aggregation=lambda rows: rows.sum(dim=0) / 2)
    assert np.allclose(2 * halved.rho, pfl.run(**{**SMALL, "rounds": 1}).rho, rtol=1e-12)
    assert not np.array_equal(summed.rho, push.rho)
    with pytest.raises(pfl.ConfigError, match="gains: expected gain"):
        pfl.run(**SMALL, attack=Push, attack_options={"gains": 2.0})


BAD = [
    (("nope",), {}, "preset = nope: expected one of digits, digits-l2"),
    (("digits-l2",), {"lamm": 1}, "lamm = 1: unknown key"),
    (("digits-l2",), {"lam": -1}, "lam = -1: expected greater than 0"),
    (("digits-l2",), {"lam": None}, "lam = None: expected"),
    (("digits-l2",), {"nodes": 0}, "nodes = 0: expected at least 1"),
    (("digits-l2",), {"output": "a b/ü ü"}, "name = 'ü ü': expected letters"),
    (("digits-l2",), {"checkpoint_every": 2}, "checkpoint-every = 2: expected 0"),
    (("digits-l2",), {"points_per_user": 5000}, "points-per-user = 5000: expected <= 1437"),
]


@pytest.mark.parametrize(("names", "keys", "said"), BAD, ids=[said for *_, said in BAD])
def test_bad_input_is_one_line(names: tuple[str], keys: dict[str, Any], said: str) -> None:
    with pytest.raises(pfl.ConfigError) as refused:
        pfl.run(*names, **keys)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


def test_what_is_no_run_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(pfl.ConfigError, match=r"folder = .*: expected a run, or a sweep"):
        pfl.load(tmp_path)


def test_a_preset_is_judged_by_its_claims_only_as_it_stands() -> None:
    assert set(CLAIMS) == set(preset_names())
    for name in preset_names():
        assert preset_of(pfl.RunConfig.model_validate(preset(name))) == name
    config = pfl.RunConfig.model_validate({**preset("digits-l2"), "seed": 7, "device": "cpu"})
    assert claims_of(config) == CLAIMS["digits-l2"]
    changed = pfl.run("digits-l2", rounds=1, points_per_user=20)
    assert changed.claims == NO_CLAIM
    assert changed.passed
    assert NO_CLAIM in repr(changed)


def test_a_claim_that_does_not_hold_is_a_failed_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from pfl_flower.run import preset_claims

    settings = {**preset("digits-l2"), "rounds": 1, "points-per-user": "20"}
    monkeypatch.setattr(preset_claims, "preset", lambda name: settings)
    preset_claims._as_they_stand.cache_clear()
    try:
        result = pfl.run("digits-l2", rounds=1, points_per_user=20)
        hopeless = Claim("accuracy_true", at_least(2.0))
        monkeypatch.setattr(preset_claims, "claims_of", lambda config: (hopeless,))
        failed = pfl.run("digits-l2", rounds=1, points_per_user=20)
    finally:
        preset_claims._as_they_stand.cache_clear()
    assert result.claims != NO_CLAIM
    assert not failed.passed
    assert "FAILED: accuracy_true" in repr(failed)


def test_presets_say_what_they_are() -> None:
    assert list(pfl.presets()) == preset_names()
    assert all(len(text) > 10 for text in pfl.presets().values())
