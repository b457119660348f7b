"""A finished run as numbers and arrays, from this process or from its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from pfl_flower.run.checks import Check
from pfl_flower.run.columns import Table
from pfl_flower.run.config import parse_config
from pfl_flower.run.keys import Scalar
from pfl_flower.run.outcome import TRAJECTORY_FILE, Course, Outcome, title
from pfl_flower.run.places import SUMMARY_FILE
from pfl_flower.run.results import LIMIT_FILE, read_limit, write_json
from pfl_flower.run.rounds import ROUNDS_FILE, numbers
from pfl_flower.run.served import USERS_FILE
from pfl_flower.run.verdict import verdict
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.files import replace_file
from pfl_flower.support.folders import writable_folder
from pfl_flower.support.foreign_text import one_line
from pfl_flower.support.left_out import LeftOut

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
LONGEST = 2000
"""Characters of a result's own line."""
SHOWN = ("accuracy_true", "accuracy_target", "distance_to_target", "rejections_total")
"""The metrics that a result's own line shows."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Result:
    """What one run came to.

    Attributes
    ----------
    rho : ndarray
        The global model after the last round, ``(d,)``.
    gradient : ndarray
        Sum of the strategic users' last accepted reports, ``(d,)``.
    reported : mapping
        For each strategic user of whom a report was accepted, the round of the last.
    trajectory : ndarray or None
        rho of every round, ``(T + 1, d)``, with ``save_trajectory=True``.
    summary : mapping
        The content of ``summary.json``: settings, metrics, checks, versions, commit, hardware.
    text : str
        The content of ``rounds.csv``.
    users_text : str
        The content of ``users.csv``, where users have test sets of their own.
    log : str
        What was logged on the way: warnings, and why nodes failed.
    folder : Path or None
        Where it was read from or written to.
    """

    rho: Array
    gradient: Array
    reported: Mapping[int, int]
    trajectory: Array | None = None
    summary: Mapping[str, Any]
    text: str
    users_text: str = ""
    log: str = ""
    folder: Path | None = None

    @classmethod
    def of(cls, outcome: Outcome, *, log: str = "", folder: Path | None = None) -> Result:
        """Return what a run in this process came to."""
        course = outcome.course
        path = course.trajectory
        return cls(
            rho=course.rho.double().cpu().numpy(),
            gradient=course.gradient.double().cpu().numpy(),
            reported=course.reported,
            trajectory=None if path is None else path.double().cpu().numpy(),
            summary=outcome.summary(),
            text=course.text,
            users_text=course.users,
            log=log,
            folder=folder,
        )

    @property
    def config(self) -> dict[str, Scalar]:
        """Every key of the run and its value."""
        return dict(self.summary["config"])

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self.config["seed"])

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The metrics after the last round, and those of the equilibrium if it was asked for."""
        found = self.summary["metrics"]
        return {name: float(metric["values"][0]) for name, metric in found.items()}

    @cached_property
    def rounds(self) -> Table:
        """What was measured of every round, by columns; row 0 is before the first round."""
        return Table.from_csv(self.text)

    @cached_property
    def users(self) -> Table:
        """How well each user is served on its own test set, by columns; empty without such sets.

        ``theta`` is the user's model, ``rho`` the global one, ``alone`` what the user would have
        learned by itself; ``measure`` says what of them.
        """
        return Table.from_csv(self.users_text)

    @property
    def checks(self) -> list[Check]:
        """What had to hold of the run, and whether it did."""
        return [Check(**check) for check in self.summary["checks"]]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return bool(self.summary["passed"])

    @property
    def claims(self) -> str:
        """Whose claims are among the checks; none are if a preset was changed."""
        return str(self.summary.get("claims", ""))

    @property
    def verdict(self) -> str:
        """Whether every check passed, which did not, and whether anything was claimed."""
        return verdict(self.checks, self.claims)

    @property
    def left_out(self) -> list[LeftOut]:
        """What was there and did not count: of the data, and of what nodes sent."""
        return [LeftOut(**one) for one in self.summary.get("left_out", ())]

    @property
    def title(self) -> str:
        """One line: what attacked what."""
        try:
            return title(parse_config(self.config))
        except ConfigError:  # a plug-in of another process, or the keys of another version
            return str(self.config.get("name", ""))

    def plot(self) -> Figure:
        """Return a figure of accuracy and distances by round."""
        from pfl_flower.run.figures import draw_run

        return draw_run([numbers(self.text)], self.title)

    def save(self, folder: str | Path) -> Path:
        """Write the run as ``load`` reads it, and return the folder."""
        place = writable_folder("folder", folder)
        replace_file(place / ROUNDS_FILE, self.text)
        rho, gradient = torch.from_numpy(self.rho), torch.from_numpy(self.gradient)
        passed_by = None if self.trajectory is None else torch.from_numpy(self.trajectory)
        Course(
            text=self.text,
            rho=rho,
            gradient=gradient,
            reported=self.reported,
            trajectory=passed_by,
            users=self.users_text,
        ).write(place)
        write_json(place / SUMMARY_FILE, self.summary)
        return place

    def __repr__(self) -> str:
        """Return the verdict and the metrics that matter most."""
        shown = [f"{key} {self.metrics[key]:.4g}" for key in SHOWN if key in self.metrics]
        without = [f"; left out: {one.what}, {one.count:,}" for one in self.left_out]
        said = f"Result({self.title}; {self.verdict}; {', '.join(shown)}{''.join(without)})"
        return one_line(said, LONGEST)


def read_result(folder: Path) -> Result:
    """Return the run that a folder holds.

    Raises
    ------
    ConfigError
        If there is none, or it is not whole.
    """
    try:
        limit = read_limit(folder / LIMIT_FILE)
        path, users = folder / TRAJECTORY_FILE, folder / USERS_FILE
        return Result(
            rho=limit.rho,
            gradient=limit.gradient,
            reported=limit.reported,
            trajectory=np.load(path, allow_pickle=False) if path.exists() else None,
            summary=json.loads((folder / SUMMARY_FILE).read_text()),
            text=(folder / ROUNDS_FILE).read_bytes().decode(),
            users_text=users.read_bytes().decode() if users.exists() else "",
            folder=folder,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"folder = {folder}: expected a finished run ({error})") from None
