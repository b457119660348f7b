"""What a run names of one's own is tried before round 1: every way to be wrong is one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.__main__ import NO_VERDICT, main
from experiments.running import engines
from pfl_flower import api, server_app
from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.presets import preset, preset_names
from pfl_flower.run.problem import build_problem
from pfl_flower.run.trial import check_before, try_plugins
from pfl_flower.run.trial_attack import Rehearsal
from pfl_flower.support import hardware
from pfl_flower.support.errors import ConfigError, DataError
from tests.support.runs import configure

ATTACK = """
from typing import NamedTuple
import torch

class Nothing(NamedTuple): ...

class Good:
    seen = []
    def __init__(self, setup): self.setup = setup
    def init(self, rho): return Nothing()
    def update(self, state, seen):
        Good.seen.append(seen)
        return -seen.rho, state

class NoSetup:
    def __init__(self): pass

class RaisesMaking(Good):
    def __init__(self, setup): raise ValueError("no")

class RaisesInit(Good):
    def init(self, rho): return rho[10_000]

class RaisesUpdate(Good):
    def update(self, state, seen): raise LookupError("lost\\n\\x1b[31m")

class RaisesLater(Good):
    def update(self, state, seen):
        if seen.round == 2: raise RuntimeError("second round")
        return seen.rho, state

class Exits(Good):
    def update(self, state, seen): raise SystemExit(3)

class Short(Good):
    def update(self, state, seen): return seen.rho[1:], state

class Single(Good):
    def update(self, state, seen): return seen.rho.float(), state

class Undefined(Good):
    def update(self, state, seen): return seen.rho / 0 * 0, state

class Numbers(Good):
    def update(self, state, seen): return seen.rho.tolist(), state

class Alone(Good):
    def update(self, state, seen): return seen.rho

class Absent(Good):
    def update(self, state, seen): return None

class Moves(Good):
    def update(self, state, seen): return seen.rho.zero_(), state

class Dict(Good):
    def init(self, rho): return {"rho": rho}

class Plain(NamedTuple):
    count: object

class Counts(Good):
    def init(self, rho): return Plain(0)

class Half(Good):
    def init(self, rho): return Plain(rho.bfloat16())

class Reporting(NamedTuple):
    report: torch.Tensor

class Taken(Good):
    def init(self, rho): return Reporting(rho)

class Changes(Good):
    def init(self, rho): return Plain(rho)
    def update(self, state, seen): return seen.rho, Nothing()

class Datasets(Good):
    datasets = [5, 6]

class Remembers(Good):
    def init(self, rho): return Plain(torch.zeros(()))
    def update(self, state, seen):
        if float(state.count) != seen.round - 1: raise ValueError(f"{state} in {seen.round}")
        return seen.rho, Plain(state.count + 1)

class NeedsModel(Good):
    def __init__(self, setup): self.model = setup.attack_model

class OutOfReach(Good):
    def __init__(self, setup): self.drawn = setup.drawn

class Draws(Good):
    def update(self, state, seen): return torch.randn(len(seen.rho)).to(seen.rho), state

def other(setup):
    from pfl_flower.attacks.other_data import OtherData
    return OtherData(data=setup.relabelled)
"""
OTHERS = """
import math
from dataclasses import dataclass, replace
import torch
from pfl_flower.attacks.poisoning.aim import PoisonedData
from pfl_flower.objective.models import Model
from pfl_flower.objective.regularizers import SquaredL2, SmoothL2

def first(rows): return rows[0]
def raising(rows): return rows @ rows
def short(rows): return rows[0, 1:]
def single(rows): return rows[0].float()
def undefined(rows): return rows.sum(0) / 0
def absent(rows): return None
def changing(rows): return rows.mul_(2).sum(0)

class Infinite(SquaredL2):
    def envelope_smoothness(self, num_users): return math.inf
class Zero(SquaredL2):
    def envelope_smoothness(self, num_users): return 0.0
class Undefined(SmoothL2):
    def envelope_smoothness(self, num_users): return math.nan
