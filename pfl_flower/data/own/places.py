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
    tried = candidates("dataset", name, spec)
    for path in tried:
        if path.exists():
            return path
    raise DataError(f"{where}: no such file or folder ({', '.join(str(path) for path in tried)})")


def candidates(key: str, name: str, spec: DataSpec) -> list[Path]:
    """Return the absolute paths that a name may stand for, in the order in which they are tried.

    It may be relative to ``data-dir``, or to the folder of the file that this is; without that, to
    the current folder, or else to ``PFL_DATA_DIR``.
    """
    own = own_path(key, name)
    if Path(name).is_absolute() or name.startswith("~"):
        return [own]
    folder = data_folder(spec.data_dir)
    if spec.data_dir:
        return [(folder.parent if folder.is_file() else folder) / name]
    return [Path.cwd() / name, folder / name]


def of_test(spec: DataSpec) -> DataSpec:
    """Return the spec of the common test set's file, all of whose points are test points."""
    name = f"{spec.name.partition(':')[0]}:{spec.test_data}"
    folder = spec.data_dir and own_path("data-dir", spec.data_dir)
    if folder and folder.is_file():
        spec = replace(spec, data_dir=str(folder.parent))
    return replace(spec, name=name, test_data="", holdout=0.0, away=False)


def scales_file(spec: DataSpec) -> Path | None:
    """Return the file of means and scales that ``standardise`` names; None where it names none.

    It is where it is found first, or else where it was looked for first.
    """
    if spec.standardise in ("off", "training"):
        return None
    tried = candidates("standardise", spec.standardise, spec)
    return next((path for path in tried if path.is_file()), tried[0])


def versioned(spec: DataSpec) -> DataSpec:
    """Return the spec with what tells a changed file: it is looked at, not read."""
    filed = DATASETS.row(spec.name).path == "file"
    specs = [spec] if filed and not spec.away else []
    if filed and spec.test_data:
        specs.append(of_test(spec))
    try:
        places = [place_of(one) for one in specs]
        if scales := scales_file(spec):
            places.append(scales)
        seen = [path.stat() for place in places for path in _files(place)]
    except (DataError, OSError):
        return spec
    return replace(spec, version=tuple(n for one in seen for n in (one.st_mtime_ns, one.st_size)))


def _files(place: Path) -> list[Path]:
    found = [place, *sorted(place.rglob("*"))] if place.is_dir() else [place]
    return [path for path in found if path.is_file()]


def digest_of(paths: Iterable[Path], spec: DataSpec) -> str:
    """Return what tells these files, read as a run asks, from others.

    Raises
    ------
    DataError
        If one of them cannot be read.
    """
    digest = hashlib.sha256(repr(spec.reading()).encode())
    scales = scales_file(spec)
    for path in [*paths, *([scales] if scales and scales.is_file() else [])]:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()[:16]
