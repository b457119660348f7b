"""The name of the folder to which a run's results go.

What was asked with other settings than a preset's has a folder that names them, beside the
preset's: what the preset came to is never overwritten by something else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from pfl_flower.run.keys import Scalar
from pfl_flower.support.plugins import HERE

LONGEST_VALUE = 60
LONGEST_FOLDER = 200
SUMMARY_FILE = "summary.json"

ELSEWHERE = frozenset(
    {
        "name",
        "output-dir",
        "state-dir",
        "data-dir",
        "embedding-weights",
        "device",
        "resume",
        "checkpoint-every",
        "evaluate-every",
        "save-trajectory",
        "chunk-users",
        "min-nodes",
        "site",
        "tracker",
        "tracker-options",
        "node-timeout",
        "introduction-timeout",
        "reply-timeout",
    }
)
"""Keys that make no other run of one: where it is carried out, how it waits, what it looks at."""


def readable(point: Mapping[str, Scalar]) -> str:
    """Return a folder's name for some settings: keys and values, with a digest where they are cut.

    >>> readable({"lam": 0.1, "attack": "cga"}), readable({"dataset": "imagefolder:/data/x"})
    ('lam=0.1,attack=cga', 'dataset=imagefolder_data_x-4fceb9')
    """
    name = ",".join(f"{key}={_safe(value)}" for key, value in point.items())
    return name if len(name) <= LONGEST_FOLDER else f"{name[:LONGEST_FOLDER]}-{digest(name)}"


def _safe(value: Scalar) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    safe = re.sub(r"[^A-Za-z0-9.+-]+", "_", text)[:LONGEST_VALUE]
    return safe if safe == text else f"{safe}-{digest(text)}"


def digest(text: str) -> str:
    """Return six characters that tell a text from others."""
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def named(name: str, changed: Mapping[str, Scalar]) -> str:
    """Return the folder's name of a preset, or a study, of which some settings were changed.

    >>> named("digits-l2", {}), named("digits-l2", {"lam": 0.1, "rounds": 20})
    ('digits-l2', 'digits-l2-with-lam=0.1,rounds=20')
    """
    return f"{name}-with-{readable(changed)}" if changed else name


def changes(
    values: Mapping[str, Scalar], usual: Mapping[str, Scalar], *besides: str
) -> dict[str, Scalar]:
    """Return the settings that make of a run another one than it usually is.

    The number of rounds is none of them where the run can go on: it is the same run, and longer.

    Parameters
    ----------
    values, usual : mapping
        All keys, as they are and as they usually are.
    *besides : str
        Keys that make no other run either.
    """
    if values.get("checkpoint-every") or values.get("resume"):
        besides = (*besides, "rounds")
    found = differing(values, usual)
    return {key: value for key, value in found.items() if key not in besides}


def differing(values: Mapping[str, Scalar], others: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the settings that are not the others' and make another run, of those both have."""
    return {
        key: value
        for key, value in values.items()
        if key not in ELSEWHERE and key in others and _told(others[key]) != _told(value)
    }


def _told(value: Scalar) -> Scalar:
    """Return a value without the number that tells an object defined again from the first."""
    again = isinstance(value, str) and value.startswith(HERE)
    return re.sub(r"-\d+$", "", str(value)) if again else value
