"""Files of MNIST that are not what they should be: one line, with the file and what is wrong."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from http.client import IncompleteRead
from pathlib import Path

import numpy as np
import pytest
import torch

from pfl_flower.data.catalogue import load_source
from pfl_flower.data.idx_files import read_idx
from pfl_flower.data.spec import DataSpec
from pfl_flower.support.errors import ConfigError, DataError
from tests.support.images import picture, write_tree

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
Damage = Callable[[bytes], bytes]


def idx(values: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    """Return an IDX file as its format says."""
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return bytes((0, 0, 8, values.ndim)) + sizes + values.tobytes()


def write_mnist(folder: Path, name: str = "MNIST") -> Path:
    """Write twelve images of 5 x 4 for training and six for testing, and return their folder."""
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 12), ("t10k", 6)):
        pixels = picture(count, size=20)[0].flatten()[: count * 20].numpy().reshape(count, 5, 4)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) % 3))
    return raw


@pytest.mark.parametrize(("name", "files"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_every_pixel_and_label_is_in_its_place(name: str, files: str, tmp_path: Path) -> None:
    raw = write_mnist(tmp_path, files)
    source = load_source(DataSpec(name, data_dir=str(tmp_path)))
    features, labels = source.training_set()
    pixels = torch.from_numpy(np.fromfile(raw / IMAGES, np.uint8, offset=16)).view(12, 20)
    assert torch.equal(features[:, :-1], pixels.to(torch.float32) / 255)
    assert labels.tolist() == [0, 1, 2] * 4
    assert source.test_set()[0].shape == (6, 21)
    vision = pytest.importorskip("torchvision.datasets")
    theirs = getattr(vision, files)(str(tmp_path), train=True)
    assert torch.equal(theirs.data.flatten(1), pixels)
    assert torch.equal(theirs.targets, labels)


def head(*sizes: int, kind: int = 8) -> bytes:
    return bytes((0, 0, kind, len(sizes))) + struct.pack(f">{len(sizes)}I", *sizes)


ENDS = "expected an IDX file of bytes, or none: then it is downloaded$"
DAMAGES: dict[str, tuple[str, Damage, str]] = {
    "empty": (IMAGES, lambda _: b"", "it is empty; "),
    "a web page": (
        IMAGES,
        lambda _: b"\n<!DOCTYPE html>\x1b[2J<html>404",
        r"it is a web page, b'\\n<!DOCTYPE html>\\x1b\[2J<html>404'; ",
    ),
    "gzip": (IMAGES, gzip.compress, "it is packed by gzip; unpack it under this name; "),
    "gzip of labels": (LABELS, gzip.compress, "it is packed by gzip; "),
    "a pointer": (LABELS, lambda _: b"version https://git-lfs", "it begins with b'version https:"),
    "cut": (IMAGES, lambda b: b[:-1], "it is cut off: 255 bytes, by its header 12 x 5 x 4 entries"),
    "cut in half": (LABELS, lambda b: b[:14], "it is cut off: 14 bytes, by its header 12 entries"),
    "cut in its header": (IMAGES, lambda b: b[:10], "it is cut off in its header; "),
    "a byte": (IMAGES, lambda b: b[:1], r"it begins with b'\\x00'; "),
    "longer": (LABELS, lambda b: b + b"\0", "it is too long: 21 bytes, by its .* 12 entries, 20; "),
    "labels for images": (
        IMAGES,
        lambda _: idx(np.zeros(12, dtype=np.uint8)),
        "it has 1 dimensions, where 3 are right: images or labels",
    ),
    "of floats": (IMAGES, lambda b: head(12, 5, 4, kind=13) + b[16:], "it begins with b"),
    "without images": (IMAGES, lambda _: head(0, 28, 28), "it holds nothing; "),
    "of 2^96 pixels": (
        IMAGES,
        lambda b: head(2**32 - 1, 2**32 - 1, 2**32 - 1) + b[16:],
        "it is cut off: 256 bytes, by its header 4294967295 x 4294967295 x 4294967295 entries",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_what_is_wrong(damage: str, tmp_path: Path) -> None:
    name, spoil, message = DAMAGES[damage]
    path = write_mnist(tmp_path) / name
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=f"^{path}: {message}.*{ENDS}") as caught:
        load_source(DataSpec("mnist", data_dir=str(tmp_path)))
    assert str(caught.value).isprintable()


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"/folder: it cannot be read \(Is a directory\); expected"):
        read_idx(tmp_path / "folder", 1)


DISAGREE: dict[str, tuple[str, bytes, str]] = {
    "fewer labels": (LABELS, idx(np.arange(11, dtype=np.uint8) % 3), "12 points and 11 labels"),
    "fewer images": (IMAGES, idx(np.zeros((11, 5, 4), dtype=np.uint8)), "11 points and 12 labels"),
    "another size": (
        "t10k-images-idx3-ubyte",
        idx(np.zeros((6, 5, 5), dtype=np.uint8)),
        r"test set has features \(6, 25\), expected rows of 20 entries",
    ),
    "another class": (
        "t10k-labels-idx1-ubyte",
        idx(np.array([0, 1, 2, 3, 0, 1], dtype=np.uint8)),
        "test set has the label 3 in row 3, expected 0 to 2",
    ),
}


@pytest.mark.parametrize("case", DISAGREE)
def test_files_that_do_not_agree(case: str, tmp_path: Path) -> None:
    name, content, message = DISAGREE[case]
    (write_mnist(tmp_path) / name).write_bytes(content)
    with pytest.raises(DataError, match=f"^dataset = mnist: its .*{message}"):
        load_source(DataSpec("mnist", data_dir=str(tmp_path)))


@pytest.mark.parametrize("fault", [RuntimeError(), OSError(), IncompleteRead(b""), EOFError()])
def test_what_is_missing_is_named_where_it_cannot_be_downloaded(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets as vision

    def offline(self: object) -> None:
        raise fault

    monkeypatch.setattr(vision.MNIST, "download", offline)
    raw = write_mnist(tmp_path)
    (raw / LABELS).unlink()
    (raw / IMAGES).unlink()
    (raw / IMAGES).symlink_to("/nowhere")
    with pytest.raises(DataError) as caught:
        load_source(DataSpec("mnist", data_dir=str(tmp_path)))
    assert str(caught.value) == (
        f"data-dir = {tmp_path}: MNIST is not there and could not be downloaded "
        f"({type(fault).__name__}); put {IMAGES}, {LABELS} into {raw}, or set PFL_DATA_DIR"
    )


def test_a_damaged_cifar10_is_named(tmp_path: Path) -> None:
    """Neither downloaded again nor another tree read in its place, unsaid."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (tmp_path / "cifar10-imagefolder.tar").write_bytes(b"never read")
    for content, fault in ((None, "is missing"), (b"", "has another MD5 than c99cafc152244af7")):
        if content is not None:
            (folder / "data_batch_1").write_bytes(content)
        with pytest.raises(DataError) as caught:
            load_source(DataSpec("cifar10", data_dir=str(tmp_path)))
        said = str(caught.value)
        assert said.startswith(
            f"data-dir = {tmp_path}: CIFAR-10 is not whole: {folder}/data_batch_"
        )
        assert fault in said
        assert said.endswith("; remove cifar-10-batches-py to have it downloaded again")


PATHS: dict[str, tuple[dict[str, str], str]] = {
    "data-dir": (
        {"name": "mnist", "data_dir": "~nosuch/x"},
        "data-dir = ~nosuch/x: expected a path, and there is no such user$",
    ),
    "a tree": ({"name": "imagefolder:~nosuch/x"}, "dataset = ~nosuch/x: expected a path, and "),
    "weights": (
        {"name": "imagefolder-embeddings:tree", "weights": "~nosuch/x"},
        "embedding-weights = ~nosuch/x: expected a path, and there is no such user$",
    ),
    "a zero byte": ({"name": "mnist", "data_dir": "a\0b"}, r"data-dir = a\\x00b: expected a path,"),
    "a zero byte in a tree": ({"name": "imagefolder:a\0b"}, r"a\\x00b: expected a folder or a tar"),
}  # fmt: skip


@pytest.mark.parametrize("case", PATHS)
def test_paths_that_are_none(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PFL_DATA_DIR", str(tmp_path))
    write_tree(tmp_path / "tree")
    keys, message = PATHS[case]
    with pytest.raises((ConfigError, DataError), match=message):
        load_source(DataSpec(**keys))
