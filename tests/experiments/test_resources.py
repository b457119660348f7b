"""What nodes of the simulation ask Ray for, on machines with any numbers of cards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.__main__ import main
from experiments.running import engines, resources
from experiments.running.options import Options
from experiments.running.resources import Machine, federation
from pfl_flower.run.config import parse_config
from pfl_flower.support.errors import ConfigError, DeviceError

CPUS = "client-resources-num-cpus=1"
GPUS = "client-resources-num-gpus="
ASKED = [
    # device, nodes, cores, cards, what is asked for
    ("cuda", 11, 16, 1, f"num-supernodes=11 {CPUS} {GPUS}0.0909"),
    ("cuda", 11, 4, 1, f"num-supernodes=11 {CPUS} {GPUS}0.25"),
    ("cuda", 11, 16, 2, f"num-supernodes=11 {CPUS} {GPUS}0.1666"),
    ("cuda", 2, 16, 8, f"num-supernodes=2 {CPUS} {GPUS}1"),
    ("cuda", 3, 16, 1, f"num-supernodes=3 {CPUS} {GPUS}0.3333"),
    ("cuda", None, 16, 1, f"{CPUS} {GPUS}0.5"),
    ("auto", 4, 16, 1, f"num-supernodes=4 {CPUS} {GPUS}0.25"),
    ("auto", 4, 16, 0, f"num-supernodes=4 {CPUS}"),
    ("auto", None, 2, 0, ""),
    ("cpu", 4, 16, 1, f"num-supernodes=4 {CPUS}"),
    ("cpu", None, 16, 1, ""),
]


@pytest.mark.parametrize(("device", "nodes", "cores", "cards", "expected"), ASKED)
def test_what_the_command_asks_for(
    device: str,
    nodes: int | None,
    cores: int,
    cards: int,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    command = engines.simulation_command(parse_config({"device": device}), nodes, tmp_path)
    place = command.index("--federation-config") if "--federation-config" in command else None
    assert (command[place + 1] if place else "") == expected
    assert command[1] == "run" and "--run-config" in command


@pytest.mark.parametrize("nodes", [1, 2, 3, 7, 11, 64, 1000])
@pytest.mark.parametrize("cards", [1, 2, 3, 8])
def test_all_that_run_at_once_find_a_share(nodes: int, cards: int) -> None:
    """And no card is asked for more than it has."""
    text = federation("cuda", nodes, Machine(cores=1000, cards=cards))
    # As Flower keeps it, in single precision, and Ray counts it, in ten thousandths.
    share = round(10_000 * torch.tensor(float(text.rpartition("=")[2])).item()) / 10_000
    assert cards * int(1 / share + 1e-9) >= nodes


def test_what_cannot_be_is_one_line() -> None:
    with pytest.raises(DeviceError, match=r"^device = cuda: expected a CUDA device"):
        federation("cuda", 2, Machine(cores=2, cards=0))
    with pytest.raises(ConfigError, match=r"^--nodes 20001: expected at most 20,000 at once on 2"):
        federation("cuda", 20_001, Machine(cores=30_000, cards=2))
    assert federation("cuda", 20_000, Machine(cores=30_000, cards=2)).endswith("=0.0001")


def test_a_card_that_is_not_there_is_refused_before_flower_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(engines.subprocess, "run", lambda *a, **k: pytest.fail("Flower started"))
    command = ["run", "digits-l2", "--engine", "simulation", "--device", "cuda"]
    assert main([*command, "--output", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip()
    assert "device = cuda: expected a CUDA device, and torch sees none" in said
    assert len(said.splitlines()) == 1
    assert Options(engine="simulation").device == "auto"
