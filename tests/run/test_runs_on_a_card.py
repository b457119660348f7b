"""Every rule, attack, poisoning and model on a card that is not there.

What a card refuses, numbers of two places in one operation, is refused here too, and a form that is
only taken on a card is computed. ``tests/engines/test_gpu.py`` runs the same cases on a real one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from pfl_flower.run import problem as problems
from tests.support.card import DEVICE, Card
from tests.support.on_card import CASES, RUNS, SINGLE, accuracies, check_same, judged
from tests.support.runs import configure


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    real = problems.choose_device
    monkeypatch.setattr(
        problems, "choose_device", lambda name: DEVICE if name == "cuda" else real(name)
    )
    yield
    problems._build.cache_clear()


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_that_of_the_processor(name: str, card: None) -> None:
    with Card() as there:
        found = judged(CASES[name], "cuda")
    assert sum(there.launches.values()) > 100
    check_same(name, found)


@pytest.mark.parametrize("keys", [*RUNS.values(), *SINGLE.values()])
def test_what_only_a_card_runs_is_a_configuration(keys: Mapping[str, Any]) -> None:
    """Where there is no card nothing else would say that a key has been renamed or is refused."""
    assert configure(**keys, device="cpu").users >= 3


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("model", SINGLE)
def test_models_are_judged_on_all_test_points(model: str, models: int, card: None) -> None:
    """A single one of two layers was judged on the first alone."""
    with Card():
        found = accuracies(model, models, "cuda")
    expected = accuracies(model, models, "cpu")
    assert found.shape == (models,) and not bool(((expected == 0) | (expected == 1)).any())
    torch.testing.assert_close(found, expected)
