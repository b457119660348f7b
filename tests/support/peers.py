"""byzfl's classes, where it is installed."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from experiments.benchmark.aggregators import byzfl_aggregators


def byzfl(part: str, name: str, *arguments: Any, **options: Any) -> Any:
    """Return an object of a class of ``byzfl.PART``; without byzfl skip the test."""
    if byzfl_aggregators() is None:
        pytest.skip("byzfl is not installed: pip install byzfl")
    return getattr(importlib.import_module(f"byzfl.{part}"), name)(*arguments, **options)
