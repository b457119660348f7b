"""What a run must not lose: the server's state and its records, in one sealed file and a journal.

A checkpoint holds all that round t + 1 depends on at the server: rho_{t+1}, the optimiser's
moments, what the aggregation remembers, the sum of the step sizes (eta_t itself is a function of
t), who was accepted when, the oracle's honest sum, the roster, and who took part so far. What grows
with the rounds is in the journal beside it. Flower 1.41's strategies keep none of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pfl_flower.run.attendance import Attendance
from pfl_flower.run.config import RunConfig
from pfl_flower.support.files import write_sealed
from pfl_flower.support.folders import own_path
from strategies.journal import Extent
from strategies.last_reports import LastReports
from strategies.server_state import ServerState

CHECKPOINT_FILE = "checkpoint.pfl"
KIND = "checkpoint"
MEMORY = "aggregation/"
"""How the names of arrays begin that the aggregation remembers."""
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
        "tracker",
        "tracker-options",
        "node-timeout",
        "introduction-timeout",
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


def write_checkpoint(
    path: Path,
    config: RunConfig,
    state: ServerState,
    *,
    attendance: Attendance,
    reported: LastReports,
    journal: Mapping[str, str | Extent],
) -> None:
    """Write a checkpoint in place of the last one, in one move.

    ``journal`` is its name and, by part, how far it goes.
    """
    extents = {
        key: value if isinstance(value, str) else value.model_dump()
        for key, value in journal.items()
    }
    facts = {
        "round": state.round,
        "config": config.flat(),
        "fingerprint": fingerprint(config.flat()),
        "eta-sum": state.past.eta_sum,
        "nodes": [[node, list(users)] for node, users in state.roster.nodes.items()],
        "strategic": sorted(state.roster.strategic),
        "journal": extents,
        "attendance": attendance.facts(),
    }
    rows = reported.rows
    tensors = {
        "rho": state.rho,
        "last-accepted": state.past.last_accepted,
        "answered": state.past.answered,
        "strategic-users": rows.users,
        "strategic-rows": rows.values_by_user if rows else state.rho.new_zeros((0, len(state.rho))),
        "strategic-rounds": reported.rounds,
        # Of other runs nobody asks for it.
        "honest-sum": state.past.honest_sum if config.estimator == "oracle" else None,
        **{f"optimizer/{name}": value for name, value in state.optimizer.items()},
        **{f"{MEMORY}{name}": value for name, value in state.memory.items()},
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


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    value: np.ndarray[Any, Any] = tensor.detach().cpu().numpy()
    return value
