"""Going on from a checkpoint, whoever has written it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pfl_flower.aggregation.combination import RunningRule
from pfl_flower.aggregation.rows import Rows
from pfl_flower.objective.plausible import Plausible
from pfl_flower.run.attendance import Attendance
from pfl_flower.run.config import RunConfig
from pfl_flower.run.problem import Problem
from pfl_flower.run.rounds import LONGEST_ROW, check_text
from pfl_flower.run.server_setup import ServerSetup
from pfl_flower.support.errors import ConfigError, DataError
from pfl_flower.support.files import Sealed, SealError, read_sealed
from strategies.checkpoint import (
    FREE,
    KIND,
    MEMORY,
    Checkpoint,
    Records,
    find_checkpoint,
    fingerprint,
)
from strategies.checkpoint_facts import Facts, check_arrays, forms
from strategies.journal import part_file, read_part
from strategies.last_reports import LastReports
from strategies.roster import Roster
from strategies.server_state import PastRounds, ServerState

SERVER_VECTORS, USER_BYTES, FRAME_BYTES = 6, 1024, 1 << 20
"""Room in a checkpoint: rho, the moments and the honest sum; what is said of a user (on which node
it is, when it answered, why no report came); headers, names and the configuration's spelling."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a checkpoint has to fit.

    Attributes
    ----------
    dim, dtype, device
        Of rho.
    regularizer : Regularizer
        In whose GRAD every report is that counted.
    columns : sequence of str
        Of ``rounds.csv``.
    memory : mapping
        What the aggregation remembers before the first round: what it keeps is of this form.
    """

    dim: int
    dtype: torch.dtype
    device: torch.device
    plausible: Plausible
    columns: Sequence[str]
    memory: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, problem: Problem, columns: Sequence[str]) -> Expected:
        """Return what a checkpoint of a problem has to fit."""
        return cls(
            dim=problem.model.dim,
            dtype=problem.dtype,
            device=problem.device,
            plausible=problem.plausible,
            columns=columns,
            memory=RunningRule(problem.config, ServerSetup(problem), problem.initial).memory(),
        )

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return what the aggregation remembers at first, by the names of a checkpoint's arrays."""
        return {f"{MEMORY}{name}": value.cpu().numpy() for name, value in self.memory.items()}


def load_checkpoint(config: RunConfig, expected: Expected) -> Checkpoint | None:
    """Return the checkpoint that a run is to continue from, None if it starts afresh.

    Raises
    ------
    ConfigError
        If the file is absent, foreign, damaged, of another version or of another configuration, if
        it or the journal beside it says what cannot be, or has done more rounds than are asked for.
    """
    path = find_checkpoint(config)
    if path is None:
        return None
    try:
        sealed = read_sealed(path, KIND, most=_most_bytes(config, expected))
        facts = Facts.of(sealed.facts)
        _same_configuration(facts, config)
        if facts.round > config.rounds:
            raise ConfigError(
                f"rounds = {config.rounds}: expected at least {facts.round}, "
                "which the checkpoint has done"
            )
        _check(facts, sealed, config, expected)
        return _unpack(facts, sealed, path.parent, config, expected)
    except SealError as error:
        raise ConfigError(f"resume = {config.resume}: {path.name}: {error}") from None


def _most_bytes(config: RunConfig, expected: Expected) -> int:
    """Return the most bytes of a checkpoint: vectors for the server and each user, and words."""
    words = len(json.dumps(config.flat())) + config.users * USER_BYTES
    memory = sum(value.nbytes for value in expected.arrays().values())
    vectors = 8 * expected.dim * (SERVER_VECTORS + config.users)
    return vectors + memory + 2 * words + FRAME_BYTES


def _same_configuration(facts: Facts, config: RunConfig) -> None:
    there, here = facts.config, config.flat()
    for key in sorted((there.keys() | here.keys()) - FREE):
        if there.get(key) != here.get(key):
            raise SealError(
                f"it is of another configuration, {key} = {there.get(key)} there "
                f"and {here.get(key)} here"
            )
    if facts.fingerprint != fingerprint(here):
        raise SealError("it is of another configuration")


