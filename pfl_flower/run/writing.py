"""A run writes to a folder alone, over nothing that other settings came to."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pfl_flower.data.table import DATASETS
from pfl_flower.run.config import RunConfig
from pfl_flower.run.keys import Scalar
from pfl_flower.run.places import SUMMARY_FILE, differing
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.folders import data_folder, writable_folder
from pfl_flower.support.locks import only_writer
from pfl_flower.support.world import failures_told

KEY = "output-dir"


@contextmanager
def writing(config: RunConfig, folder: Path | None) -> Iterator[None]:
    """Write alone to the folder of a run, and to that of its clients' memory, in the body.

    Raises
    ------
    ConfigError
        If one cannot be written to, or another run writes there.
    WorldError
        If disk, permissions or memory stop the body: one line, and how to go on.
    """
    with failures_told(going_on(config) if folder else ""), ExitStack() as stack:
        if folder is not None:
            stack.enter_context(own_folder(KEY, folder))
            # At a site it is a folder on the nodes' disks.
            if config.state_dir and config.checkpoint_every and not config.site:
                stack.enter_context(own_folder("state-dir", config.state_folder()))
        yield


@contextmanager
def own_folder(key: str, folder: Path) -> Iterator[None]:
    """Write alone to a folder, made as needed, while the body runs.

    Raises
    ------
    ConfigError
        If it cannot be written to, or somebody else writes there; it is called ``key``.
    """
    with only_writer(key, writable_folder(key, folder)):
        yield


def surroundings(config: RunConfig) -> str:
    """Return a line on whose process this is, and where it reads and writes.

    Under ``flwr run`` that is whoever started the SuperLink, with their environment.
    """
    read = "data-dir" in DATASETS.row(config.dataset).reads
    data = f"data in {data_folder(config.data_dir)}, " if read else ""
    return f"results in {config.folder()}, {data}as {_user()} on {socket.gethostname()}"


def _user() -> str:
    try:
        return f"user {getpass.getuser()}"
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def going_on(config: RunConfig) -> str:
    """Return how a run that the world has stopped can go on."""
    if config.checkpoint_every:
        return "resume = auto goes on from the last checkpoint"
    return "what is written is whole; with checkpoint-every a run can go on where it was stopped"


def check_other_results(folder: Path, values: Mapping[str, Scalar], key: str = KEY) -> None:
    """Refuse a folder that holds what a run of other settings came to.

    Raises
    ------
    ConfigError
        Which setting it is, with its value there and here.
    """
    refuse_other(key, folder, values, asked_of(folder))


def refuse_other(
    key: str, folder: Path, values: Mapping[str, Scalar], there: Mapping[str, Any]
) -> None:
    """Raise ConfigError where settings that a folder has results of are not these."""
    for name, value in differing(values, there).items():
        raise ConfigError(
            f"{key} = {folder}: expected a folder without results of other settings, and "
            f"{name} = {there[name]} there, {value} here; choose another, or let --fresh "
            "(fresh=True) replace them"
        )


def take_folder(key: str, config: RunConfig, *, fresh: bool) -> None:
    """See that a run can have its folder, before anything is worked out for it.

    Raises
    ------
    ConfigError
        If it cannot be written to, somebody else writes there, or, unless ``fresh``, it holds what
        other settings came to.
    """
    folder = config.folder()
    with own_folder(key, folder):
        if fresh:
            forget_results(folder)
        elif not config.resume:
            check_other_results(folder, config.flat(), key)


def begin_folder(folder: Path, config: RunConfig, *, resumed: bool) -> None:
    """Take back what says that a run in this folder is finished: its rounds begin again.

    Raises
    ------
    ConfigError
        If it was a run of other settings, see ``check_other_results``.
    """
    if not resumed:
        check_other_results(folder, config.flat())
    forget_results(folder)


def forget_results(folder: Path) -> None:
    """Remove what says that a run in this folder came to its end."""
    (folder / SUMMARY_FILE).unlink(missing_ok=True)


def asked_of(folder: Path) -> dict[str, Any]:
    """Return what the results in a folder were asked with, nothing where there are none."""
    try:
        found = json.loads((folder / SUMMARY_FILE).read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return dict(found) if isinstance(found, Mapping) else {}
