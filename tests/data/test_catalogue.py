from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from pfl_flower.data import catalogue
from pfl_flower.data.catalogue import load_source
from pfl_flower.data.sources import redraw_labels
from pfl_flower.data.spec import DataSpec
from pfl_flower.data.synthetic import Synthetic
from pfl_flower.support.errors import DataError
from pfl_flower.support.folders import data_folder
from pfl_flower.support.seeding import generator


def test_digits_are_the_real_ones_and_split_once() -> None:
    source = load_source(DataSpec("digits"))
    (train, labels), (test, test_labels) = source.training_set(), source.test_set()
    assert (len(train), len(test), source.inputs, source.outputs) == (1437, 360, 65, 10)
    assert torch.equal(train[:, -1], torch.ones(1437, dtype=train.dtype))
    assert train[:, :-1].min() == 0
    assert train[:, :-1].max() == 1
    assert torch.bincount(torch.cat([labels, test_labels])).sum() == 1797
    rows = torch.cat([train, test])
    assert len(torch.unique(rows, dim=0)) > 1790


def test_digits_are_scikit_learns_wherever_it_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = catalogue._digits_table(), load_digits()
    assert np.array_equal(ours, np.column_stack([theirs.data, theirs.target]))
    monkeypatch.setattr(catalogue, "DIGITS_FILE", ("elsewhere.csv.gz",))
    assert np.array_equal(catalogue._digits_table(), ours)


def test_draws_are_without_replacement_and_independent() -> None:
    source = load_source(DataSpec("digits"))
    first, second = source.draw(0, 500, 1), source.draw(1, 500, 1)
    assert len(torch.unique(first.features, dim=0)) >= 499
    assert not torch.equal(first.features, second.features)
    assert torch.equal(first.features, source.draw(0, 500, 1).features)
    assert not torch.equal(first.features, source.draw(0, 500, 2).features)
    whole = source.draw(3, 1437, 1)
    assert torch.equal(torch.sort(whole.labels).values, torch.sort(source.training_set()[1]).values)


def test_asking_for_more_points_than_there_are() -> None:
    with pytest.raises(DataError, match=r"points-per-user = 1438: expected <= 1437"):
        load_source(DataSpec("digits")).draw(0, 1438, 1)


def test_label_noise_redraws_the_stated_fraction_and_spares_the_test_set() -> None:
    labels = torch.arange(10).repeat(1000)
    noised = redraw_labels(labels, 10, 0.6, generator(0, "test"))
    changed = float((noised != labels).double().mean())
    assert changed == pytest.approx(0.6 * 0.9, abs=0.02)
    clean, noisy = load_source(DataSpec("digits")), load_source(DataSpec("digits", label_noise=0.6))
    assert torch.equal(clean.test_set()[1], noisy.test_set()[1])
    assert not torch.equal(clean.training_set()[1], noisy.training_set()[1])


@pytest.mark.parametrize("loss", ["least-squares", "logistic"])
def test_synthetic_users_answer_by_their_preferred_models(loss: str) -> None:
    source = Synthetic(loss, 5, seed=3)
    data = source.draw(2, 20_000, 1)
    model = source.preferred(2)
    assert not torch.equal(model, source.preferred(3))
    scores = data.features @ model
    if loss == "least-squares":
        fitted = torch.linalg.lstsq(data.features, data.labels[:, None]).solution[:, 0]
        assert torch.allclose(fitted, model, atol=0.01)
        assert (data.labels - scores).std() == pytest.approx(0.1, abs=0.005)
    else:
        assert set(data.labels.unique().tolist()) == {-1.0, 1.0}
        likely = torch.sigmoid(scores)
        for low in (0.2, 0.4, 0.6):
            band = (likely > low) & (likely < low + 0.2)
            rate = (data.labels[band] == 1).double().mean()
            assert rate == pytest.approx(float(likely[band].mean()), abs=0.03)


def test_missing_images_are_one_clear_message(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    import torchvision.datasets as vision

    def offline(self: object) -> None:
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(vision.MNIST, "download", offline)
    with pytest.raises(DataError, match=f"data-dir = {tmp_path}: MNIST is not there") as caught:
        load_source(DataSpec("mnist", data_dir=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_the_data_folder_is_the_configured_one_or_the_environments(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("PFL_DATA_DIR", "/somewhere")
    assert data_folder() == Path("/somewhere")
    assert data_folder("/else") == Path("/else")
    monkeypatch.delenv("PFL_DATA_DIR")
    monkeypatch.setenv("PFL_CACHE_DIR", "/cache")
    assert data_folder() == Path("/cache/data")


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_image_sets_from_the_data_folder(name: str) -> None:
    if not os.environ.get("PFL_DATA_DIR"):
        pytest.skip("PFL_DATA_DIR is not set: no image data on this machine")
    source = load_source(DataSpec(name))
    features, _ = source.training_set()
    assert features.shape == (60_000, 785)
    assert (float(features.min()), float(features.max())) == (0.0, 1.0)
    assert source.test_set()[0].shape == (10_000, 785)
    drawn = source.draw(0, 6_000, 1)
    assert torch.bincount(drawn.labels, minlength=10).min() > 400
