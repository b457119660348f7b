from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pfl_flower.support import hardware

CPU_INFO = [
    ("processor : 0\nmodel name : Some  CPU\nprocessor : 1\nmodel name : Other", "Some CPU"),
    ("processor : 0\nBogoMIPS : 50\nModel : Raspberry Pi 4", "Raspberry Pi 4"),
    ("processor : 0\n", "riscv64"),
    (None, "riscv64"),
]


@pytest.mark.parametrize(("text", "name"), CPU_INFO)
def test_the_processor_has_a_name_everywhere(
    text: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(hardware, "CPU_INFO", path)
    monkeypatch.setattr(hardware.platform, "processor", lambda: "")
    monkeypatch.setattr(hardware.platform, "machine", lambda: "riscv64")
    assert hardware.hardware().startswith(f"{name}, ")


def test_hardware_without_posix(monkeypatch: pytest.MonkeyPatch) -> None:
    few = SimpleNamespace(cpu_count=lambda: 3, path=os.path)
    monkeypatch.setattr(hardware, "os", few)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert hardware.hardware().endswith(", 3 cores (1 used)")
