"""``limit.npz``: each strategic user's last report that counted, of whatever round it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from torch import Tensor

import pfl_flower.api as pfl
from pfl_flower import server_app
from pfl_flower.aggregation.rows import Rows
from pfl_flower.run.attack_plans import plan
from pfl_flower.run.problem import build_problem
from pfl_flower.run.results import read_limit, write_limit
from pfl_flower.support.errors import ConfigError
from pfl_flower.transport.inprocess import InProcessGrid
from pfl_flower.transport.node_metrics import NodeMetrics
from strategies.last_reports import LastReports
from strategies.parameter_server import ParameterServer
from strategies.round_record import RoundRecord
from tests.support.runs import TINY, configure, play, tampering

ALLIES = {"strategic_users": "3,4", "rounds": 5}


def record(round: int, **rows: float) -> RoundRecord:
    """A round of users 1 and 2, honest, and 3 and 4, strategic; a user's row is its number."""
    given = {int(user[1:]): torch.tensor([value]).double() for user, value in rows.items()}
    return RoundRecord(
        round=round,
        eta=1.0,
        rho=torch.zeros(1).double(),
        accepted=Rows.of(given),
        rejections=[],
        strategic=frozenset((3, 4)),
        metrics=NodeMetrics(),
    )


@pytest.mark.parametrize(
    ("rounds", "total", "by_user"),
    [
        ([record(1, u1=5.0)], 0.0, {}),
        ([record(1, u1=5.0, u3=1.0), record(2, u1=5.0)], 1.0, {3: 1}),
        ([record(1, u3=1.0, u4=2.0), record(2, u3=10.0, u4=20.0)], 30.0, {3: 2, 4: 2}),
        ([record(1, u3=1.0, u4=2.0), record(2, u4=20.0)], 21.0, {3: 1, 4: 2}),
        ([record(1, u4=2.0), record(2, u3=10.0), record(3)], 12.0, {3: 2, 4: 1}),
    ],
    ids=["nobody", "then none", "both again", "one again", "in turn"],
)
def test_each_user_counts_with_its_last(
    rounds: list[RoundRecord], total: float, by_user: dict[int, int]
) -> None:
    last = LastReports()
    for one in rounds:
        last.add(one)
    assert float(last.total(torch.zeros(1))) == total
    assert last.by_user == by_user


def expected(
    records: list[RoundRecord], strategic: frozenset[int]
) -> tuple[Tensor, dict[int, int]]:
    """The slow way: user by user, from the last round back."""
    total, rounds = torch.zeros_like(records[0].rho), {}
    for user in sorted(strategic):
        for one in reversed(records):
            if user in one.accepted:
                total, rounds[user] = total + one.accepted[user], one.round
                break
    return total, rounds


def kept(folder: Path, **changes: Any) -> pfl.Result:
    keys = {key.replace("-", "_"): value for key, value in TINY.items()}
    return pfl.run(**{**keys, **ALLIES, **changes}, output=folder)


@pytest.mark.parametrize("changes", [{}, {"participation": 0.4, "rounds": 6}], ids=str)
def test_the_file_says_whose_reports_and_of_which_rounds(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    config = configure(**{**ALLIES, **changes})
    records = play(config)
    gradient, rounds = expected(records, config.strategic())
    found = kept(tmp_path / "run", **changes)
    limit = read_limit(tmp_path / "run" / "limit.npz")
    np.testing.assert_allclose(limit.gradient, gradient.numpy(), rtol=0, atol=1e-12)
    assert limit.reported == found.reported == rounds
    assert float(gradient.norm()) > 0.1
    if changes:
        # Somebody was not asked in the last round, and its report is there all the same.
        assert min(rounds.values()) < config.rounds
        assert float(records[-1].strategic_sum.norm()) != pytest.approx(float(gradient.norm()))
    again = pfl.load(found.save(tmp_path / "saved"))
    assert isinstance(again, pfl.Result)
    assert again.reported == rounds
    assert np.array_equal(again.gradient, found.gradient)


class Late(ParameterServer):
    """Rejects what strategic users send in the last rounds."""

    def read(self, server_round: int, replies: Any) -> Any:
        found = super().read(server_round, replies)
        if server_round > 3:
            honest = ~torch.isin(found.rows.users, torch.tensor([3, 4]))
            found.rows = found.rows.select(honest)
        return found


def test_what_was_rejected_last_does_not_hide_what_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = play(
        configure(
            **ALLIES,
        )
    )
    monkeypatch.setattr(server_app, "ParameterServer", Late)
    found = kept(tmp_path)
    assert found.reported == {3: 3, 4: 3}
    np.testing.assert_allclose(found.gradient, whole[2].strategic_sum.numpy(), rtol=0, atol=1e-12)


def test_a_resumed_run_keeps_the_reports_of_before(tmp_path: Path) -> None:
    changes = {"participation": 0.4, "checkpoint_every": 1}
    straight = kept(tmp_path / "straight", **changes, rounds=6)
    for rounds in (3, 5, 6):
        resumed = kept(tmp_path / "resumed", **changes, rounds=rounds, resume="auto")
    assert resumed.reported == straight.reported
    assert min(straight.reported.values()) < 6
    assert np.array_equal(resumed.gradient, straight.gradient)


def test_a_run_without_a_report_that_counted_is_no_source_of_a_model(tmp_path: Path) -> None:
    kept(tmp_path, strategic_users="none")
    limit = read_limit(tmp_path / "limit.npz")
    assert limit.reported == {}
    assert not limit.gradient.any()
    problem = build_problem(configure(attack="model", attack_model=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"^attack-model = .*: expected a run with a") as caught:
        plan(problem, 4)
    assert "\n" not in str(caught.value)


def test_a_file_of_an_older_version_says_so(tmp_path: Path) -> None:
    path = tmp_path / "limit.npz"
    np.savez(path, rho=np.zeros(6), gradient=np.ones(6))
    problem = build_problem(configure(attack="model", attack_model=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"of version 1: run that CGA run again"):
        plan(problem, 4)
    write_limit(path, torch.zeros(6), torch.ones(6), {4: 0})
    assert plan(problem, 4).attack_model.shape == (6,)


def test_several_attackers_one_model_each_holds_its_share(tmp_path: Path) -> None:
    """The file has the sum: two users of it, or one alone, make the same of it together."""
    kept(tmp_path, rounds=60)
    for strategic in ("4", "3,4"):
        config = configure(attack="model", attack_model=str(tmp_path), strategic_users=strategic)
        problem = build_problem(config)
        made = plan(problem, 4)
        limit = read_limit(tmp_path / "limit.npz")
        total = problem.config.allies(4) * made.gradient
        np.testing.assert_allclose(total.numpy(), limit.gradient, rtol=0, atol=1e-9)


def test_a_report_that_is_lost_in_the_last_round_is_the_one_before(tmp_path: Path) -> None:
    def lose(message: Message, reply: Message) -> Message:
        if message.metadata.group_id == "5":
            del reply.content["report"]
        return reply

    config = configure(**ALLIES, output_dir=str(tmp_path))
    app = tampering(4, lose)
    grid = InProcessGrid(app, nodes=2, run_config=config.flat())
    found = server_app.run(grid, build_problem(config))
    assert found.course.rows[-1]["rejections"] > 0
    assert set(found.course.reported.values()) == {4}
    assert float(found.course.gradient.norm()) > 0.1
