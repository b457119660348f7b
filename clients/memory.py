"""Clients' memory on the node's own disk: Flower keeps ``context.state`` for one run only.

After every round a node writes what its clients remember to a sealed file of its ``state-dir``,
named by round, session and users. When the server starts again from a checkpoint of round c, a node
whose memory is of another session takes up, for each of its users, the newest file that the server
has not undone: of a round up to c, or of this session. Files that no checkpoint can ask for are
removed.

A node that acts for a user anew says once of which round the memory is that it took up. The server,
which knows when that user last answered, sees what was lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from logging import WARNING
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from clients.answers import ANSWER
from clients.learned import LEARNED
from pfl_flower.support.files import Sealed, SealError, read_sealed, write_sealed
from pfl_flower.transport.broadcasts import Broadcast, Session
from pfl_flower.transport.flower_internals import log
from pfl_flower.transport.records import integers, packed
from pfl_flower.transport.wire import find

KIND = "memory"
MARK = "session"
FILE = re.compile(r"round-(\d{8})-([0-9a-z]+)-([0-9a-f]{12})\.pfl")
ClientMemory = dict[str, np.ndarray[Any, Any]]
NodeMemory = dict[str, ClientMemory]


@dataclass(frozen=True)
class _File:
    path: Path
    round: int
    session: str
    group: str

    def counts(self, session: Session) -> bool:
        """Whether what it holds happened, as the session sees it."""
        return self.round <= session.resumed or self.session == session.name


@dataclass(frozen=True)
class _Mark:
    """Whose memory a state holds.

    Attributes
    ----------
    session : str
        Of which session it is.
    members : tuple of int
        The users that the node acts for.
    untold : dict
        Those of whom the server has not been told yet of which round their memory is.
    """

    session: str
    members: tuple[int, ...]
    untold: Mapping[int, int]

    @classmethod
    def of(cls, state: RecordDict) -> _Mark | None:
        """Return the mark of a state, None if it has none."""
        kept = find(state, MARK, ConfigRecord)
        if kept is None:
            return None
        users, rounds = integers(kept, "untold"), integers(kept, "rounds")
        untold = dict(zip(users, rounds, strict=True))
        return cls(str(kept["name"]), integers(kept, "members"), untold)

    def put(self, state: RecordDict) -> None:
        """Mark a state."""
        state[MARK] = ConfigRecord(
            {
                "name": self.session,
                "members": packed(self.members),
                "untold": packed(list(self.untold)),
                "rounds": packed(list(self.untold.values())),
            }
        )


@dataclass(frozen=True)
class Memory:
    """The memory of a node's users in a folder, which several nodes of one run may share."""

    folder: Path

    def recall(self, state: RecordDict, broadcast: Broadcast) -> None:
        """Fill a state that is not of this session, or of other users, with what the disk holds."""
        session, members, mark = broadcast.session, broadcast.members, _Mark.of(state)
        same = mark is not None and mark.session == session.name
        if mark is not None and same and mark.members == members:
            return
        known = mark.members if mark is not None and same else ()
        new = set(members).difference(known)
        rounds: dict[int, int] = {}
        if session.name:
            if not same:
                self._forget_undone(session)
                state.clear()
            found, rounds = self._newest(session, broadcast.round, new)
            _fill(state, found)
        before = mark.untold if mark is not None and same else {}
        # In the first round there is nothing that could have been lost.
        fresh = {user: rounds.get(user, 0) for user in sorted(new)} if broadcast.round > 1 else {}
        _Mark(session.name, members, {**before, **fresh}).put(state)

    def keep(self, state: RecordDict, broadcast: Broadcast) -> bool:
        """Write the state after a round, and remove what no checkpoint can ask for.

        Return whether that is on the disk; a run that keeps nothing has nothing to lose.
        """
        session, group = broadcast.session, _digest(broadcast.members)
        if not session.name:
            return True
        arrays = {
            f"{name}/{key}": array.numpy()
            for name, record in state.array_records.items()
            if not name.startswith((ANSWER, LEARNED))
            for key, array in record.items()
        }
        path = self.folder / f"round-{broadcast.round:08d}-{session.name}-{group}.pfl"
        try:
            write_sealed(path, KIND, {"users": list(broadcast.members)}, arrays)
        except OSError as error:
            log(WARNING, "round %d cannot be kept in %s: %s", broadcast.round, self.folder, error)
            return False
        done = [file for file in self._files() if file.group == group]
        done = [file for file in done if file.round <= session.committed]
        for file in sorted(done, key=lambda file: file.round)[:-1]:
            _remove(file.path)
        return True

    def users(self, resumed: int) -> list[int]:
        """Return the users of whom there is memory of a round up to ``resumed``."""
        held: set[int] = set()
        for file in self._files():
            if file.round <= resumed and (sealed := _read(file.path)) is not None:
                held.update(sealed.facts["users"])
        return sorted(held)

    def _newest(
        self, session: Session, before: int, users: Collection[int]
    ) -> tuple[NodeMemory, dict[int, int]]:
        """Return the newest memory of each of these users, and of which round it is."""
        found: NodeMemory = {}
        rounds: dict[int, int] = {}
        wanted = set(users)
        files = [file for file in self._files() if file.counts(session)]
        for file in sorted(files, key=lambda file: -file.round):
            if file.round >= before or not wanted:
                continue
            if (sealed := _read(file.path)) is not None:
                if known := wanted & set(sealed.facts["users"]):
                    _take(found, sealed, known)
                    rounds |= dict.fromkeys(known, file.round)
                    wanted -= known
        return found, rounds

    def _forget_undone(self, session: Session) -> None:
        for file in self._files():
            if not file.counts(session):
                _remove(file.path)

    def _files(self) -> Iterator[_File]:
        for path in self.folder.glob("round-*.pfl"):
            if (match := FILE.fullmatch(path.name)) is not None:
                yield _File(path, int(match[1]), match[2], match[3])


