"""What became of a check, in words: in the control, where nobody attacks, failing is the point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PASSED, FAILED = "passed", "FAILED"
AS_IT_MUST = "fails without the attack, as it must"
ALL_THE_SAME = "HOLDS without the attack"
NOT_COUNTED = "fails, not counted in the control"


@dataclass(frozen=True)
class Word:
    """What is said of a check.

    Attributes
    ----------
    text : str
        In a few words.
    colour : str
        Of the text.
    fine : bool
        Whether the check came out as it should.
    """

    text: str
    colour: str
    fine: bool


def word(name: str, passed: bool, summary: Mapping[str, Any]) -> Word:
    """Return what is said of a check of a ``summary.json``.

    In the control the claims of success must fail. What the study claims besides may rest on the
    attack too, and counts where there is one.

    >>> word("gap", False, {"control": True, "success": ["gap"]})
    Word(text='fails without the attack, as it must', colour='green', fine=True)
    """
    if not summary.get("control"):
        return Word(PASSED, "green", True) if passed else Word(FAILED, "red", False)
    if name in (summary.get("success") or ()):
        return Word(ALL_THE_SAME, "red", False) if passed else Word(AS_IT_MUST, "green", True)
    return Word(PASSED, "green", True) if passed else Word(NOT_COUNTED, "yellow", True)
