"""Images of one size from ``train/CLASS/*`` and ``test/CLASS/*``, in a folder or in a tar.

They are decoded once and kept in the cache folder as one file of bytes, under a name derived from
the place, the sizes and the times of what was read.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pfl_flower.support.console import say
from pfl_flower.support.errors import DataError
from pfl_flower.support.folders import cache_folder
from pfl_flower.support.tensor_files import load_tensors, save_tensors

SUFFIXES = (".jpg", ".jpeg", ".png")
PARTS = ("train", "test")
BROKEN = (OSError, EOFError, tarfile.TarError, zlib.error)
"""What reading a broken tar or image raises."""


@dataclass(frozen=True)
class ImageSet:
    """Images as bytes, and what identifies them.

    Attributes
    ----------
    train, test : Tensor
        RGB values ``(n, 3, h, w)``, uint8.
    train_labels, test_labels : Tensor
        Class numbers ``(n,)``, int64.
    classes : list of str
        Names, by class number.
    key : str
        Digest of where the images came from: another key, perhaps other images.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: list[str]
    key: str


class _Entry(NamedTuple):
    """An image in its tree."""

    part: str
    label: str
    name: str

    @property
    def path(self) -> str:
        """Where the image is."""
        return "/".join(self)


def read_tree(path: Path) -> ImageSet:
    """Return the images of a folder or tar of ``train/CLASS/*`` and ``test/CLASS/*``.

    Classes are numbered in the order of their names; greyscale becomes RGB.

    Raises
    ------
    DataError
        If there is no such tree, a file is not an image of 8 bits, or the sizes differ.
    """
    with _opened(path) as tree:
        key = _digest(str(path.absolute()), *tree.version())
        cached = cache_folder() / "images" / f"{key}.pt"
        kept = load_tensors(cached)
        if kept is None or set(kept) != {field.name for field in fields(ImageSet)}:
            try:
                entries = tree.entries()
            except BROKEN as error:
                raise DataError(f"{path}: broken off ({error})") from None
            classes = _classes(path, entries)
            say(f"reading {len(entries):,} images of {path}, kept in {cached}")
            save_tensors(cached, vars(_decode(tree, entries, classes, key)))
            kept = torch.load(cached, weights_only=True, mmap=True)
    return ImageSet(**kept)


def _digest(*words: object) -> str:
    return hashlib.sha256("\n".join(map(str, words)).encode()).hexdigest()[:16]


class _Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def version(self) -> Iterator[str]:
        """Yield what changes when an image does: names, sizes, times."""
        for entry in self.entries():
            status = (self.path / entry.path).stat()
            yield f"{entry.path}|{status.st_size}|{status.st_mtime_ns}"

    def entries(self) -> list[_Entry]:
        """Return the images in the order of their names."""
        found = [_Entry(*file.parts[-3:]) for file in self.path.glob("*/*/*")]
        return sorted(entry for entry in found if _is_image(entry))

    def read(self, entry: _Entry) -> bytes:
        return (self.path / entry.path).read_bytes()


class _Tar:
    def __init__(self, path: Path, archive: tarfile.TarFile) -> None:
        self.path, self.archive = path, archive
        self.members: dict[_Entry, tarfile.TarInfo] = {}

    def version(self) -> Iterator[str]:
        """Yield what changes when the tar does; its images are not looked at."""
        status = self.path.stat()
        yield f"{status.st_size}|{status.st_mtime_ns}"

    def entries(self) -> list[_Entry]:
        """Return the images in the tar's order, in which alone a compressed one reads fast."""
        for member in self.archive:
            parts = PurePosixPath(member.name).parts
            if member.isfile() and len(parts) == 3 and _is_image(_Entry(*parts)):
                self.members[_Entry(*parts)] = member
        return list(self.members)

    def read(self, entry: _Entry) -> bytes:
        file = self.archive.extractfile(self.members[entry])
        assert file is not None, "only regular files are members"
        return file.read()


@contextmanager
def _opened(path: Path) -> Iterator[_Folder | _Tar]:
    if path.is_dir():
        yield _Folder(path)
        return
    try:
        archive = tarfile.open(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such folder or tar of images") from None
    except BROKEN as error:
        raise DataError(f"{path}: expected a folder or a tar ({error})") from None
    with archive:
        yield _Tar(path, archive)


def _is_image(entry: _Entry) -> bool:
    hidden = entry.label.startswith(".") or entry.name.startswith(".")
    return entry.part in PARTS and entry.name.lower().endswith(SUFFIXES) and not hidden


def _classes(path: Path, entries: list[_Entry]) -> list[str]:
    train, test = ({entry.label for entry in entries if entry.part == part} for part in PARTS)
    if len(train) < 2 or not test:
        raise DataError(
            f"{path}: expected train/CLASS/*.jpg or *.png of two classes or more, and test/CLASS/*"
        )
    if test - train:
        raise DataError(f"{path}: test/{min(test - train)} is a class that train lacks")
    return sorted(train)


def _decode(tree: _Folder | _Tar, entries: list[_Entry], classes: list[str], key: str) -> ImageSet:
    """Read every image into its place: the order is of the names, whatever the tar's."""
    ordered = sorted(entries, key=lambda entry: (PARTS.index(entry.part), *entry))
    place = {entry: row for row, entry in enumerate(ordered)}
    first = _pixels(tree, entries[0])
    values = torch.empty((len(entries), *first.shape), dtype=torch.uint8)
    for entry in entries:
        pixels = _pixels(tree, entry)
        if pixels.shape != first.shape:
            raise DataError(
                f"{entry.path}: {_size(pixels)}, and {entries[0].path} is {_size(first)}: "
                "expected images of one size"
            )
        values[place[entry]] = pixels
    labels = torch.tensor([classes.index(entry.label) for entry in ordered])
    count = sum(entry.part == PARTS[0] for entry in entries)
    return ImageSet(
        train=values[:count],
        train_labels=labels[:count],
        test=values[count:],
        test_labels=labels[count:],
        classes=classes,
        key=key,
    )


def _pixels(tree: _Folder | _Tar, entry: _Entry) -> Tensor:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(tree.read(entry))) as image:
            mode, pixels = image.mode, np.array(image.convert("RGB"))
    except (*BROKEN, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{entry.path}: not an image that can be read ({error})") from None
    if mode.startswith(("I", "F")):
        raise DataError(f"{entry.path}: expected 8 bits a channel, and its mode is {mode}")
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _size(image: Tensor) -> str:
    return f"{image.shape[2]} x {image.shape[1]}"
