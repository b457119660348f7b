"""The cells of a sweep: every combination of the swept values, for every seed."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.keys import Scalar, kebab
from pfl_flower.run.places import digest, readable
from pfl_flower.run.presets import as_folder, as_keys
from pfl_flower.run.tables import TABLES
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.plugins import find, is_plugin
from pfl_flower.support.versions import commit, versions

RESERVED = {"seed": "seeds", "output-dir": "output", "name": "output", "resume": "output"}
"""Keys that every cell has for itself, and what is said for all cells instead."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run stands in a sweep.

    Attributes
    ----------
    point : mapping
        The swept keys, and the value of each as it is shown.
    seed : int
        Its seed.
    folder : Path or None
        Where its results are kept.
    """

    point: Mapping[str, Scalar]
    seed: int
    folder: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Cell(Place):
    """A run that a sweep asks for.

    Attributes
    ----------
    values : mapping
        What is asked for, as it was given, Python's objects included.
    config : RunConfig
        What that comes to in this process.
    """

    values: Mapping[str, Any]
    config: RunConfig

    def asked(self) -> dict[str, Any]:
        """Return all that the result depends on, as JSON: settings, and the code that is run."""
        shown = {key: value for key, value in self.config.flat().items() if key not in RESERVED}
        plugins = {
            table.point: sourcedigest(table.point, getattr(self.config, table.point))
            for table in TABLES
            if is_plugin(getattr(self.config, table.point))
        }
        return {
            "settings": {**shown, **self.point, "seed": self.seed},
            "plug-ins": plugins,
            "version": versions()["pfl-flower"],
            "commit": commit(),
        }


def cells(
    base: Mapping[str, Any],
    over: Mapping[str, Iterable[Any]],
    seeds: Iterable[int],
    folder: Path | None = None,
) -> list[Cell]:
    """Return the cells of a sweep; the seeds of a point come one after another.

    Parameters
    ----------
    base, over : mapping
        The settings of all cells, and for each swept key its values. Keys as Python spells them
        or as the run configuration does.
    seeds : iterable of int
        One run each.
    folder : Path, optional
        Of the sweep's results.

    Raises
    ------
    ConfigError
        At the first cell whose settings are refused, or if a key, a value or a seed stands there
        twice, or a key is each cell's own.
    """
    swept = {kebab(key): _values(kebab(key), values) for key, values in over.items()}
    fixed = {kebab(key): value for key, value in base.items() if kebab(key) not in swept}
    for key in [*fixed, *swept]:
        if key in RESERVED:
            raise ConfigError(f"{key}: expected {RESERVED[key]} instead, which is for all cells")
    chosen = _different("seeds", list(seeds))
    found = []
    for combination in itertools.product(*(labelled.items() for labelled in swept.values())):
        point = {key: label for key, (label, _) in zip(swept, combination, strict=True)}
        values = {key: value for key, (_, value) in zip(swept, combination, strict=True)}
        for seed in chosen:
            place = None if folder is None else folder / readable(point) / f"seed-{seed}"
            found.append(_cell(Place(point=point, seed=seed, folder=place), {**fixed, **values}))
    return found


def _cell(place: Place, settings: Mapping[str, Any]) -> Cell:
    own = {} if place.folder is None else as_folder(place.folder)
    values = {**settings, "seed": place.seed, **own}
    config = parse_config(as_keys(values))
    if config.checkpoint_every:
        every = config.checkpoint_every
        raise ConfigError(f"checkpoint-every = {every}: expected 0, as cells are kept whole")
    return Cell(
        values=values, config=config, point=place.point, seed=place.seed, folder=place.folder
    )


def _values(key: str, values: Any) -> dict[Any, Any]:
    """Return the values of a swept key by what is shown of each."""
    single = isinstance(values, str | Mapping) or not isinstance(values, Iterable)
    listed = [values] if single else list(values)
    labels: list[Any] = []
    for value in listed:
        label = next(iter(as_keys({key: value}).values()))
        if callable(value):
            name = str(getattr(value, "__name__", type(value).__name__))
            same = sum(1 for known in labels if re.sub(r"-\d+$", "", str(known)) == name)
            label = f"{name}-{same + 1}" if same else name
        labels.append(str(label) if isinstance(label, Mapping) else label)
    return dict(zip(_different(key, labels), listed, strict=True))


def _different(key: str, values: list[Any]) -> list[Any]:
    if not values:
        raise ConfigError(f"{key}: expected at least one value")
    if len(set(values)) < len(values):
        raise ConfigError(f"{key} = {', '.join(map(str, values))}: expected different values")
    return values


def sourcedigest(key: str, name: str) -> str:
    """Return a digest of a plug-in's code, so that what other code made is not kept."""
    found = find(key, name, name)
    try:
        return digest(inspect.getsource(found))
    except (OSError, TypeError):
        import cloudpickle

        return hashlib.sha256(cloudpickle.dumps(found)).hexdigest()[:6]