class Unknown(SquaredL2):
    def envelope_smoothness(self, num_users): raise NotImplementedError("no L")
class NoInverse(SquaredL2):
    def inverse_slope(self, slope): raise NotImplementedError
class WrongInverse(SquaredL2):
    def inverse_slope(self, slope): return slope / self.lam
class Doubled(SmoothL2):
    def weight(self, r): return 2 * super().weight(r)
    def profile(self, r): return 2 * super().profile(r)
class Unlike(SquaredL2):
    def weight(self, r): return super().weight(r) / 2
class Flat(SquaredL2):
    def profile(self, r): return r.sum()
class NoRadius(SmoothL2):
    @property
    def radius(self): return -1.0
class Raises(SquaredL2):
    def second(self, r): return r[10_000]
class Fast(SquaredL2):
    def profile(self, r): return self.lam * torch.exp(r * r)
    def weight(self, r): return 2 * self.lam * torch.exp(r * r)
    def second(self, r): return 2 * self.lam * torch.exp(r * r) * (1 + 2 * r * r)

@dataclass(frozen=True)
class Scaled(Model):
    @property
    def dim(self): return self.inputs * self.outputs
    def scores(self, theta, features):
        return features @ theta.view(-1, self.outputs, self.inputs).mT
    def initial(self, users, generator, dtype): return torch.zeros((users, self.dim), dtype=dtype)
class NoDim(Scaled):
    @property
    def dim(self): return 0.5
class Elsewhere(Scaled):
    def initial(self, users, generator, dtype): return torch.zeros(self.dim, dtype=dtype)
class Raising(Scaled):
    def scores(self, theta, features): return features @ theta
class Mixed(Scaled):
    def scores(self, theta, features): return super().scores(theta, features).sum(0)
class Steps(Scaled):
    def scores(self, theta, features): return super().scores(theta.detach().double(), features)
class Hidden(Scaled):
    def scores(self, theta, features):
        return torch.from_numpy(super().scores(theta, features).numpy())

def good(aim, recipe):
    queries = recipe.queries(aim)
    assert len(queries) <= 24
    labels = torch.where(torch.arange(len(queries)) % 2 == 0, 1, -1)
    return PoisonedData.measure(aim, "good", queries, labels, queries.new_ones(len(queries)))
def attained(aim, recipe):
    data = recipe.source.draw(0, 12, recipe.settings.seed)
    weights = torch.full((len(data.labels),), 1 / len(data.labels), dtype=torch.float64)
    made = PoisonedData.measure(aim, "theirs", data.features, data.labels, weights)
    if not made.feasible: raise ValueError("residual")
    return made
def nothing(aim, recipe): return None
def labels(aim, recipe): return replace(good(aim, recipe), labels=torch.full((24,), 0))
def fewer(aim, recipe): return replace(good(aim, recipe), features=torch.ones(3, 2))
def weights(aim, recipe): return replace(good(aim, recipe), weights=torch.full((24,), -1.0))
def lost(aim, recipe): return replace(good(aim, recipe), features=torch.full((24, 6), math.nan))
def breaks(aim, recipe): raise ValueError("cannot")
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, code in {"my_attack": ATTACK, "mine": OTHERS}.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("my_attack", "mine"):
        sys.modules.pop(name, None)


def line(text: str, code: str) -> str:
    return str(code[: code.index(text)].count("\n") + 1)


def attack(name: str, said: str, at: str = "", **keys: Any) -> Any:
    """Return a row; LINE in what is said is where the plug-in's code says ``at``."""
    said = said.replace("LINE", line(at, ATTACK)) if at else said
    message = f"attack = my_attack:{name}: expected {said}"
    return pytest.param({"attack": f"my_attack:{name}", **keys}, message, id=f"attack {name}")


def own(point: str, name: str, said: str, at: str = "", **keys: Any) -> Any:
    said = said.replace("LINE", line(at, OTHERS)) if at else said
    message = f"{point} = mine:{name}: expected {said}"
    return pytest.param({point: f"mine:{name}", **keys}, message, id=f"{point} {name}")


