"""What lies in ``train/CLASS/*`` and ``test/CLASS/*``: images, classes, and all that is neither.

A class without an image is refused, for without it the number of classes would be another.
Everything else that is no image is counted and named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pfl_flower.support.errors import DataError
from pfl_flower.support.left_out import LeftOut

SUFFIXES = (".jpg", ".jpeg", ".png")
PARTS = ("train", "test")
HIDDEN = "hidden files and folders"
ELSEWHERE = "files and folders beside train and test"
UNSORTED = "files beside the classes' folders"
DEEPER = "files in folders inside a class"
OTHERS = "files that are no .jpg, .jpeg or .png"
DEVICES = "entries that are no files"
NO_TEST = "classes without a test image"
LAYOUT = "train/CLASS/*.jpg or *.png of two classes or more, and test/CLASS/*"


class Entry(NamedTuple):
    """An image in its tree."""

    part: str
    label: str
    name: str

    @property
    def path(self) -> str:
        """Where the image is."""
        return "/".join(self)


def misfit(parts: Sequence[str]) -> str | None:
    """Return of which kind the file of a path is that is no image of a class, None if it is one.

    >>> misfit(("train", "cat", "1.PNG")), misfit(("train", "cat", "1.webp"))
    (None, 'files that are no .jpg, .jpeg or .png')
    """
    if any(part.startswith(".") for part in parts):
        return HIDDEN
    if parts[0] not in PARTS:
        return ELSEWHERE
    if len(parts) != 3:
        return UNSORTED if len(parts) < 3 else DEEPER
    return None if parts[-1].lower().endswith(SUFFIXES) else OTHERS


@dataclass
class Listing:
    """The content of a tree.

    Attributes
    ----------
    images : list of Entry
        In the order in which they are read fastest.
    folders : set
        Part and name of each class's folder, whatever is in it.
    others : dict
        Paths of what is no image of a class, by kind.
    """

    images: list[Entry] = field(default_factory=list)
    folders: set[tuple[str, str]] = field(default_factory=set)
    others: dict[str, set[str]] = field(default_factory=dict)

    def enter(self, parts: Sequence[str], kind: str | None) -> None:
        """Enter a file: an image, or what else it is; of what is not looked into, the folder."""
        if kind is None:
            self.images.append(Entry(*parts))
            return
        whole = len(parts)
        if kind == HIDDEN:
            whole = next(i for i, part in enumerate(parts, 1) if part.startswith("."))
        path = "/".join(parts[: 1 if kind == ELSEWHERE else whole])
        self.others.setdefault(kind, set()).add(path)

    def classes(self, path: Path) -> list[str]:
        """Return the names of the classes, in order.

        Raises
        ------
        DataError
            If a class's folder holds no image, or the tree is not of the layout.
        """
        filled = {(image.part, image.label) for image in self.images}
        for part, label in sorted(self.folders - filled):
            raise DataError(self._empty(path, f"{part}/{label}"))
        train, test = ({label for there, label in filled if there == part} for part in PARTS)
        if len(train) < 2 or not test:
            found = [name for kind in (ELSEWHERE, UNSORTED) for name in self.others.get(kind, ())]
            there = f", and there is {min(found)}" if found else ""
            raise DataError(f"{path}: expected {LAYOUT}{there}")
        if test - train:
            raise DataError(f"{path}: test/{min(test - train)} is a class that train lacks")
        return sorted(train)

    def left_out(self) -> list[LeftOut]:
        """Return what the images are read without."""
        found = [LeftOut.of(kind, sorted(names)) for kind, names in sorted(self.others.items())]
        train, test = ({one.label for one in self.images if one.part == part} for part in PARTS)
        if absent := sorted(train - test):
            found.append(LeftOut.of(NO_TEST, absent))
        return found

    def _empty(self, path: Path, folder: str) -> str:
        inside = [
            name
            for names in self.others.values()
            for name in names
            if name.startswith(f"{folder}/")
        ]
        there = f" but {len(inside):,} other files such as {min(inside)}" if inside else ""
        return (
            f"{path}: {folder} holds no .jpg, .jpeg or .png{there}; expected images directly in "
            "it, or no such folder"
        )
