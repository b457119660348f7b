"""A ``summary.json`` as the report reads it: what it lacks or has of another kind is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from experiments.report.text import number, spread
from pfl_flower.support.left_out import LeftOut


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Metric(_Frozen):
    """A number over seeds; JSON has no NaN, so that "nan" stands for it."""

    mean: float
    std: float
    values: tuple[float, ...]

    @property
    def shown(self) -> str:
        """Mean and standard deviation, as text; one seed has no deviation."""
        return spread(self.mean, self.std if len(self.values) > 1 else None)

    @property
    def by_seed(self) -> str:
        """The values, as text."""
        return ", ".join(map(number, self.values))


class JudgedCheck(_Frozen):
    """What had to hold, and whether it did."""

    name: str
    value: Any
    expected: str
    passed: bool


class Summary(_Frozen):
    """What a study or a run left behind; entries beyond these are not shown."""

    seeds: tuple[int, ...]
    metrics: dict[str, Metric]
    checks: tuple[JudgedCheck, ...]
    passed: bool
    config: dict[str, Any]
    versions: dict[str, str]
    commit: str
    device: str
    seconds: float
    hardware: str = "not recorded"
    success: tuple[str, ...] | None = None
    claims: str = ""
    unjudged: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


def read_summary(path: Path) -> tuple[Summary | None, str]:
    """Return the summary, or why there is none; neither if there is no file."""
    try:
        return Summary.model_validate(json.loads(path.read_text(encoding="utf-8"))), ""
    except FileNotFoundError:
        return None, ""
    except ValidationError as error:
        wrong = [".".join(map(str, one["loc"])) for one in error.errors()]
        return None, f"{path.name} has no readable {', '.join(wrong[:5]) or 'entries'}"
    except (OSError, ValueError) as error:
        return None, f"{path.name} cannot be read: {error}"