def _check(facts: Facts, sealed: Sealed, config: RunConfig, expected: Expected) -> None:
    facts.check_users(config.users)
    facts.check_attendance()
    found = sealed.arrays
    right = forms(
        facts,
        users=config.users,
        dim=expected.dim,
        dtype=config.dtype,
        reported=found["strategic-users"].size if "strategic-users" in found else 0,
        adam=config.server_optimizer == "adam",
        oracle=config.estimator == "oracle",
        memory=expected.arrays(),
    )
    check_arrays(found, right)
    users, rows = found["strategic-users"], torch.from_numpy(found["strategic-rows"])
    if not set(users.tolist()) <= set(facts.strategic) or (np.diff(users) <= 0).any():
        raise SealError("strategic-users is wrong (expected strategic users, ascending)")
    if not bool(expected.plausible.contains(rows, config.gradient_rtol).all()):
        raise SealError("strategic-rows is wrong (a report that is not plausible)")
    if (found["answered"] < found["last-accepted"])[found["last-accepted"] > 0].any():
        raise SealError("answered is wrong (a user who was accepted later than it answered)")


def _unpack(
    facts: Facts, sealed: Sealed, folder: Path, config: RunConfig, expected: Expected
) -> Checkpoint:
    tensors = {name: torch.from_numpy(value) for name, value in sealed.arrays.items()}
    there = {name: value.to(expected.device) for name, value in tensors.items()}
    server = ServerState(
        round=facts.round,
        rho=there["rho"],
        past=PastRounds(
            tensors["last-accepted"], tensors["answered"], facts.eta_sum, there.get("honest-sum")
        ),
        optimizer=_named(there, "optimizer/"),
        memory=_named(there, MEMORY),
        roster=Roster(
            {node: tuple(users) for node, users in facts.nodes}, frozenset(facts.strategic)
        ),
    )
    reported = LastReports()
    if len(users := tensors["strategic-users"]):
        rows = Rows(users, there["strategic-rows"])
        reported = LastReports(rows, tensors["strategic-rounds"])
    records = Records(
        rounds=_rounds(facts, folder, config, expected),
        attendance=Attendance.of(facts.attendance.model_dump()),
        reported=reported,
        trajectory=_trajectory(facts, folder, expected) if config.save_trajectory else None,
    )
    return Checkpoint(server, records)


def _named(arrays: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the arrays whose names begin so, by the rest."""
    found = {name: value for name, value in arrays.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): value for name, value in found.items()}


def _rounds(facts: Facts, folder: Path, config: RunConfig, expected: Expected) -> str:
    """Return what the journal says of the rounds, which is as long and looks as it has to."""
    kept = facts.journal
    path = part_file(folder, kept.name, "rounds")
    content = read_part(path, kept.rounds, (facts.round + 2) * LONGEST_ROW)
    try:
        text = content.decode()
        check_text(text, expected.columns, seed=config.seed, last=facts.round)
    except (DataError, UnicodeDecodeError) as error:
        raise SealError(f"{path.name} is wrong ({error})") from None
    return text


def _trajectory(facts: Facts, folder: Path, expected: Expected) -> torch.Tensor:
    """Return rho of every round, ``(t + 1, d)``, from the journal."""
    kept, rounds = facts.journal, facts.round + 1
    path = part_file(folder, kept.name, "rho")
    size = rounds * expected.dim * expected.dtype.itemsize
    content = read_part(path, kept.rho, size)
    if len(content) != size:
        raise SealError(f"{path.name} is wrong ({len(content):,} bytes: expected {size:,})")
    numbers = torch.frombuffer(bytearray(content), dtype=expected.dtype)
    if not bool(numbers.isfinite().all()):
        raise SealError(f"{path.name} is wrong (a number that is not finite)")
    return numbers.view(rounds, expected.dim).to(expected.device)
