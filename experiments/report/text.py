"""How the report writes numbers, times and commands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from experiments.running.options import Options, parse_settings
from pfl_flower.run.keys import Scalar


def command(name: str, config: Mapping[str, Any], seeds: Sequence[int] | None = None) -> str:
    """Return what a person types to measure this again.

    >>> command("fig1-cga", {"quick": True, "rounds": 3, "settings": {"lam": 0.5}}, (1, 2))
    'python -m experiments run fig1-cga --seeds 1,2 --rounds 3 --quick --set lam=0.5'
    """
    words = ["python", "-m", "experiments", "run", name]
    if seeds is not None:
        words += ["--seeds", ",".join(map(str, seeds))]
    return shlex.join(words + _flags(config))


def _flags(config: Mapping[str, Any]) -> list[str]:
    """Return the options that were not left at their defaults, as they are typed."""
    usual = {field.name: field.default for field in fields(Options)}
    words = []
    for key in ("engine", "device", "rounds", "nodes"):
        if config.get(key, usual[key]) != usual[key]:
            words += [f"--{key}", str(config[key])]
    words += [f"--{key}" for key in ("quick", "control") if config.get(key)]
    settings = config.get("settings") or {}
    return words + (["--set"] if settings else []) + [_pair(*item) for item in settings.items()]


def _pair(key: str, value: Scalar) -> str:
    """Return ``key=value`` such that parse_settings reads this very value."""
    plain = json.dumps(value) if isinstance(value, bool) else str(value)
    read = parse_settings([f"{key}={plain}"])[key]
    return f"{key}={plain if read == value else json.dumps(value, ensure_ascii=False)}"


def number(value: object) -> str:
    """Return a number with four digits, and anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def spread(mean: float, std: float | None) -> str:
    """Return mean and standard deviation; of one seed there is no deviation."""
    return f"{mean:.4g} (one seed)" if std is None else f"{mean:.4g} ± {std:.2g}"


def duration(seconds: float) -> str:
    """Return a time as a person says it.

    >>> duration(7.25), duration(125), duration(7325)
    ('7.2 s', '2 min 05 s', '2 h 02 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
