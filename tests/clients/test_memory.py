"""What a node's disk gives back to its users when the server starts again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, RecordDict

from clients.memory import KIND, Memory, told
from pfl_flower.support.files import read_sealed, write_sealed
from pfl_flower.transport.broadcasts import Broadcast, Session
from pfl_flower.transport.wire import to_array

ZERO = torch.zeros(1)


def broadcast(round: int, session: Session, users: tuple[int, ...] = (0, 1)) -> Broadcast:
    return Broadcast(
        round=round,
        users=users,
        last_accepted=(0,) * len(users),
        rho=ZERO,
        eta=1.0,
        eta_sum=0.0,
        session=session,
    )


def state(users: tuple[int, ...], value: float) -> RecordDict:
    tensors = {"users": torch.tensor(users), "theta": torch.full((len(users), 2), value)}
    record = ArrayRecord({key: to_array(tensor) for key, tensor in tensors.items()})
    own = ArrayRecord({"report": to_array(torch.tensor(value))})
    return RecordDict({"honest": record, f"strategic-{users[0]}": own})


def remembered(memory: Memory, message: Broadcast) -> dict[int, float]:
    """Return the first number of theta that a node without a state takes up, by user."""
    found = RecordDict()
    memory.recall(found, message)
    record = found.array_records.get("honest")
    if record is None:
        return {}
    rows = zip(record["users"].numpy(), record["theta"].numpy(), strict=True)
    return {int(user): float(row[0]) for user, row in rows}


def kept(folder: Path, rounds: range, session: Session, users: tuple[int, ...] = (0, 1)) -> Memory:
    memory = Memory(folder)
    for round in rounds:
        memory.keep(state(users, round), broadcast(round, session, users))
    return memory


def test_a_node_that_starts_again_takes_up_its_last_round(tmp_path: Path) -> None:
    session = Session("a")
    memory = kept(tmp_path, range(1, 5), session)
    assert remembered(memory, broadcast(6, session)) == {0: 4.0, 1: 4.0}


def test_rounds_that_the_server_has_undone_never_happened(tmp_path: Path) -> None:
    """Killed in round 5, resumed from 3; the node is first heard in round 6."""
    memory = kept(tmp_path, range(1, 6), Session("a"))
    again = Session("b", resumed=3, committed=3)
    assert memory.users(3) == [0, 1]
    assert remembered(memory, broadcast(6, again)) == {0: 3.0, 1: 3.0}
    kept(tmp_path, range(4, 5), again)
    assert remembered(memory, broadcast(6, Session("c", 5, 5))) == {0: 4.0, 1: 4.0}


def test_a_fresh_run_and_one_without_checkpoints_take_up_nothing(tmp_path: Path) -> None:
    memory = kept(tmp_path, range(1, 4), Session("a"))
    assert remembered(memory, broadcast(4, Session(""))) == {}
    assert remembered(memory, broadcast(1, Session("b"))) == {}
    assert list(tmp_path.iterdir()) == []


def test_users_find_their_rows_in_the_files_of_several_nodes(tmp_path: Path) -> None:
    session = Session("a")
    kept(tmp_path, range(1, 3), session, (0, 2))
    kept(tmp_path, range(1, 4), session, (1, 3))
    again = broadcast(4, Session("b", 3, 3), (0, 1, 3, 5))
    assert remembered(Memory(tmp_path), again) == {0: 2.0, 1: 3.0, 3: 3.0}
    found = RecordDict()
    Memory(tmp_path).recall(found, again)
    assert {"strategic-0", "strategic-1"} <= set(found.array_records)
    assert float(found.array_records["strategic-1"]["report"].numpy()) == 3.0


def test_rows_come_in_the_order_of_the_users(tmp_path: Path) -> None:
    session = Session("a")
    kept(tmp_path, range(1, 3), session, (0, 2))
    kept(tmp_path, range(1, 4), session, (1, 3))
    found = RecordDict()
    Memory(tmp_path).recall(found, broadcast(4, Session("b", 3, 3), (0, 1, 2, 3)))
    assert found.array_records["honest"]["users"].numpy().tolist() == [0, 1, 2, 3]


def test_rows_of_surrogates_come_whole(tmp_path: Path) -> None:
    """Nobody acts for them: ids past the last user, on a node that may have another user now."""
    session, users = Session("a"), (0, 1)
    node = state(users, 1.0)
    node["surrogates-5-honest"] = state((5, 6), 2.0)["honest"]
    Memory(tmp_path).keep(node, broadcast(1, session, users))
    found = RecordDict()
    Memory(tmp_path).recall(found, broadcast(2, Session("b", 1, 1), (1,)))
    assert found.array_records["surrogates-5-honest"]["users"].numpy().tolist() == [5, 6]
    assert found.array_records["honest"]["users"].numpy().tolist() == [1]


def test_users_who_are_not_asked_keep_their_memory(tmp_path: Path) -> None:
    session = Session("a")
    memory = Memory(tmp_path)
    some = replace(broadcast(1, session, (1,)), members=(0, 1))
    memory.keep(state((0, 1), 1.0), some)
    again = replace(broadcast(2, Session("b", 1, 1), (0,)), members=(0, 1))
    assert remembered(memory, again) == {0: 1.0, 1: 1.0}


def test_the_state_of_this_session_is_not_replaced(tmp_path: Path) -> None:
    session = Session("a")
    memory = kept(tmp_path, range(1, 3), session)
    found = RecordDict()
    memory.recall(found, broadcast(3, session))
    found["honest"] = state((0, 1), 7.0)["honest"]
    memory.recall(found, broadcast(4, session))
    assert float(found.array_records["honest"]["theta"].numpy()[0, 0]) == 7.0


def test_what_no_checkpoint_can_ask_for_is_removed(tmp_path: Path) -> None:
    memory = kept(tmp_path, range(1, 6), Session("a"))
    assert len(list(tmp_path.iterdir())) == 5
    memory.keep(state((0, 1), 6), broadcast(6, Session("a", 0, 4)))
    assert sorted(path.name[6:14] for path in tmp_path.iterdir()) == [
        "00000004",
        "00000005",
        "00000006",
    ]


def test_a_damaged_file_is_passed_over(tmp_path: Path) -> None:
    session = Session("a")
    memory = kept(tmp_path, range(1, 4), session)
    last = max(tmp_path.iterdir())
    last.write_bytes(last.read_bytes()[:-1])
    assert remembered(memory, broadcast(4, session)) == {0: 2.0, 1: 2.0}


@pytest.mark.parametrize("users", [None, 1, "01", [0.0, 1.0], [True], {"0": 1}, [[0, 1]]])
def test_a_file_of_nobody_is_passed_over(users: object, tmp_path: Path) -> None:
    session = Session("a")
    memory = kept(tmp_path, range(1, 4), session)
    last = max(tmp_path.iterdir())
    facts = {} if users is None else {"users": users}
    write_sealed(last, KIND, facts, read_sealed(last, KIND).arrays)
    assert memory.users(3) == [0, 1]
    assert remembered(memory, broadcast(4, session)) == {0: 2.0, 1: 2.0}


def test_a_full_disk_costs_the_memory_and_not_the_round(tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.write_text("not a folder")
    Memory(folder).keep(state((0, 1), 1), broadcast(1, Session("a")))


def taken(memory: Memory, found: RecordDict, message: Broadcast) -> dict[int, int]:
    memory.recall(found, message)
    return told(found, message.users)


def test_of_which_round_a_memory_is_is_said_once(tmp_path: Path) -> None:
    session, found = Session("a"), RecordDict()
    memory = kept(tmp_path, range(1, 4), session)
    again = Session("b", 3, 3)
    assert taken(memory, found, broadcast(4, again, (0, 1, 2))) == {0: 3, 1: 3, 2: 0}
    assert taken(memory, found, broadcast(5, again, (0, 1, 2))) == {}


def test_of_users_who_are_not_asked_it_is_said_when_they_are(tmp_path: Path) -> None:
    memory, found = kept(tmp_path, range(1, 4), Session("a")), RecordDict()
    later = [
        replace(broadcast(round, Session("b", 3, 3), users), members=(0, 1, 2))
        for round, users in ((4, (1,)), (5, (0, 1)), (6, (2,)))
    ]
    assert [taken(memory, found, one) for one in later] == [{1: 3}, {0: 3}, {2: 0}]


def test_a_damaged_file_shows_in_what_is_said(tmp_path: Path) -> None:
    session = Session("a")
    memory = kept(tmp_path, range(1, 4), session)
    max(tmp_path.iterdir()).write_bytes(b"")
    assert taken(memory, RecordDict(), broadcast(4, session)) == {0: 2, 1: 2}


def test_in_the_first_round_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert taken(Memory(tmp_path), RecordDict(), broadcast(1, Session("a"))) == {}
    assert taken(Memory(tmp_path), RecordDict(), broadcast(1, Session())) == {}


def test_without_a_disk_a_state_that_is_gone_is_said(tmp_path: Path) -> None:
    memory, found = Memory(tmp_path), RecordDict()
    assert taken(memory, found, broadcast(1, Session())) == {}
    assert taken(memory, found, broadcast(2, Session())) == {}
    found.clear()
    assert taken(memory, found, broadcast(3, Session())) == {0: 0, 1: 0}


def test_a_node_that_is_given_others_users_takes_up_their_memory_beside_its_own(
    tmp_path: Path,
) -> None:
    """Within a session, from a folder that nodes share; its own state is not replaced."""
    session = Session("a")
    memory = kept(tmp_path, range(1, 4), session, (0, 1))
    kept(tmp_path, range(1, 3), session, (2, 3))
    found = RecordDict()
    assert taken(memory, found, broadcast(4, session, (0, 1))) == {0: 3, 1: 3}
    found["honest"] = state((0, 1), 7.0)["honest"]
    assert taken(memory, found, broadcast(5, session, (0, 1, 2, 3))) == {2: 2, 3: 2}
    record = found.array_records["honest"]
    assert record["users"].numpy().tolist() == [0, 1, 2, 3]
    assert record["theta"].numpy()[:, 0].tolist() == [7.0, 7.0, 2.0, 2.0]
    assert float(found.array_records["strategic-2"]["report"].numpy()) == 2.0


def test_whether_it_was_kept_is_the_answer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, session, done in (
        (tmp_path / "a", Session("a"), True),
        (tmp_path / "file", Session("a"), False),
        (tmp_path / "file", Session(), True),
    ):
        assert Memory(folder).keep(state((0, 1), 1), broadcast(1, session)) == done