def row(said: str, **keys: Any) -> Any:
    return pytest.param(keys, said, id=said[:60])


ADAM = {"dataset": "digits", "local_solver": "adam", "server_lr": 0.05, "points_per_user": "20"}
DATA = {"attack": "data"}
NOT_CALLABLE = "expected a class or a function, and it is a float"
REFUSED = [
    row("attack = my_atack:Opposite: expected something importable (ModuleNotFoundError: No modu",
        attack="my_atack:Opposite"),
    attack("NoSetup", "a class or a function of setup"),
    attack("RaisesMaking", "a factory that works (my_attack.py:LINE: ValueError: no)", '"no"'),
    attack("RaisesInit", "an init that works (my_attack.py:LINE: IndexError: index 10", "10_000"),
    attack("RaisesUpdate", r"an update that works (my_attack.py:LINE: LookupError: lost \x1b[31m)",
           "LookupError"),
    attack("RaisesLater", "an update that works (my_attack.py:LINE: RuntimeError: s", '"second'),
    attack("Exits", "an update that works (my_attack.py:LINE: SystemExit: 3)", "SystemExit"),
    attack("Short", "a report of shape (6,), and it is (5,)"),
    attack("Single", "a report in torch.float64, and it is torch.float32"),
    attack("Undefined", "a report of finite numbers"),
    attack("Numbers", "a report that is a tensor, and it is a list"),
    attack("Alone", "an update that returns a report and a state, and it returns a Tensor"),
    attack("Absent", "an update that returns a report and a state, and it returns a NoneType"),
    attack("Moves", "an update that leaves rho and accepted as they are"),
    attack("Dict", "a state that is a NamedTuple of tensors, and it is a dict"),
    attack("Counts", "a state of tensors, and its count is a int"),
    attack("Half", "a state of tensors that can be kept, and its count cannot (TypeError"),
    attack("Taken", "a state without a field called report, which the harness keeps"),
    attack("Changes", "one state, and init's has count and update's no field"),
    attack("Datasets", "datasets that are a tuple of ids, and they are [5, 6]"),
    attack("other", "a pfl_flower.attacks.attack.Attack, and it made a OtherData"),
    row("regularizer = mine:NoInverse: expected an inverse_slope, which this attack needs, that",
        attack="my_attack:NeedsModel", regularizer="mine:NoInverse"),
    row("attack-draws = 1000000000: expected at most ", attack="my_attack:OutOfReach",
        attack_draws=10**9),
    row("attack-draws = 1000000000: expected at most ", attack="min-max", attack_draws=10**9),
    row("attack-model = /nope: expected exact, or the folder of a CGA run with a limit.npz (File",
        attack="model", attack_model="/nope"),
    row("attack-model = five: expected a run of 6 parameters, and it has 5",
        attack="model", attack_model="five"),
    row("attack-model = five: expected a run of 6 parameters, and it has 5",
        **DATA, attack_model="five"),
    row("attack-model = empty: expected exact, or the folder of a CGA run with a limit.npz (",
        attack="model", attack_model="empty"),
    row("attack-model = lost: expected a run that ended in finite numbers",
        **DATA, attack_model="lost"),
    row("poisoning = nomod:f: expected something importable (ModuleNotFoundError", **DATA,
        poisoning="nomod:f"),
    row("poisoning = nomod:f: expected auto, unless attack = data", poisoning="nomod:f"),
    row("poisoning = math:pi: " + NOT_CALLABLE, **DATA, poisoning="math:pi"),
    row("poisoning-points = 1000000000: expected at most ", **DATA, poisoning="sampling",
        poisoning_points=10**9),
    row("poisoning-points = 1000000000: expected at most ", **DATA, poisoning="mine:good",
        poisoning_points=10**9),
    own("poisoning", "nothing", "a pfl_flower.attacks.poisoning.aim.PoisonedData, and it made a N",
        **DATA),
    own("poisoning", "labels", "labels 1 and -1", **DATA),
    own("poisoning", "fewer", "a row of 6 features for each label, and they are (3, 2) for 24",
        **DATA),
    own("poisoning", "weights", "no negative weight, and there is -1", **DATA),
    own("poisoning", "lost", "features and weights that are finite numbers in floating point",
        **DATA),
    own("poisoning", "breaks",
        "a factory that works (mine.py:LINE: ValueError: cannot)", '"cannot"', **DATA),
    row("aggregation = math:pi: " + NOT_CALLABLE, aggregation="math:pi"),
    row("aggregation = json:loads: expected a rule that works (", aggregation="json:loads"),
    own("aggregation", "raising", "a rule that works (mine.py:LINE: Run", "rows @ rows"),
    own("aggregation", "short", "a direction of shape (6,), and it is (5,)"),
    own("aggregation", "single", "a direction in torch.float64, and it is torch.float32"),
    own("aggregation", "undefined", "a direction of finite numbers"),
    own("aggregation", "absent", "a direction that is a tensor, and it is a NoneType"),
    row("aggregation-tolerance = 2: expected empty, for mine:first, which has no parameter tol",
        aggregation="mine:first", aggregation_tolerance=2),
    own("aggregation", "changing", "a rule that leaves the rows as they are"),
    row("regularizer = math:pi: " + NOT_CALLABLE, regularizer="math:pi"),
    row("regularizer-options = : s: expected a value, and it is missing", regularizer="json:loads"),
    row("server-lr = auto: expected a number, as regularizer = mine:Infinite gives no step size",
        regularizer="mine:Infinite"),
    row("server-lr = auto: expected a number, as regularizer = mine:Zero gives no step size",
        regularizer="mine:Zero"),
    row("server-lr = auto: expected a number, as regularizer = mine:Undefined gives no step",
        regularizer="mine:Undefined"),
    own("regularizer", "Unknown", "an envelope_smoothness that works (mine.py:LINE: NotImpl",
        '"no L"'),
    row("server-lr = auto: expected a number, as regularizer = experiments.theory.own_regularizer:"
        "Quartic gives no step size (its envelope_smoothness is inf)",
        regularizer="experiments.theory.own_regularizer:Quartic"),
    row("server-lr = 1e-300: expected one with which rho moves in every round, and eta is 0 in rou",
        server_lr=1e-300, server_lr_decay=1e-10),
    own("regularizer", "NoInverse", "an inverse_slope, which this attack needs, that works (mine.p",
        attack="model"),
    own("regularizer", "WrongInverse", "an inverse_slope, which this attack needs, and of the sl",
        **DATA),
    own("regularizer", "Doubled", "gradients, and projections, that its GRAD contains"),
    own("regularizer", "Unlike", "a weight that is the slope of the profile over r, and at r = "),
    own("regularizer", "Flat", "a value of shape (3,), and it is ()"),
    own("regularizer", "NoRadius", "0 <= kink <= radius > 0, and they are 0 and -1"),
    own("regularizer", "Raises", "a second derivative that works (mine.py:LINE: Ind",
        "r[10_000]"),
    row("model = math:pi: " + NOT_CALLABLE, **ADAM, model="math:pi"),
    own("model", "NoDim", "a whole number dim above 0, and it is 0.5", **ADAM),
    own("model", "Elsewhere", "a start of shape (1, 650), and it is (650,)", **ADAM),
    own("model", "Raising", "scores that works (mine.py:LINE: ", "features @ theta\n", **ADAM),
    own("model", "Mixed", "scores of shape (2, 12, 10), and it is (12, 10)", **ADAM),
    own("model", "Hidden", "a derivative of scores that works (mine.py:", **ADAM),
    row("dataset = os:getcwd: expected a class or a function of spec", dataset="os:getcwd",
        target="auto"),
    row("dataset = math:pi: " + NOT_CALLABLE, dataset="math:pi"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "said"), REFUSED)
