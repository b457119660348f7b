"""How the report writes numbers, times, commands and what docstrings say."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

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


def short_commit(commit: str) -> str:
    """Return a commit as short as git shows it; "-dirty" stays, and so do words.

    >>> short_commit("0123456789abcdef0123456789abcdef01234567-dirty"), short_commit("unknown")
    ('0123456789-dirty', 'unknown')
    """
    return re.sub(r"^([0-9a-f]{10})[0-9a-f]{30}\b", r"\1", commit)


@dataclass(frozen=True)
class Part:
    """A piece of a line: words, or code."""

    text: str
    code: bool = False


@dataclass(frozen=True)
class Block:
    """A paragraph (one line), a list (a line for each item) or text to be shown as it stands."""

    kind: Literal["paragraph", "list", "verbatim"]
    lines: tuple[tuple[Part, ...], ...]


def prose(text: str) -> tuple[Block, ...]:
    r"""Return a docstring as paragraphs, lists and, where it is indented, verbatim blocks.

    >>> [block.kind for block in prose("One ``x``.\n\n* a\n* b\n\n    code")]
    ['paragraph', 'list', 'verbatim']
    """
    blocks = [block for block in re.split(r"\n\s*\n", text.strip("\n")) if block.strip()]
    return tuple(map(_block, blocks))


def _block(block: str) -> Block:
    lines = block.splitlines()
    if all(line.startswith("    ") for line in lines):
        return Block("verbatim", ((Part("\n".join(line[4:] for line in lines)),),))
    if re.match(r"[*-] ", block):
        items = re.split(r"^[*-] ", block, flags=re.MULTILINE)[1:]
        return Block("list", tuple(map(_line, items)))
    return Block("paragraph", (_line(block),))


def _line(text: str) -> tuple[Part, ...]:
    parts = re.split(r"``(.+?)``", " ".join(text.split()))
    return tuple(Part(part, code=i % 2 == 1) for i, part in enumerate(parts) if part)
