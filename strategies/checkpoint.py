"""What a run must not lose: the server's state and its records, in one sealed file.

A checkpoint holds all that round t + 1 depends on at the server: rho_{t+1}, the optimiser's
moments, the sum of the step sizes (eta_t itself is a function of t), who was accepted when, the
oracle's honest sum, the roster, and the records so far. Flower 1.41's strategies keep none of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfl_flower.aggregation.rows import Rows
from pfl_flower.run.attendance import Attendance
from pfl_flower.run.config import RunConfig
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.files import Sealed, SealError, read_sealed, write_sealed
from pfl_flower.support.folders import own_path
from strategies.last_reports import LastReports
from strategies.roster import Roster
from strategies.server_state import PastRounds, ServerState

CHECKPOINT_FILE = "checkpoint.pfl"
KIND = "checkpoint"
FREE = frozenset(
    {
        "rounds",
        "resume",
        "checkpoint-every",
        "state-dir",
        "output-dir",
        "device",
        "chunk-users",
        "min-nodes",
        "site",
        "node-timeout",
        "reply-timeout",
    }
)
"""Keys that may differ when a run is resumed: none of them moves rho in a given round."""


@dataclass(frozen=True, kw_only=True)
class Records:
    """What a run has written down: the text of ``rounds.csv``, and what its end will need.

    Attributes
    ----------
    rounds : str
        ``rounds.csv``, up to and with the checkpoint's round.
    attendance : Attendance
        Who took part so far, and whose memory was whole.
    reported : LastReports
        Each strategic user's last accepted report.
    trajectory : Tensor or None
        rho of every round, ``(t + 1, d)``, with ``save-trajectory``.
    """

    rounds: str
    attendance: Attendance
    reported: LastReports
    trajectory: Tensor | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A run's state and its records after one and the same round."""

    server: ServerState
    records: Records


def fingerprint(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the keys that decide where rho goes."""
    fixed = {key: value for key, value in config.items() if key not in FREE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def write_checkpoint(path: Path, config: RunConfig, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in place of the last one, in one move."""
    state, records = checkpoint.server, checkpoint.records
    facts = {
        "round": state.round,
        "config": config.flat(),
        "fingerprint": fingerprint(config.flat()),
        "eta-sum": state.past.eta_sum,
        "nodes": [[node, list(users)] for node, users in state.roster.nodes.items()],
        "strategic": sorted(state.roster.strategic),
        "rounds": records.rounds,
        "attendance": records.attendance.facts(),
    }
    tensors = {
        "rho": state.rho,
        "last-accepted": state.past.last_accepted,
        "answered": state.past.answered,
        "strategic-users": records.reported.rows.users,
        "strategic-rows": records.reported.rows.values_by_user,
        "strategic-rounds": records.reported.rounds,
        "honest-sum": state.past.honest_sum,
        "trajectory": records.trajectory,
        **{f"optimizer/{name}": value for name, value in state.optimizer.items()},
    }
    arrays = {name: _array(value) for name, value in tensors.items() if value is not None}
    write_sealed(path, KIND, facts, arrays)


def find_checkpoint(config: RunConfig) -> Path | None:
    """Return the file that ``resume`` names; with ``auto`` the run's own, None if there is none."""
    if config.resume == "auto":
        own = config.folder() / CHECKPOINT_FILE
        return own if own.exists() else None
    if not config.resume:
        return None
    path = own_path("resume", config.resume)
    return path / CHECKPOINT_FILE if path.is_dir() else path


def load_checkpoint(
    config: RunConfig, *, device: torch.device, dim: int, dtype: torch.dtype
) -> Checkpoint | None:
    """Return the checkpoint that a run is to continue from, None if it starts afresh.

    Raises
    ------
    ConfigError
        If the file is absent, foreign, damaged, of another version or of another configuration,
        or has done more rounds than are asked for.
    """
    path = find_checkpoint(config)
    if path is None:
        return None
    try:
        sealed = read_sealed(path, KIND)
        _same_configuration(sealed.facts, config)
        found = _unpack(sealed, device)
        if found.server.rho.shape != (dim,) or found.server.rho.dtype != dtype:
            raise SealError(f"its rho is not of {dim} numbers in {config.dtype}")
    except SealError as error:
        raise ConfigError(f"resume = {config.resume}: {path.name}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"resume = {config.resume}: {path.name}: it is not what it says ({error!r})"
        ) from None
    if found.server.round > config.rounds:
        raise ConfigError(
            f"rounds = {config.rounds}: expected at least {found.server.round}, "
            "which the checkpoint has done"
        )
    return found


def _same_configuration(facts: Mapping[str, Any], config: RunConfig) -> None:
    there, here = facts["config"], config.flat()
    for key in sorted((there.keys() | here.keys()) - FREE):
        if there.get(key) != here.get(key):
            raise SealError(
                f"it is of another configuration, {key} = {there.get(key)} there "
                f"and {here.get(key)} here"
            )
    if facts["fingerprint"] != fingerprint(here):
        raise SealError("it is of another configuration")


def _unpack(sealed: Sealed, device: torch.device) -> Checkpoint:
    facts = sealed.facts
    tensors = {name: torch.from_numpy(value).to(device) for name, value in sealed.arrays.items()}
    prefix = "optimizer/"
    optimizer = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    server = ServerState(
        round=int(facts["round"]),
        rho=tensors["rho"],
        past=PastRounds(
            tensors["last-accepted"].cpu(),
            tensors["answered"].cpu(),
            float(facts["eta-sum"]),
            tensors.get("honest-sum"),
        ),
        optimizer=optimizer,
        roster=Roster(
            {node: tuple(users) for node, users in facts["nodes"]}, frozenset(facts["strategic"])
        ),
    )
    records = Records(
        rounds=str(facts["rounds"]),
        attendance=Attendance.of(facts["attendance"]),
        reported=LastReports(
            Rows(tensors["strategic-users"].cpu(), tensors["strategic-rows"]),
            tensors["strategic-rounds"].cpu(),
        ),
        trajectory=tensors.get("trajectory"),
    )
    return Checkpoint(server, records)


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    value: np.ndarray[Any, Any] = tensor.detach().cpu().numpy()
    return value
