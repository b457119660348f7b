"""Images of one size from ``train/CLASS/*`` and ``test/CLASS/*``, in a folder or in a tar.

They are decoded once and kept in the cache folder as one file of bytes, under a name derived from
the place, the sizes and the times of what was read.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pfl_flower.data.image_listing import PARTS, Entry
from pfl_flower.data.image_tree import BROKEN, Folder, Tar, opened
from pfl_flower.support.console import say
from pfl_flower.support.errors import DataError
from pfl_flower.support.folders import cache_folder
from pfl_flower.support.left_out import LeftOut
from pfl_flower.support.tensor_files import load_tensors, save_tensors

if TYPE_CHECKING:
    import PIL.Image

OPAQUE = 255
TRANSPARENT = "images' transparent parts, which became opaque"


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
    left_out : tuple of LeftOut
        What lay beside them and was not read.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: list[str]
    key: str
    left_out: tuple[LeftOut, ...] = ()


def read_tree(path: Path) -> ImageSet:
    """Return the images of a folder or tar of ``train/CLASS/*`` and ``test/CLASS/*``.

    Classes are numbered in the order of their names; greyscale becomes RGB.

    Raises
    ------
    DataError
        If there is no such tree, a class has no image, a file is not an image of 8 bits, or the
        sizes differ.
    """
    with opened(path) as tree:
        try:
            key = _digest(str(path.absolute()), *tree.version())
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from None
        cached = cache_folder() / "images" / f"{_digest(key, *tree.surroundings())}.pt"
        kept = load_tensors(cached)
        if kept is None or set(kept) != {field.name for field in fields(ImageSet)}:
            classes = tree.listing.classes(path)
            say(f"reading {len(tree.listing.images):,} images of {path}, kept in {cached}")
            images = _decode(tree, classes, key)
            lists = {"left_out": [asdict(one) for one in images.left_out]}
            save_tensors(cached, {**vars(images), **lists})
            kept = torch.load(cached, weights_only=True, mmap=True)
    return _restored(kept)


def _restored(kept: dict[str, Any]) -> ImageSet:
    left_out = tuple(LeftOut(**one) for one in kept["left_out"])
    return ImageSet(**{**kept, "left_out": left_out})


def _digest(*words: object) -> str:
    # A file's name need not be text; such bytes come as lone surrogates.
    text = "\n".join(map(str, words)).encode(errors="surrogateescape")
    return hashlib.sha256(text).hexdigest()[:16]


def _decode(tree: Folder | Tar, classes: list[str], key: str) -> ImageSet:
    """Read every image into its place: the order is of the names, whatever the tar's."""
    entries = tree.listing.images
    ordered = sorted(entries, key=lambda entry: (PARTS.index(entry.part), *entry))
    place = {entry: row for row, entry in enumerate(ordered)}
    first, _ = _pixels(tree, entries[0])
    values = _empty(len(entries), first)
    transparent = []
    for entry in entries:
        pixels, opaque = _pixels(tree, entry)
        if pixels.shape != first.shape:
            raise DataError(
                f"{entry.path}: {_size(pixels)}, and {entries[0].path} is {_size(first)}: "
                "expected images of one size"
            )
        values[place[entry]] = pixels
        if not opaque:
            transparent.append(entry.path)
    labels = torch.tensor([classes.index(entry.label) for entry in ordered])
    count = sum(entry.part == PARTS[0] for entry in entries)
    left_out = tree.listing.left_out()
    if transparent:
        left_out.append(LeftOut.of(TRANSPARENT, sorted(transparent)))
    return ImageSet(
        train=values[:count],
        train_labels=labels[:count],
        test=values[count:],
        test_labels=labels[count:],
        classes=classes,
        key=key,
        left_out=tuple(left_out),
    )


def _empty(count: int, first: Tensor) -> Tensor:
    """Return room for so many images like the first."""
    try:
        return torch.empty((count, *first.shape), dtype=torch.uint8)
    except RuntimeError:
        size = count * first.numel() / 1e9
        raise DataError(
            f"{count:,} images of {_size(first)} take {size:,.0f} GB of memory, more than there "
            "is; expected fewer or smaller ones"
        ) from None


def _pixels(tree: Folder | Tar, entry: Entry) -> tuple[Tensor, bool]:
    """Return an image's RGB values ``(3, h, w)``, and whether it is opaque."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(tree.read(entry))) as image:
            mode, pixels = image.mode, np.array(image.convert("RGB"))
            opaque = _opaque(image)
    except DataError:
        raise
    except (*BROKEN, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{entry.path}: not an image that can be read ({error})") from None
    if mode.startswith(("I", "F")):
        raise DataError(f"{entry.path}: expected 8 bits a channel, and its mode is {mode}")
    return torch.from_numpy(pixels).permute(2, 0, 1), opaque


def _opaque(image: PIL.Image.Image) -> bool:
    if not image.mode.lower().endswith("a") and "transparency" not in image.info:
        return True
    return bool(np.all(np.array(image.convert("RGBA"))[..., 3] == OPAQUE))


def _size(image: Tensor) -> str:
    return f"{image.shape[2]} x {image.shape[1]}"
