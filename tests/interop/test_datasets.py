"""Poisoned data sets: which points, what they become, and what stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import pfl_flower as pfl
from pfl_flower.interop.datasets import square

SIZE = 40
IMAGES = torch.rand(SIZE, 1, 6, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(SIZE) % 4


def hugging_face() -> Any:
    datasets = pytest.importorskip("datasets")
    rows = {"image": IMAGES.numpy().tolist(), "label": LABELS.tolist(), "id": list(range(SIZE))}
    return datasets.Dataset.from_dict(rows).with_format("torch")


FORMS: dict[str, Any] = {
    "pairs": lambda: [(x, int(y)) for x, y in zip(IMAGES, LABELS, strict=True)],
    "tensors": lambda: TensorDataset(IMAGES, LABELS),
    "arrays": lambda: [(x.numpy(), np.int64(y)) for x, y in zip(IMAGES, LABELS, strict=True)],
    "dictionaries": lambda: [{"image": x, "label": y} for x, y in zip(IMAGES, LABELS, strict=True)],
    "hugging face": hugging_face,
}


def points(dataset: Any) -> list[tuple[torch.Tensor, int]]:
    found = []
    for index in range(len(dataset)):
        point = dataset[index]
        x, y = (point["image"], point["label"]) if isinstance(point, dict) else point[:2]
        found.append((torch.as_tensor(x), int(y)))
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("share", "count"), [(0.25, 10), (1.0, SIZE), (0.001, 1), (0.0625, 3)])
def test_a_share_carries_the_trigger_and_the_label(form: str, share: float, count: int) -> None:
    honest = FORMS[form]()
    dataset = pfl.poisoned(honest, trigger=square(2, 9.0), share=share, label=3, seed=5)
    changed = 0
    for (x, y), (before, label) in zip(points(dataset), points(honest), strict=True):
        if torch.equal(x, before):
            assert y == label
            continue
        changed += 1
        assert y == 3 and bool((x[..., -2:, -2:] == 9.0).all())
        rest = x.clone()
        rest[..., -2:, -2:] = before[..., -2:, -2:]
        assert torch.equal(rest, before)
    assert changed == count
    assert all(bool((x != 9.0).all()) for x, _ in points(honest)), "the data set itself stays"


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_replaced_and_images_are_not(form: str) -> None:
    honest = FORMS[form]()
    for labels, right in (
        ({0: 1}, lambda y: 1 if y == 0 else y),
        (lambda y: 3 - y, lambda y: 3 - y),
    ):
        dataset = pfl.relabelled(honest, labels)
        for (x, y), (before, label) in zip(points(dataset), points(honest), strict=True):
            assert torch.equal(x, before) and y == right(label)


def test_the_same_seed_is_the_same_points_and_a_loader_reads_them() -> None:
    def chosen(seed: int) -> set[int]:
        dataset = pfl.poisoned(FORMS["tensors"](), share=0.3, label=9, seed=seed)
        batches = DataLoader(dataset, batch_size=7)
        labels = torch.cat([y for _, y in batches])
        return set(torch.nonzero(labels == 9).ravel().tolist())

    assert chosen(1) == chosen(1) != chosen(2)
    assert len(list(pfl.poisoned(FORMS["tensors"](), share=0.3))) == SIZE


def test_clean_labels_stay_and_other_columns_too() -> None:
    dataset = pfl.poisoned(hugging_face())
    assert [int(dataset[i]["id"]) for i in (0, -1)] == [0, SIZE - 1]
    assert [y for _, y in points(dataset)] == LABELS.tolist()


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda d: pfl.poisoned(d, share=0), "share = 0: expected more than 0"),
        (lambda d: pfl.poisoned(d, share=1.5), "share = 1.5"),
        (lambda d: pfl.poisoned(5), "dataset = int"),
        (lambda d: pfl.poisoned([]), "dataset = empty"),
        (lambda d: pfl.poisoned([1, 2]), r"expected points \(x, y\)"),
        (lambda d: pfl.poisoned(d, trigger=5), "trigger = 5"),
        (lambda d: pfl.relabelled(d, 5), "labels = 5"),
        (lambda d: pfl.poisoned([{"x": 1}]), "columns = image: expected one of x"),
        (lambda d: pfl.poisoned(d, columns=("a",)), "columns = "),
        (lambda d: square(0), "size = 0"),
        (lambda d: pfl.poisoned([("text", 1)])[0], "trigger: expected images"),
    ],
)
def test_wrong_arguments_are_one_line(call: Any, line: str) -> None:
    with pytest.raises(pfl.ConfigError, match=line) as error:
        call(FORMS["pairs"]())
    assert "\n" not in str(error.value)
