"""What a run's times were measured on, in one line."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
GROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""What a container may have, in the second and the first version of Linux's control groups."""
MODEL_KEYS = ("model name", "Model", "cpu model", "cpu")
"""What Linux calls the processor on x86, Raspberry Pi, MIPS and POWER; other ARM has no line."""


def hardware(device: str = "cpu") -> str:
    """Return processor, cores, threads and memory of this machine, and the card that is used.

    What cannot be found out is left out. Nodes on other machines are not described.

    Parameters
    ----------
    device
        A torch device; of a CUDA device the card is named.
    """
    import torch  # a configuration asks for the memory before torch is loaded

    cores, threads = _cores(), torch.get_num_threads()
    parts = [_processor(), f"{cores} {'core' if cores == 1 else 'cores'}"]
    if threads != cores:
        parts[1] += f" ({threads} used)"
    memory = _memory()
    if memory is not None:
        parts.append(f"{memory / 2**30:.0f} GiB memory")
    if device.startswith("cuda") and torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name(torch.device(device)))
    return ", ".join(parts)


def memory_limit() -> int | None:
    """Return the bytes of memory that this process can have: the machine's, or its group's limit.

    None if neither can be found out.
    """
    known = [_memory()]
    for path in GROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            known.append(int(path.read_text()))
    return min((limit for limit in known if limit), default=None)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    found = _from_cpu_info() or _from_sysctl() or platform.processor() or platform.machine()
    return " ".join(found.split()) or "unknown processor"


def _from_cpu_info() -> str:
    try:
        lines = CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    named: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        named.setdefault(key.strip(), value.strip())
    return next((named[key] for key in MODEL_KEYS if named.get(key)), "")


def _from_sysctl() -> str:
    if platform.system() != "Darwin":
        return ""
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
