"""Tiny trees of images, shared by the tests of folders, embeddings and their training."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pfl_flower.support.seeding import generator

CLASSES = ("cat", "dog")
Spoil = Callable[[Path], object]
"""Changes a tree."""


def picture(seed: int, *, size: int = 32, shift: float = 0.0) -> Tensor:
    """Return random bytes ``(3, size, size)``, darker or brighter on average by ``shift``."""
    draw = generator(seed, "picture")
    values = torch.rand((3, size, size), generator=draw) * 0.5 + 0.25 + shift
    return (values.clamp(0, 1) * 255).to(torch.uint8)


def write(path: Path, pixels: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def write_tree(folder: Path, *, train: int = 3, test: int = 2, size: int = 32) -> Path:
    """Write ``train/CLASS/N.png`` and ``test/CLASS/N.png``; cats are dark and dogs bright."""
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(CLASSES):
            for number in range(count):
                seed = 1000 * label + number + (500 if part == "test" else 0)
                pixels = picture(seed, size=size, shift=0.25 * (2 * label - 1))
                write(folder / part / name / f"{number:04}.png", pixels)
    return folder


def write_tar(path: Path, folder: Path, *, mode: str = "w", prefix: str = "") -> Path:
    """Write a folder's files into a tar, last file first."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for file in sorted(folder.rglob("*.png"), reverse=True):
            archive.add(file, prefix + file.relative_to(folder).as_posix())
    return path


def pack(folder: Path, path: Path) -> Path:
    """Pack a folder as it is: folders and links too."""
    with tarfile.open(path, "w") as archive:
        archive.add(folder, ".")
    return path


def put(*names: str) -> Spoil:
    """Return what writes a picture, or a text where the ending says so."""

    def spoil(tree: Path) -> None:
        for name in names:
            path = tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix.lower() in (".txt", ".db", ""):
                path.write_text("words")
            else:
                kind = "PNG" if path.suffix.lower() == ".png" else None
                Image.fromarray(picture(1).permute(1, 2, 0).numpy()).save(path, kind)

    return spoil


def rename(old: str, new: str) -> Spoil:
    def spoil(tree: Path) -> None:
        for path in tree.glob(old):
            target = tree / new.format(path=path, name=path.name, stem=path.stem)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)

    return spoil


def folder(name: str) -> Spoil:
    return lambda tree: (tree / name).mkdir(parents=True)


def link(name: str, target: str) -> Spoil:
    def spoil(tree: Path) -> None:
        (tree / name).unlink(missing_ok=True)
        (tree / name).symlink_to(target)

    return spoil


def chain(*spoils: Spoil) -> Spoil:
    return lambda tree: [spoil(tree) for spoil in spoils]
