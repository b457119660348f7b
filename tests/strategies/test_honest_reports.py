"""A run counts only if the honest users took part: each that was asked, and some in every round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

import pfl_flower as pfl
from pfl_flower import server_app
from pfl_flower.aggregation.reports import Reason, Rejection
from pfl_flower.aggregation.rows import Rows
from pfl_flower.client_app import app as client_app
from pfl_flower.run.checks import honest_checks
from pfl_flower.run.config import RunConfig
from pfl_flower.run.problem import build_problem
from pfl_flower.transport.broadcasts import unpack_broadcast
from pfl_flower.transport.inprocess import InProcessGrid
from pfl_flower.transport.node_metrics import NodeMetrics
from strategies.round_record import RoundRecord
from strategies.server_state import PastRounds
from tests.support.runs import CPU, configure

NEVER, DESERTED = "honest_users_never_heard", "rounds_without_honest_reports"
Silent = Callable[[int, int], bool]
"""From a round and a user to whether its node has nothing but an error to say."""
JUDGED = {Reason.OUTSIDE_GRAD, Reason.NORM_LIMIT, Reason.OVERFLOW}


def record(
    reason: Reason, *, user: int = 0, strategic: frozenset[int] = frozenset()
) -> RoundRecord:
    """Return a round in which user 1 was accepted and another user was not."""
    return RoundRecord(
        round=1,
        eta=0.1,
        rho=torch.zeros(2),
        accepted=Rows.of({1: torch.ones(2)}),
        rejections=[Rejection(user, reason, "")],
        strategic=strategic,
        metrics=NodeMetrics.merge([]),
    )


@pytest.mark.parametrize("reason", list(Reason))
def test_what_was_judged_implausible_came_and_what_has_no_form_did_not(reason: Reason) -> None:
    past, round = PastRounds.none(3), record(reason)
    past.add(round, 1.0)
    missing = int(reason not in JUDGED)
    assert (round.honest_missing, round.honest_reports) == (missing, 2 - missing)
    assert past.unheard(frozenset()) == missing
    assert past.unheard(frozenset({0})) == 0
    past.add(record(Reason.NORM_LIMIT), 1.0)
    assert past.unheard(frozenset()) == 0
    # Whoever was heard once stays heard.
    past.add(record(Reason.NO_REPLY, user=0), 1.0)
    assert past.unheard(frozenset()) == 0
    own = record(reason, strategic=frozenset({0}))
    assert (own.honest_missing, own.honest_reports) == (0, 1)


def app(silent: Silent) -> ClientApp:
    """Return the client app, but for what some nodes answer in some rounds."""
    made = ClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        asked = unpack_broadcast(message.content, CPU)
        if any(silent(asked.round, user) for user in asked.users):
            return Message(Error(code=2, reason="no"), reply_to=message)
        return client_app(message, context)

    for register in (made.query, made.evaluate):
        register()(client_app)
    return made


def checks(config: RunConfig, silent: Silent, folder: Path | None = None) -> dict[str, float]:
    """Return what the run's checks on honest users say, one user on each node."""
    grid = InProcessGrid(app(silent), nodes=config.users, run_config=config.flat())
    outcome = server_app.run(grid, build_problem(config), folder=folder)
    found = {check.name: check for check in outcome.checks if check.name in (NEVER, DESERTED)}
    failed = any(not check.passed for check in found.values())
    assert failed == any(check.value != 0 for check in found.values())
    if failed:
        assert not outcome.passed
    return {name: float(check.value) for name, check in found.items()}


CASES: dict[str, tuple[dict[str, Any], Silent, float, float]] = {
    "nobody": ({}, lambda t, user: False, 0, 0),
    "one, always": ({}, lambda t, user: user == 2, 1, 0),
    "one, at first": ({}, lambda t, user: user == 2 and t < 6, 0, 0),
    "one, in the end": ({}, lambda t, user: user == 2 and t > 1, 0, 0),
    "all, once": ({}, lambda t, user: t == 3, 0, 1),
    "all honest, always": ({}, lambda t, user: user < 4, 4, 6),
    "the strategic one": ({}, lambda t, user: user == 4, 0, 0),
    "nobody, all judged implausible": ({"max_gradient_norm": 1e-9}, lambda t, user: False, 0, 0),
    "too slow": ({"reply_timeout": 1e-9}, lambda t, user: False, 4, 6),
}


@pytest.mark.parametrize("case", CASES)
def test_silent_users_and_rounds_are_counted(case: str) -> None:
    keys, silent, never, deserted = CASES[case]
    assert checks(configure(**keys), silent) == {NEVER: never, DESERTED: deserted}


def test_who_was_never_asked_is_not_missed() -> None:
    config = configure(participation=0.2, rounds=2, strategic_users="none")
    assert checks(config, lambda t, user: False) == {NEVER: 0, DESERTED: 0}
    # One user is asked a round: two different ones, or one twice, are never heard.
    assert checks(config, lambda t, user: True)[NEVER] in (1, 2)
    assert checks(config, lambda t, user: True)[DESERTED] == 2


def test_where_all_are_strategic_nothing_is_asked_of_the_honest() -> None:
    assert checks(configure(strategic_users="all", attack="sign-flip"), lambda t, user: False) == {}


@pytest.mark.parametrize(
    ("first", "limit", "never"),
    [
        (False, 0.0, 0),
        (True, 0.0, 1),
        # Never accepted, and heard all the same: no report is plausible.
        (False, 1e-9, 0),
    ],
)
def test_a_resumed_run_knows_who_was_heard_before(
    first: bool, limit: float, never: float, tmp_path: Path
) -> None:
    keys = {"checkpoint_every": 3, "output_dir": str(tmp_path), "name": "run"}
    keys["max_gradient_norm"] = limit
    checks(configure(**keys, rounds=3), lambda t, user: first and user == 2, tmp_path / "run")
    again = configure(**keys, rounds=6, resume="auto")
    assert checks(again, lambda t, user: user == 2, tmp_path / "run")[NEVER] == never


def test_rounds_without_the_counts_are_not_taken_for_whole_ones() -> None:
    rows = [{"round": 0.0}, {"round": 1.0, "honest_reports": 3.0, "honest_missing": 0.0}]
    assert [check.passed for check in honest_checks(rows)] == [True, False]


def test_at_a_site_one_who_is_silent_decides_nothing_and_all_do() -> None:
    keys = {"honest_unheard": 1.0, "honest_missing": 1.0}
    for reports, passed in ((3.0, True), (0.0, False)):
        rows = [{"round": 0.0}, {"round": 1.0, "honest_reports": reports, **keys}]
        (check,) = honest_checks(rows, site=True)
        assert (check.name, check.passed) == (DESERTED, passed)


def test_a_run_that_lost_every_honest_reply_fails_whatever_its_preset_claims() -> None:
    small = {"points_per_user": 30, "rounds": 2, "evaluate_every": 0}
    lost = pfl.run("digits", **small, reply_timeout=1e-9)
    assert NEVER in lost.verdict
    assert DESERTED in lost.verdict
    assert pfl.run("digits", **small).passed
