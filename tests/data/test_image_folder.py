from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pfl_flower.data import image_folder
from pfl_flower.data.catalogue import load_source
from pfl_flower.data.image_folder import ImageSet, read_tree
from pfl_flower.data.image_sets import read_images
from pfl_flower.data.sources import Images, ready
from pfl_flower.data.spec import DataSpec
from pfl_flower.support.errors import ConfigError, DataError
from tests.support.images import picture, write, write_tar, write_tree

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("PFL_CACHE_DIR", str(tmp_path / "cache"))


def forbid_reading(monkeypatch: Patch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr(image_folder, "_pixels", refuse)


def same(first: ImageSet, second: ImageSet) -> bool:
    names = ("train", "train_labels", "test", "test_labels")
    return first.classes == second.classes and all(
        torch.equal(getattr(first, name), getattr(second, name)) for name in names
    )


def test_every_pixel_and_label_is_in_its_place(tmp_path: Path) -> None:
    images = read_tree(write_tree(tmp_path / "tree"))
    assert images.classes == ["cat", "dog"]
    assert images.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.test_labels.tolist() == [0, 0, 1, 1]
    assert (images.train.dtype, images.train.shape) == (torch.uint8, (6, 3, 32, 32))
    assert torch.equal(images.train[4], picture(1001, shift=0.25))
    assert torch.equal(images.test[1], picture(501, shift=-0.25))


def test_the_second_time_no_image_is_read(tmp_path: Path, monkeypatch: Patch) -> None:
    tree = write_tree(tmp_path / "tree")
    tar = write_tar(tmp_path / "tree.tar", tree)
    first = [read_tree(tree), read_tree(tar)]
    forbid_reading(monkeypatch)
    assert same(read_tree(tree), first[0])
    assert same(read_tree(tar), first[1])


@pytest.mark.parametrize("change", ["content", "time", "name", "new", "gone"])
def test_a_changed_folder_is_read_again(change: str, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    before = read_tree(tree)
    file = tree / "train/cat/0001.png"
    if change == "content":
        write(file, picture(7))
    elif change == "time":
        os.utime(file, (1, 1))
    elif change == "name":
        file.rename(file.with_name("9999.png"))
    elif change == "new":
        write(tree / "test/cat/0009.png", picture(8))
    else:
        file.unlink()
    after = read_tree(tree)
    assert after.key != before.key
    assert same(after, before) == (change == "time")


def test_a_changed_tar_is_read_again(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    before = read_tree(write_tar(tmp_path / "tree.tar", tree))
    write(tree / "train/cat/0001.png", picture(7))
    after = read_tree(write_tar(tmp_path / "tree.tar", tree))
    assert torch.equal(after.train[1], picture(7))
    assert after.key != before.key


def test_a_cut_cache_file_is_made_again(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    before = read_tree(tree)
    (kept,) = (tmp_path / "cache/images").iterdir()
    for content in (kept.read_bytes()[:1000], b""):
        kept.unlink()  # what is mapped stays as it is
        kept.write_bytes(content)
        assert same(read_tree(tree), before)


@pytest.mark.parametrize(
    ("mode", "prefix"), [("w", ""), ("w:gz", ""), ("w", "./")], ids=["plain", "gzip", "dotted"]
)
def test_a_tar_is_its_folder(mode: str, prefix: str, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    tar = write_tar(tmp_path / "tree.tar", tree, mode=mode, prefix=prefix)
    assert same(read_tree(tar), read_tree(tree))


def test_what_a_tar_holds_twice_is_as_it_was_last(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    tar = write_tar(tmp_path / "tree.tar", tree)
    write(tmp_path / "new.png", picture(7))
    with tarfile.open(tar, "a") as archive:
        archive.add(tmp_path / "new.png", "train/cat/0000.png")
    images = read_tree(tar)
    assert len(images.train) == 6
    assert torch.equal(images.train[0], picture(7))


def test_greyscale_becomes_rgb_and_other_files_are_ignored(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    grey = picture(3)[0]
    Image.fromarray(grey.numpy()).save(tree / "train/cat/0000.png")
    (tree / "train/cat/._0000.png").write_text("a Mac was here")
    (tree / "train/cat/notes.txt").write_text("cats")
    images = read_tree(tree)
    assert torch.equal(images.train[0], grey.expand(3, -1, -1))
    assert len(images.train) == 6


def deep(tree: Path) -> None:
    Image.fromarray(np.zeros((32, 32), dtype=np.uint16)).save(tree / "train/dog/0001.png")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another size": (
        lambda tree: write(tree / "train/dog/0001.png", picture(1, size=33)),
        r"^train/dog/0001.png: 33 x 33, and test/cat/0000.png is 32 x 32: expected images of one",
    ),
    "text": (
        lambda tree: (tree / "train/dog/0001.png").write_text("no image"),
        r"^train/dog/0001.png: not an image that can be read",
    ),
    "cut": (
        lambda tree: os.truncate(tree / "train/dog/0001.png", 100),
        r"^train/dog/0001.png: not an image that can be read",
    ),
    "16 bits": (deep, r"^train/dog/0001.png: expected 8 bits a channel, and its mode is I;16$"),
    "unknown class": (
        lambda tree: write(tree / "test/ant/1.png", picture(1)),
        r"test/ant is a class that train lacks$",
    ),
    "no test": (
        lambda tree: (tree / "test").rename(tree / "exam"),
        r"expected train/CLASS/\*.jpg or \*.png of two classes or more, and test/CLASS/\*, and "
        r"there is exam$",
    ),
    "one class": (
        lambda tree: (tree / "train/dog").rename(tree / "train/.dogs"),
        r"expected train/CLASS/\*.jpg or \*.png of two classes or more",
    ),
}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_the_file(fault: str, packed: bool, tmp_path: Path) -> None:
    spoil, message = FAULTS[fault]
    tree = write_tree(tmp_path / "tree")
    spoil(tree)
    # sorted from the end: the first of the tar's files is the last by name
    place = write_tar(tmp_path / "tree.tar", tree) if packed else tree
    if packed:
        message = message.replace("test/cat/0000.png is", "train/dog/0002.png is")
    with pytest.raises(DataError, match=message) as caught:
        read_tree(place)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.pt*"))


def test_places_that_hold_no_tree(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder or tar of images$"):
        read_tree(tmp_path / "nowhere")
    text = tmp_path / "text.tar"
    text.write_text("no tar")
    with pytest.raises(DataError, match=r"text.tar: expected a folder or a tar"):
        read_tree(text)
    tar = write_tar(tmp_path / "tree.tar", write_tree(tmp_path / "tree"))
    cut = tmp_path / "cut.tar"
    cut.write_bytes(tar.read_bytes()[:5000])
    with pytest.raises(DataError):
        read_tree(cut)


def test_a_source_draws_pixels_in_the_unit_interval(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", train=10)
    source = load_source(DataSpec(f"imagefolder:{tree}"))
    assert isinstance(source, Images)
    assert (source.inputs, source.outputs, source.most_points) == (3073, 2, 20)
    assert source.key == read_tree(tree).key
    features, labels = source.training_set()
    pixels = read_tree(tree).train.flatten(1).to(torch.float32) / 255
    assert torch.equal(features[:, :-1], pixels)
    assert torch.equal(features[:, -1], torch.ones(20))
    drawn = source.draw(0, 5, 1)
    assert (drawn.features.dtype, drawn.labels.dtype) == (torch.float32, torch.int64)
    for row, label in zip(drawn.features, drawn.labels, strict=True):
        assert label == labels[(features == row).all(dim=1)]
    assert source.test_set()[0].shape == (4, 3073)


def test_a_relative_path_is_in_the_data_folder(tmp_path: Path) -> None:
    write_tree(tmp_path / "data/tree")
    spec = DataSpec("imagefolder:tree", data_dir=str(tmp_path / "data"))
    assert load_source(spec).key == read_tree(tmp_path / "data/tree").key
    with pytest.raises(ConfigError, match=r"dataset = imagefolder:: expected .*imagefolder:PATH"):
        load_source(DataSpec("imagefolder:"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_stored_features_become_floats(dtype: torch.dtype) -> None:
    stored = torch.tensor([[0, 1], [128, 255]]).to(dtype)
    features = ready(stored)
    scale = 255 if dtype == torch.uint8 else 1
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = torch.tensor([[0.0, 1.0], [128.0, 255.0]], dtype=wide) / scale
    assert features.dtype == wide
    assert torch.equal(features, torch.cat([expected, torch.ones((2, 1), dtype=wide)], dim=1))


def no_torchvision(monkeypatch: Patch, fault: Exception) -> list[bool]:
    """Make torchvision's CIFAR-10 fail; return the list of its calls' ``download``."""
    import torchvision.datasets as vision

    asked: list[bool] = []

    def absent(*_: object, download: bool, **__: object) -> None:
        asked.append(download)
        raise fault

    monkeypatch.setattr(vision, "CIFAR10", absent)
    return asked


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
def test_cifar10_is_the_tree_in_the_data_folder(
    packed: bool, tmp_path: Path, monkeypatch: Patch
) -> None:
    asked = no_torchvision(monkeypatch, RuntimeError("Dataset not found"))
    tree = write_tree(tmp_path / ("cifar10" if packed else "data/cifar10-imagefolder"))
    (tmp_path / "data").mkdir(exist_ok=True)
    if packed:
        tree = write_tar(tmp_path / "data/cifar10-imagefolder.tar", tree)
    assert same(read_images("cifar10", tmp_path / "data"), read_tree(tree))
    assert not asked


@pytest.mark.parametrize("fault", [RuntimeError("corrupted"), OSError("no network")])
def test_cifar10_that_cannot_be_had_is_one_line(
    fault: Exception, tmp_path: Path, monkeypatch: Patch
) -> None:
    asked = no_torchvision(monkeypatch, fault)
    with pytest.raises(DataError, match=f"data-dir = {tmp_path}: CIFAR-10 is not there") as caught:
        load_source(DataSpec("cifar10", data_dir=str(tmp_path)))
    assert "\n" not in str(caught.value)
    assert asked == [True]


def test_torchvisions_cifar10_is_preferred(tmp_path: Path, monkeypatch: Patch) -> None:
    import torchvision.datasets as vision

    class Fake:
        classes: tuple[str, ...] = ("cat", "dog")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert not download
            count = 4 if train else 2
            self.data: Any = np.arange(count * 32 * 32 * 3).reshape(count, 32, 32, 3)
            self.data = self.data.astype(np.uint8)
            self.targets = [0, 1] * (count // 2)

    monkeypatch.setattr(vision, "CIFAR10", Fake)
    write_tree(tmp_path / "cifar10-imagefolder")
    (tmp_path / "cifar-10-batches-py").mkdir()
    images = read_images("cifar10", tmp_path)
    assert images.key == "cifar10-torchvision"
    assert (images.train.shape, images.test.shape) == ((4, 3, 32, 32), (2, 3, 32, 32))
    assert images.train[0, :, 0, 1].tolist() == [3, 4, 5]
    assert images.train_labels.tolist() == [0, 1, 0, 1]


@pytest.mark.slow
@pytest.mark.data
def test_the_real_cifar10() -> None:
    folder = Path(os.environ.get("PFL_DATA_DIR", "/nowhere"))
    if not (folder / "cifar10-imagefolder.tar").is_file():
        pytest.skip("no cifar10-imagefolder.tar in PFL_DATA_DIR")
    images = read_images("cifar10", folder)
    assert (images.train.shape, images.test.shape) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert images.classes[0] == "airplane"
    assert torch.bincount(images.train_labels).tolist() == [5000] * 10
    assert torch.bincount(images.test_labels).tolist() == [1000] * 10
    source = load_source(DataSpec("cifar10"))
    assert (source.inputs, source.outputs) == (3073, 10)
    assert source.draw(0, 6000, 1).features.shape == (6000, 3073)
