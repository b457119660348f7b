"""An attack reports: twice, from its state of the round before, as a strategic user's node asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pfl_flower.attacks.attack import Attack, Observation
from pfl_flower.attacks.poisoning.aim import PoisonedData
from pfl_flower.attacks.table import ATTACKS, knowledge_of
from pfl_flower.objective.user_data import UserData
from pfl_flower.run.memory import check_rows
from pfl_flower.run.problem import Problem
from pfl_flower.run.step_sizes import server_step_sizes
from pfl_flower.run.strategic_user import StrategicUser
from pfl_flower.run.trial_poisoning import small_aim, small_data
from pfl_flower.run.trial_regularizer import try_inverse
from pfl_flower.run.tried import Tried, few_points, made_up

USERS = 4
"""Most strategic users whose attack is tried: their settings differ in id and target alone."""
FEW = 20
"""Most honest reports that are made up: an attack takes any number."""
TAKEN = "report"
"""The harness keeps a user's last report under this name, beside the attack's state."""


@dataclass(frozen=True)
class Rehearsal(StrategicUser):
    """What an attack is made of in a trial: made-up vectors where the true ones cost time."""

    @property
    def target(self) -> Tensor:
        """Some target, ``(d,)``; none is learned."""
        return made_up(self.problem, self.problem.model.dim, words=("target", self.user))

    @property
    def attack_model(self) -> Tensor:
        """Some theta_spade, ``(d,)``, of a regulariser that can be asked for one."""
        try_inverse(self.problem)
        return made_up(self.problem, self.problem.model.dim, words=("attack model", self.user))

    @property
    def fabricated(self) -> PoisonedData:
        """Some points, which hold theta_spade."""
        aim = small_aim(self.problem)
        data = small_data(self.problem.in_double)
        assert data.weights is not None
        return PoisonedData.measure(aim, "trial", data.features, data.labels, data.weights)

    @property
    def held(self) -> UserData:
        """A few points."""
        return few_points(self.problem)

    @property
    def drawn(self) -> tuple[int, ...]:
        """Ids of ``attack-draws`` datasets, if the memory holds so many."""
        points = self.problem.size(self.settings.users)
        check_rows("attack-draws", self.settings.attack_draws, points * self.problem.source.inputs)
        return super().drawn


def try_attack(problem: Problem) -> None:
    """Make the run's attack for a few of its strategic users, and have it report twice.

    Raises
    ------
    ConfigError
        If it raises, or if its state is none that a node's memory keeps, or its report none that
        the server would take for one.
    """
    config = problem.config
    if ATTACKS.row(config.attack).gives == "reports":
        for user in sorted(config.strategic())[:USERS] or [0]:
            _try_user(problem, user)


def _try_user(problem: Problem, user: int) -> None:
    config, tried = problem.config, Tried(ATTACKS.point, problem.config.attack)
    with tried.working("a factory"):
        attack = ATTACKS.make(config.attack, config.attack_options, Rehearsal(problem, user))
    ATTACKS.expect(config.attack, attack, Attack)
    rows, sizes = _surrogates(problem, tried, attack), server_step_sizes(problem)
    rho = made_up(problem, problem.model.dim, words=("rho", user))
    accepted, eta_sum, kept = torch.zeros_like(rho), 0.0, None
    for round in (1, 2):
        others = made_up(problem, problem.model.dim, words=("others", user))
        eta = sizes.at(round) * config.sample_scale()
        seen = Observation(
            round=round,
            rho=rho,
            eta=eta,
            eta_sum=eta_sum,
            accepted=accepted,
            honest_sum=others if config.estimator == "oracle" and round > 1 else None,
            surrogates=rows,
            **_told(problem, user),
        )
        accepted, kept = _report(problem, tried, attack, seen, kept)
        rho, eta_sum = rho - eta * (accepted + others), eta_sum + eta


def _told(problem: Problem, user: int) -> dict[str, Any]:
    """Return what an omniscient attacker is told besides: made-up reports, and how many it is."""
    config = problem.config
    if knowledge_of(config) != "omniscient":
        return {}
    honest = max(1, config.sample_size() - len(config.strategic()))
    rows = made_up(problem, min(honest, FEW), problem.model.dim, words=("honest", user))
    return {"honest": problem.plausible.project(rows), "coalition": max(1, config.allies(user))}


def _surrogates(problem: Problem, tried: Tried, attack: Attack[Any]) -> Tensor | None:
    """Return made-up reports on the datasets that an attack names, None if it names none."""
    datasets = getattr(attack, "datasets", ())
    if not isinstance(datasets, tuple) or any(type(one) is not int or one < 0 for one in datasets):
        raise tried.refusal(f"datasets that are a tuple of ids, and they are {datasets!r:.60}")
    if not datasets:
        return None
    rows = made_up(problem, len(datasets), problem.model.dim, words=("surrogates",))
    return problem.plausible.project(rows)


def _report(
    problem: Problem,
    tried: Tried,
    attack: Attack[Any],
    seen: Observation,
    kept: dict[str, Tensor] | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return an attack's report, projected on GRAD, and its state, as a node remembers it."""
    before = seen.rho.clone(), seen.accepted.clone()
    with tried.working("an init"):
        start = attack.init(seen.rho)
    fields = _memory(tried, start)
    if kept is not None:
        if kept.keys() != fields.keys():
            raise tried.refusal(
                f"one state, and init's has {_names(fields)} and update's {_names(kept)}"
            )
        start = start._replace(**kept)
    with tried.working("an update"):
        answer = attack.update(start, seen)
    if not isinstance(answer, tuple) or len(answer) != 2:
        kind = type(answer).__name__
        raise tried.refusal(f"an update that returns a report and a state, and it returns a {kind}")
    report = tried.tensor("a report", answer[0], tuple(seen.rho.shape), seen.rho)
    after = _memory(tried, answer[1])
    if not (torch.equal(seen.rho, before[0]) and torch.equal(seen.accepted, before[1])):
        raise tried.refusal("an update that leaves rho and accepted as they are")
    return problem.plausible.project(report), after


def _memory(tried: Tried, state: object) -> dict[str, Tensor]:
    """Return the fields of a state that a node's memory can keep between rounds."""
    fields = tried.memory(state)
    if TAKEN in fields:
        raise tried.refusal(f"a state without a field called {TAKEN}, which the harness keeps")
    return fields


def _names(fields: dict[str, Tensor]) -> str:
    return ", ".join(fields) or "no field"
