"""Where a file of one's own is, and what tells its content from another's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pfl_flower.data.spec import DataSpec
from pfl_flower.data.table import DATASETS
from pfl_flower.support.errors import DataError
from pfl_flower.support.folders import data_folder, own_path


def place_of(spec: DataSpec) -> Path:
    """Return the absolute path that ``KIND:PATH`` names.

    PATH may be relative to ``data-dir``; without that, to the current folder, or else to
    ``PFL_DATA_DIR``. Where ``data-dir``, or a node's own ``data-path``, is a file, it is that one.

    Raises
    ------
    DataError
        If nothing is there.
    """
    name = spec.name.partition(":")[2]
    where = f"dataset = {spec.name}"
    if not name:
        raise DataError(f"{where}: expected a path after the colon")
    if spec.data_dir and own_path("data-dir", spec.data_dir).is_file():
        return own_path("data-dir", spec.data_dir)
    own = own_path("dataset", name)
    folders = [data_folder(spec.data_dir)]
    if not spec.data_dir:
        folders.insert(0, Path.cwd())
    tried = [own] if Path(name).is_absolute() or name.startswith("~") else []
    tried = tried or [folder / name for folder in folders]
    for path in tried:
        if path.exists():
            return path
    raise DataError(f"{where}: no such file or folder ({', '.join(str(path) for path in tried)})")


def versioned(spec: DataSpec) -> DataSpec:
    """Return the spec with what tells a changed file: it is looked at, not read."""
    if DATASETS.row(spec.name).path != "file":
        return spec
    try:
        place = place_of(spec)
        found = [place, *sorted(place.rglob("*"))] if place.is_dir() else [place]
        seen = [path.stat() for path in found if path.is_file()]
    except (DataError, OSError):
        return spec
    return replace(spec, version=tuple(n for one in seen for n in (one.st_mtime_ns, one.st_size)))


def digest_of(paths: Iterable[Path], spec: DataSpec) -> str:
    """Return what tells these files, read as a run asks, from others.

    Raises
    ------
    DataError
        If one of them cannot be read.
    """
    digest = hashlib.sha256(repr(spec.reading()).encode())
    for path in paths:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()[:16]