def test_what_is_wrong_is_one_line_before_round_1(
    keys: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """There is no grid: a run that began would end in an exception of another kind."""
    for name, numbers in {"five": np.ones(5), "lost": np.full(6, np.nan)}.items():
        (tmp_path / name).mkdir()
        np.savez(
            tmp_path / name / "limit.npz",
            version=2,
            rho=numbers,
            gradient=numbers,
            users=[4],
            rounds=[1],
        )
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/limit.npz").touch()
    with pytest.raises((ConfigError, DataError)) as caught:
        server_app.run(None, build_problem(configure(**keys)))  # type: ignore[arg-type]
    assert str(caught.value).startswith(said)
    assert str(caught.value).isprintable()


ACCEPTED: dict[str, dict[str, Any]] = {
    "an attack": {"attack": "my_attack:Good"},
    "an attack that counts its rounds": {"attack": "my_attack:Remembers"},
    "an attack that asks for a model": {"attack": "my_attack:NeedsModel"},
    "one whose regulariser nobody inverts": {"regularizer": "mine:NoInverse"},
    "a regulariser without smoothness, a number": {"regularizer": "mine:Infinite", "server_lr": 1},
    "a regulariser that grows fast": {"regularizer": "mine:Fast", "server_lr": 0.01},
    "a rule": {"aggregation": "mine:first"},
    "a model": {**ADAM, "model": "mine:Scaled"},
    "a poisoning": {**DATA, "poisoning": "mine:good", "poisoning_points": 10_000},
    "a poisoning that needs an aim that data meet": {**DATA, "poisoning": "mine:attained"},
    "nobody strategic": {"attack": "my_attack:Good", "strategic_users": "none"},
    "everybody strategic": {"attack": "my_attack:Good", "strategic_users": "all"},
    "in single precision": {**ADAM, "attack": "my_attack:Good", "dtype": "float32"},
    "the oracle": {"estimator": "oracle"},
    "surrogates": {"attack": "min-max"},
    "the model attack": {"attack": "model"},
    "the model attack, in a ball": {"attack": "model", "regularizer": "smooth-l2"},
    "a fixed number that decays": {"server_lr": 0.5, "server_lr_decay": 0.5, "rounds": 900},
    **{
        f"a regulariser of the theory's, {name}": {
            "regularizer": f"experiments.theory.own_regularizer:{name}",
            "server_lr": 0.01,
            "attack": "model",
        }
        for name in ("Quartic", "LogCosh", "LogGrowth")
    },
    "the regulariser of the examples": {
        "regularizer": "experiments.examples.own_regularizer:Huber",
        "regularizer_options": '{"delta": 0.377}',
    },
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_works_is_not_refused_and_nothing_is_worked_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = build_problem(configure(**ACCEPTED[name]))
    monkeypatch.setattr(type(problem), "_learn", None)
    monkeypatch.setattr("pfl_flower.run.attack_plans._plan", None)
    monkeypatch.setattr("pfl_flower.solvers.population.Population.solve", None)
    try_plugins(problem)


def test_an_attack_sees_what_it_will_see_in_a_run() -> None:
    config = configure(attack="my_attack:Good", participation=0.5, participation_rescale=True)
    problem = build_problem(config)
    try_plugins(problem)
    first, second = sys.modules["my_attack"].Good.seen
    sys.modules["my_attack"].Good.seen = []
    api.run(**{key.replace("-", "_"): value for key, value in config.flat().items()})
    _, _, real, *_ = sys.modules["my_attack"].Good.seen
    assert (first.round, second.round, first.eta_sum, second.eta_sum) == (1, 2, 0.0, first.eta)
    assert first.eta == real.eta
    assert not first.accepted.any() and torch.equal(second.accepted, -first.rho)
    for seen in (first, second):
        assert (seen.rho.shape, seen.rho.dtype) == (real.rho.shape, real.rho.dtype)
        assert (seen.honest_sum, seen.surrogates) == (real.honest_sum, real.surrogates)


def test_a_trial_takes_nothing_from_the_run() -> None:
    """An attack that draws from the global generator draws what it would have drawn."""
    keys = {"attack": "my_attack:Draws", "rounds": 2}
    problem = build_problem(configure(**keys))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    try_plugins(problem)
    assert torch.equal(torch.rand(1), expected)


def test_a_poisoning_is_looked_at_again_when_it_is_meant() -> None:
    """What is right for few points and wrong for many is one line in the node's error."""
    from pfl_flower.run.attack_plans import fabricate

    problem = build_problem(configure(**DATA, poisoning="mine:fewer", poisoning_points=24))
    with pytest.raises(ConfigError, match="poisoning = mine:fewer: expected a row of 6 features"):
        fabricate(problem, 4)


def test_the_memory_decides_how_many_points_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = build_problem(configure(**DATA, poisoning="sampling", poisoning_points=1000))
    rows = 4 * 8 * (6 + 1)
    for memory, refused in ((1000 * rows, False), (1000 * rows - 1, True), (None, False)):
        monkeypatch.setattr("pfl_flower.run.memory.memory_limit", lambda m=memory: m)
        if refused:
            with pytest.raises(ConfigError, match="poisoning-points = 1000: expected at most 999"):
                try_plugins(problem)
        else:
            try_plugins(problem)


def test_a_container_may_have_less_memory_than_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(hardware, "GROUP_LIMITS", (limit, tmp_path / "absent"))
    machine = hardware.memory_limit()
    assert machine is not None
    for text, expected in (("4096\n", 4096), ("max\n", machine), (f"{2**63}", machine)):
        limit.write_text(text)
        assert hardware.memory_limit() == expected


def test_a_rehearsal_gives_all_that_an_attack_may_ask_for() -> None:
    for keys in ({}, ADAM):
        problem = build_problem(configure(**keys))
        setup, dim = Rehearsal(problem, 4), problem.model.dim
        assert setup.target.shape == setup.attack_model.shape == (dim,)
        assert setup.fabricated.feasible
        drawn = setup.relabelled
        assert drawn.features.shape == (len(drawn.labels), problem.source.inputs)
        assert (setup.own, setup.coalition) == ((4,), 1)
    # Which attack may draw datasets, or ask for the rule, is its row's matter.
    setup = Rehearsal(build_problem(configure(attack="rule-aware")), 4)
    assert (len(setup.drawn), len(setup.stand_ins(2)), setup.allies) == (5, 8, 1)
    assert setup.rule(setup.target.repeat(2, 1)).shape == setup.target.shape


ASKED = ["--set", "attack=my_attack:RaisesUpdate", "rounds=2", "points-per-user=20"]


@pytest.mark.parametrize("engine", ["inprocess", "simulation"])
def test_our_command_ends_before_flower_begins(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("Flower was started")

    monkeypatch.setattr(engines.subprocess, "run", started)
    words = ["run", "digits-l2", "--engine", engine, "--output", str(tmp_path / "out"), *ASKED]
    assert main(words) == NO_VERDICT
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("attack = my_attack:RaisesUpdate: expected an update that works (")


def test_a_sweep_ends_before_its_first_cell(tmp_path: Path) -> None:
    over = {"attack": ["my_attack:Good", "my_attack:Short"]}
    keys = {key.replace("-", "_"): value for key, value in configure().flat().items()}
    keys = {key: value for key, value in keys.items() if key not in (*over, "name", "seed")}
    del keys["output_dir"], keys["resume"]
    with pytest.raises(ConfigError, match="attack = my_attack:Short: expected a report of shape"):
        api.sweep(None, over, output=tmp_path / "out", progress=False, **keys)
    assert not (tmp_path / "out").exists()


def test_the_presets_of_digits_pass_their_trials() -> None:
    for name in preset_names():
        if name.startswith("digits-") and not name.endswith("-honest"):
            config: RunConfig = parse_config({**preset(name), "points-per-user": "20"})
            check_before(config)