def told(state: RecordDict, asked: Iterable[int]) -> dict[int, int]:
    """Return of which round the memory of each user is of whom that is yet to be said, once."""
    mark = _Mark.of(state)
    if mark is None or not mark.untold:
        return {}
    said = {user: mark.untold[user] for user in asked if user in mark.untold}
    left = {user: round for user, round in mark.untold.items() if user not in said}
    replace(mark, untold=left).put(state)
    return said


def _fill(state: RecordDict, found: NodeMemory) -> None:
    """Put memory into a state, beside that of other users."""
    for name, record in found.items():
        kept = find(state, name, ArrayRecord)
        if kept is not None and "users" in record:
            record = _joined(record, {key: array.numpy() for key, array in kept.items()})
        state[name] = ArrayRecord({key: Array(value) for key, value in record.items()})


def _take(found: NodeMemory, sealed: Sealed, users: set[int]) -> None:
    """Add the users' share of a file: rows where a record lists users, else records named so.

    Rows of users for whom the file's node does not act are those of surrogates, and come with any.
    """
    records: NodeMemory = {}
    for full, value in sealed.arrays.items():
        name, _, key = full.partition("/")
        records.setdefault(name, {})[key] = value
    for name, record in records.items():
        if "users" in record:
            ids = record["users"]
            rows = np.isin(ids, sorted(users)) | ~np.isin(ids, sealed.facts["users"])
            found[name] = _joined(found.get(name), {k: value[rows] for k, value in record.items()})
        elif name.rpartition("-")[2] in map(str, users):
            found[name] = record


def _joined(before: ClientMemory | None, share: ClientMemory) -> ClientMemory:
    """Return the rows of two records, ascending by user; of a user in both the first one's."""
    if before is None:
        return share
    fresh = ~np.isin(share["users"], before["users"])
    both = {key: np.concatenate([before[key], share[key][fresh]]) for key in before}
    order = np.argsort(both["users"])
    return {key: value[order] for key, value in both.items()}


def _read(path: Path) -> Sealed | None:
    """Return a file's content; None, with a warning, if it is damaged, or gone since."""
    try:
        found = read_sealed(path, KIND)
        users = found.facts.get("users")
        if not isinstance(users, list) or not all(type(user) is int for user in users):
            raise SealError("it is not what it says (users)")
        return found
    except SealError as error:
        if path.exists():
            log(WARNING, "%s is left out: %s", path, error)
        return None


def _remove(path: Path) -> None:
    # Another node of a shared folder may have been quicker.
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _digest(users: Iterable[int]) -> str:
    return hashlib.sha256(",".join(map(str, users)).encode()).hexdigest()[:12]
