"""Runs that a study is made of: configurations of one seed, each kept when it is finished."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from experiments.running.engines import run_once
from experiments.running.preset_runs import finished
from experiments.running.progress import watching
from experiments.studies.study import Setting
from pfl_flower.run.config import RunConfig
from pfl_flower.run.finished import read_result
from pfl_flower.run.keys import Scalar
from pfl_flower.run.outcome import KEPT_CHECKS
from pfl_flower.run.progress import measured
from pfl_flower.run.verdict import in_words
from pfl_flower.support.errors import RunFailedError

Keys = Mapping[str, Scalar]
"""What a configuration sets."""
SHARED = "shared"
"""Folder, beside the studies', of runs that several of them begin with."""


def slug(label: str) -> str:
    """Return a label as the name of a folder.

    >>> slug("threat model, squared-l2")
    'threat-model-squared-l2'
    """
    return re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-")


def configured(setting: Setting, label: str, keys: Keys) -> RunConfig:
    """Return the configuration of a variant; local models are evaluated only where keys say so."""
    base = {"evaluate-every": 0, **keys}
    return setting.options.configure(base, setting.folder, setting.seed, slug(label))


def run_variant(setting: Setting, label: str, keys: Keys) -> RunConfig:
    """Run one configuration to its end, unless it was, and return it.

    Raises
    ------
    RunFailedError
        If it did not finish, or a strategic user took no part in it.
    """
    config = configured(setting, label, keys)
    if not finished(config, setting.options):

        def show(row: Mapping[str, float]) -> None:
            rounds = f"round {row.get('round', 0):.0f}/{config.rounds}"
            setting.say(f"{label}, {rounds}  {measured(dict(row))}")

        with watching(config.folder() / "rounds.csv", show):
            run_once(config, setting.options)
    for check in read_result(config.folder()).checks:
        if check.name in KEPT_CHECKS and not check.passed:
            raise RunFailedError(f"{label}: {in_words(check)}")
    return config


def shared(setting: Setting) -> Setting:
    """Return the setting whose folder several studies of one seed and form have in common."""
    name = f"{'quick-' if setting.quick else ''}seed-{setting.seed}"
    return replace(setting, folder=setting.options.output / SHARED / name)
