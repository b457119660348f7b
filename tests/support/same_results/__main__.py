"""Record what a checkout computes, and compare two records number by number.

Run in the folder of a checkout; nothing is used of it but its command line:

    python -m tests.support.same_results record FOLDER [--only GLOB] [--skip GLOB]
    python -m tests.support.same_results compare BEFORE AFTER [--only GLOB] [--skip GLOB]

A record keeps its items in ``FOLDER/items``, and an item that is there is not run again: take a new
folder for other code, and compare records of one machine. All runs have one thread, data come from
``PFL_DATA_DIR``, and the cache is the record's own.
Exit codes: 0 the same (or all recorded), 1 different, missing or not recorded, 2 bad input.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from tests.support.same_results.runs import BadInputError, Commands, all_items, study_names

Arrays = dict[str, NDArray[np.float64]]

TOLERANCE = 1e-9
MEASURED = re.compile(r".*(seconds|memory).*|asked|commit")
"""Keys of what another run of the same code may find otherwise, or of what was asked."""


def numbers(tree: Any, path: str) -> Arrays:
    """Return the numbers of a JSON tree by their paths, lists of them as arrays; text is left out.

    >>> numbers({"a": [1, 2], "b": {"seconds": 3, "c": "text"}}, "top")
    {'top/a': array([1., 2.])}
    """
    if isinstance(tree, str):
        return {}
    if isinstance(tree, Mapping):
        parts = {key: part for key, part in tree.items() if not MEASURED.fullmatch(key)}
    else:
        try:
            return {path: np.asarray(tree, dtype=np.float64)}
        except (TypeError, ValueError):  # a ragged list, or one of other things than numbers
            parts = dict(enumerate(tree))
    found = [numbers(part, f"{path}/{key}") for key, part in parts.items()]
    return {key: array for part in found for key, array in part.items()}


def read_study(folder: Path) -> Arrays:
    """Return metrics and checks of a study, and all numbers that its seeds left."""
    summary = json.loads((folder / "summary.json").read_text())
    checks = {check["name"]: check for check in summary["checks"]}
    found = numbers(summary["metrics"], "metrics") | numbers(checks, "checks")
    for path in sorted(folder.glob("seed-*/result.json")):
        found |= numbers(json.loads(path.read_text()), path.parent.name)
    return found


def read_run(folder: Path) -> Arrays:
    """Return the trajectory of the last run within ``folder``, its rounds and its metrics."""
    trajectory = max(folder.rglob("trajectory.npy"))
    with trajectory.with_name("rounds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    summary = json.loads(trajectory.with_name("summary.json").read_text())
    found = {"trajectory": np.load(trajectory)} | numbers(summary["metrics"], "metrics")
    for name in rows[0]:
        column = np.array([_number(row[name]) for row in rows])
        if not MEASURED.fullmatch(name) and not np.isnan(column).all():
            found[f"rounds/{name}"] = column
    return found


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def record(folder: Path, only: str, skip: str, limit: float) -> bool:
    """Run what is chosen and not there yet; return whether all of it is there in the end."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",  # sums in another order end in other bits
        "PFL_CACHE_DIR": str(folder / "cache"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "COLUMNS": "200",
    }
    command = [sys.executable, "-m", "experiments", "list"]
    listed = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=environment, check=False
    )
    items, complete = all_items(study_names(listed.stdout)), True
    names = chosen(items, only, skip)
    (folder / "items").mkdir(parents=True, exist_ok=True)
    for name in names:
        if (folder / "items" / f"{name}.npz").exists():
            print(f"{name:45}  kept from before", flush=True)
            continue
        began = time.perf_counter()
        problem = _record(name, items[name], folder, environment, limit)
        complete = complete and not problem
        print(f"{name:45}{time.perf_counter() - began:8.1f} s  {problem}", flush=True)
    return complete


