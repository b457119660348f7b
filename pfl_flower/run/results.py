"""What a run leaves behind when it ends: ``summary.json`` and the files beside it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pfl_flower.run.checks import Check
from pfl_flower.support.archives import read_arrays, regular_file
from pfl_flower.support.files import VERSION, replace_file, replacing
from pfl_flower.support.hardware import hardware
from pfl_flower.support.versions import commit, versions

LIMIT_FILE = "limit.npz"
"""In a run's folder: the last rho; the sum of each strategic user's last report that counted, of
whatever round; who they are, and the rounds. The sum is what holds rho there, and 0 without any."""


STILL = 1e-9
"""Relative to a run's longest step: shorter ones are what is left of solves exact to 1e-10."""


def behaviour(step_norms: Sequence[float]) -> str:
    """Return how the steps ``||rho_{t+1} - rho_t||`` of a run evolve.

    The first quarter, in which rho leaves its start, does not count. ``diverging`` when the last
    quarter's largest step is above the second's or not finite, ``settling`` when it is at most half
    of it, or hardly more than rounding, ``moving`` in between.

    >>> behaviour([9.0, 1.0, 0.5, 0.25]), behaviour([9.0, 1.0, 2.0, 4.0])
    ('settling', 'diverging')
    >>> behaviour([9.0, 1e-15, 2e-15, 4e-15])
    'settling'
    """
    if not all(math.isfinite(norm) for norm in step_norms):
        return "diverging"
    quarter = max(1, len(step_norms) // 4)
    before = max(step_norms[quarter : 2 * quarter], default=0.0)
    last = max(step_norms[-quarter:], default=0.0)
    if last <= STILL * max(step_norms, default=0.0):
        return "settling"
    if last > before > 0:
        return "diverging"
    return "settling" if last <= before / 2 else "moving"


def summarise(
    *,
    experiment: str,
    config: Mapping[str, Any],
    seeds: Sequence[int],
    finals: Sequence[Mapping[str, float]],
    checks: Sequence[Check],
    device: str,
    seconds: float,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of ``summary.json``.

    Parameters
    ----------
    experiment, config, seeds
        What was run.
    finals
        For each seed its metrics at the end; one that some seeds lack is of the others.
    checks
        What had to hold; the run passed if all did.
    device, seconds
        Where, and how long.
    extra
        Further entries.
    """
    names = dict.fromkeys(name for final in finals for name in final)
    metrics = {
        name: {
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values) if len(values) > 1 else 0.0,
            "values": values,
        }
        for name in names
        for values in [[final[name] for final in finals if name in final]]
    }
    return {
        "experiment": experiment,
        "config": dict(config),
        "seeds": list(seeds),
        "metrics": metrics,
        "checks": [asdict(check) for check in checks],
        "passed": all(check.passed for check in checks),
        **(extra or {}),
        "versions": versions(),
        "commit": commit(),
        "device": device,
        "hardware": hardware(device),
        "seconds": round(seconds, 3),
    }


class OldLimitError(ValueError):
    """A ``limit.npz`` of another version: what was expected, in a few words."""


@dataclass(frozen=True)
class KeptLimit:
    """What ``limit.npz`` says.

    Attributes
    ----------
    rho, gradient : ndarray
        See ``LIMIT_FILE``, ``(d,)``.
    reported : mapping
        For each strategic user of whom a report counted, the round of the last.
    """

    rho: NDArray[np.float64]
    gradient: NDArray[np.float64]
    reported: Mapping[int, int]


def write_limit(path: Path, rho: Tensor, gradient: Tensor, reported: Mapping[int, int]) -> None:
    """Keep where a gradient attack held rho, the gradient ``(d,)`` that did, whose, and since when.

    ``reported`` gives the users' rounds; 0 stands for a gradient that was worked out.
    """
    with replacing(path) as file:
        np.savez(
            file,
            version=VERSION,
            rho=rho.double().cpu().numpy(),
            gradient=gradient.double().cpu().numpy(),
            users=np.array(list(reported), dtype=np.int64),
            rounds=np.array(list(reported.values()), dtype=np.int64),
        )


def read_limit(path: Path) -> KeptLimit:
    """Return what ``write_limit`` kept.

    Raises
    ------
    OSError, ValueError, KeyError
        If there is no such file, or not with that content.
    OldLimitError
        If it is of another version.
    """
    with regular_file(path) as file:
        kept = read_arrays(file.read())
    version = int(kept["version"]) if "version" in kept else 1
    if version != VERSION:
        raise OldLimitError(f"a {LIMIT_FILE} of version {VERSION}, and it is of version {version}")
    pairs = zip(kept["users"].tolist(), kept["rounds"].tolist(), strict=True)
    return KeptLimit(kept["rho"], kept["gradient"], dict(pairs))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON; numbers that it lacks are spelled as text."""
    replace_file(path, json.dumps(_jsonable(content), indent=2) + "\n")


def _jsonable(value: Any) -> Any:
    """Return the value with numbers that JSON lacks spelled as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    return value
