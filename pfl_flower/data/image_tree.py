"""A tree of images ``train/CLASS/*`` and ``test/CLASS/*``: a folder, or a tar."""

from __future__ import annotations

import os
import stat
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pfl_flower.data.image_listing import (
    DEVICES,
    ELSEWHERE,
    HIDDEN,
    PARTS,
    UNSORTED,
    Entry,
    Listing,
    misfit,
)
from pfl_flower.support.errors import DataError

try:
    from lzma import LZMAError
except ImportError:  # a Python that was built without it opens no such tar
    LZMAError = zlib.error  # type: ignore[assignment, misc]

BROKEN = (OSError, EOFError, tarfile.TarError, zlib.error, LZMAError)
"""What reading a broken tar or image raises."""


class Folder:
    """A tree that is a folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.listing = path, Listing()
        try:
            self._list(path, ())
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from None
        self.listing.images.sort()

    def version(self) -> Iterator[str]:
        """Yield what changes when an image does: names, sizes, times."""
        for image in self.listing.images:
            status = (self.path / image.path).stat()
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{self.path / image.path}: expected an image, and it is no file")
            yield f"{image.path}|{status.st_size}|{status.st_mtime_ns}"

    def surroundings(self) -> list[str]:
        """Return what changes when anything but an image does."""
        folders = ["/".join(folder) for folder in sorted(self.listing.folders)]
        others = [sorted(names) for _, names in sorted(self.listing.others.items())]
        return [*folders, *(name for names in others for name in names)]

    def read(self, entry: Entry) -> bytes:
        """Return an image's bytes."""
        return (self.path / entry.path).read_bytes()

    def _list(self, folder: Path, above: tuple[str, ...]) -> None:
        with os.scandir(folder) as found:
            for entry in found:
                parts = (*above, entry.name)
                kind = misfit(parts)
                # A class and what is in it may be links; what is deeper could lead in a circle.
                inside = entry.is_dir(follow_symlinks=len(parts) <= 2)
                if inside and kind not in (HIDDEN, ELSEWHERE):
                    if len(parts) == 2:
                        self.listing.folders.add((parts[0], parts[1]))
                    self._list(Path(entry.path), parts)
                    continue
                if kind in (None, UNSORTED):
                    _refuse_dead(entry, parts)
                self.listing.enter(parts, kind)


def _refuse_dead(entry: os.DirEntry[str], parts: Sequence[str]) -> None:
    """Refuse a link to nowhere where a part, a class or an image is expected."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        right = ("a folder", "a class's folder", "an image")[len(parts) - 1]
        raise DataError(
            f"{entry.path}: a link to {os.readlink(entry.path)}, which is not there; expected "
            f"{right}"
        )


class Tar:
    """A tree that is a tar; it is listed when it is asked for, because that may take long."""

    def __init__(self, path: Path, archive: tarfile.TarFile) -> None:
        self.path, self.archive = path, archive
        self._members: dict[Entry, tarfile.TarInfo] = {}
        self._listing: Listing | None = None

    def version(self) -> Iterator[str]:
        """Yield what changes when the tar does; its images are not looked at."""
        status = self.path.stat()
        yield f"{status.st_size}|{status.st_mtime_ns}"

    def surroundings(self) -> list[str]:
        """Return nothing that ``version`` does not know."""
        return []

    @property
    def listing(self) -> Listing:
        """The content, images in the tar's order, in which alone a compressed one reads fast."""
        if self._listing is None:
            try:
                self._listing = self._list()
            except BROKEN as error:
                raise DataError(f"{self.path}: broken off ({error})") from None
        return self._listing

    def read(self, entry: Entry) -> bytes:
        """Return an image's bytes."""
        try:
            file = self.archive.extractfile(self._members[entry])
        except (KeyError, RecursionError):
            file = None
        if file is None:
            raise DataError(f"{self.path}: {entry.path} is a link to what is no file of the tar")
        return file.read()

    def _list(self) -> Listing:
        found = Listing()
        for member in self.archive:
            parts = PurePosixPath(member.name).parts
            kind = misfit(parts) if parts else None
            if len(parts) >= 2 and parts[0] in PARTS and misfit(parts[:2]) != HIDDEN:
                if len(parts) > 2 or member.isdir():
                    found.folders.add((parts[0], parts[1]))
            if member.isdir():
                continue
            if kind is None and not (member.isfile() or member.islnk() or member.issym()):
                kind = DEVICES
            if kind is None:
                # Of what a tar holds twice the last counts.
                self._members[Entry(*parts)] = member
            else:
                found.enter(parts, kind)
        self._refuse_more()
        found.images = list(self._members)
        return found

    def _refuse_more(self) -> None:
        """Refuse a tar that goes on after what was listed; it ends with two blocks of zeros.

        tarfile takes a damaged header for the end, and leaves out what follows.
        """
        file = self.archive.fileobj
        assert file is not None
        file.seek(self.archive.offset)
        rest = file.read(2 * tarfile.BLOCKSIZE)
        if len(rest) < tarfile.BLOCKSIZE or any(rest):
            raise tarfile.ReadError(f"at byte {self.archive.offset:,} neither a file nor the end")
        while rest := file.read(1 << 20):
            if any(rest):
                raise tarfile.ReadError("it goes on after its end: two tars in one file?")


@contextmanager
def opened(path: Path) -> Iterator[Folder | Tar]:
    """Open a tree.

    Raises
    ------
    DataError
        If there is none, or it cannot be read.
    """
    if os.path.isdir(path):
        yield Folder(path)
        return
    try:
        archive = tarfile.open(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such folder or tar of images") from None
    except (*BROKEN, ValueError) as error:
        raise DataError(f"{path}: expected a folder or a tar ({error})") from None
    with archive:
        yield Tar(path, archive)