def _record(
    name: str, commands: Commands, folder: Path, environment: Mapping[str, str], limit: float
) -> str:
    """Run one item and write its numbers; return why that was not possible, or nothing."""
    study = name.startswith("study-")  # studies share a folder, as some of them share runs
    output = folder / "work" / ("studies" if study else name)
    results = output / name.removeprefix("study-") if study else output
    shutil.rmtree(results, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    codes, began = [], time.perf_counter()
    with (output / f"{name}.log").open("w") as log:
        for words in commands:
            # An earlier command's folder has the name that its settings give it.
            limits = sorted(output.rglob("limit.npz"))
            last = str(limits[-1].parent) if limits else ""
            line = [word.replace("{limit}", last) for word in words]
            command = [sys.executable, "-m", "experiments", *line, "--output", str(output)]
            try:
                ended = subprocess.run(
                    command, stdout=log, stderr=log, env=environment, timeout=limit, check=False
                )
            except subprocess.TimeoutExpired:
                return f"left out: more than {limit:g} s"
            codes.append(ended.returncode)
    if 2 in codes:
        return f"refused, exit codes {codes}, see {log.name}"
    try:
        found = read_study(results) if study else read_run(results)
    except (OSError, ValueError, KeyError, IndexError) as error:
        return f"no results ({type(error).__name__}), exit codes {codes}, see {log.name}"
    found["exit codes"] = np.array(codes, dtype=np.float64)
    about = {"commands": commands, "seconds": round(time.perf_counter() - began, 1)}
    path = folder / "items" / f"{name}.npz"
    path.with_suffix(".json").write_text(json.dumps(about, indent=1))
    with path.with_suffix(".part").open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **found)
    path.with_suffix(".part").replace(path)
    return ""


def chosen(names: Iterable[str], only: str, skip: str) -> list[str]:
    """Return the names that match."""
    found = [name for name in names if fnmatch(name, only) and not fnmatch(name, skip)]
    if not found:
        raise BadInputError(f"--only {only} --skip {skip}: no such item")
    return found


def difference(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Return the largest absolute difference; infinite if shapes or what is finite differ.

    >>> difference(np.array([1.0, np.nan]), np.array([1.5, np.nan]))
    0.5
    """
    if before.shape != after.shape:
        return float("inf")
    if np.array_equal(before, after, equal_nan=True):
        return 0.0
    finite = np.isfinite(before)
    if not np.array_equal(before[~finite], after[~finite], equal_nan=True):
        return float("inf")
    apart = np.abs(before[finite].astype(np.float64) - after[finite])
    return float("inf") if np.isnan(apart).any() else float(apart.max())


def judge(before: Path, after: Path) -> tuple[str, str]:
    """Return the verdict on one item, and what there is to say about it."""
    if not after.exists():
        return "missing", ""
    with np.load(before) as old, np.load(after) as new:
        missing = sorted(set(old) - set(new))
        apart = {key: difference(old[key], new[key]) for key in old if key in new}
        added = len(set(new) - set(old))
    if missing:
        return "missing", f"{len(missing)} arrays, {missing[0]} among them"
    worst = max(apart, key=lambda key: apart[key])
    note = f"{len(apart)} arrays" + (f", and {added} more in AFTER" if added else "")
    if apart[worst] == 0:
        return "identical", note
    verdict = "different" if apart[worst] > TOLERANCE else "close"
    return verdict, f"by {apart[worst]:.3g} in {worst}; {note}"


def compare(before: Path, after: Path, only: str, skip: str) -> bool:
    """Print one line per item and a total; return whether all are the same."""
    for folder in (before, after):
        if not any((folder / "items").glob("*.npz")):
            raise BadInputError(f"{folder}: expected a record, with items/*.npz")
    names = sorted(path.stem for path in (before / "items").glob("*.npz"))
    counts = dict.fromkeys(("identical", "close", "different", "missing"), 0)
    for name in chosen(names, only, skip):
        paths = [folder / "items" / f"{name}.npz" for folder in (before, after)]
        verdict, line = judge(*paths)
        counts[verdict] += 1
        print(f"{name:45}{verdict:11}{line}")
    total = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    print(f"{sum(counts.values())} items: {total} (tolerance {TOLERANCE:g})")
    return not (counts["different"] or counts["missing"])


def main() -> int:
    """Run the command line and return its exit code."""
    top = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    verbs = top.add_subparsers(dest="verb", required=True)
    for name, folders in (("record", ["folder"]), ("compare", ["before", "after"])):
        verb = verbs.add_parser(name)
        for folder in folders:
            verb.add_argument(folder, type=Path)
        verb.add_argument("--only", default="*", metavar="GLOB", help="items with these names")
        verb.add_argument("--skip", default="", metavar="GLOB", help="but not these")
        if name == "record":
            verb.add_argument("--limit", type=float, default=1200.0, help="seconds of one command")
    asked = top.parse_args()
    try:
        if asked.verb == "record":
            good = record(asked.folder.absolute(), asked.only, asked.skip, asked.limit)
        else:
            good = compare(asked.before, asked.after, asked.only, asked.skip)
    except (BadInputError, BadZipFile, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
