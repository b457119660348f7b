"""Points whose gradient is the one that is wished for, and CGA through them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pfl_flower.attacks.attack import Observation
from pfl_flower.attacks.cga import CounterGradient
from pfl_flower.attacks.gradient_matching import GradientMatching
from pfl_flower.attacks.poisoning.aim import Aim, PoisonedData
from pfl_flower.attacks.poisoning.inverse import Inverse, Points, on_simplex
from pfl_flower.attacks.poisoning.matching import matching
from pfl_flower.objective.losses import LOSSES, Logistic, Softmax
from pfl_flower.objective.models import Linear, Model
from pfl_flower.objective.regularizers import L2
from pfl_flower.objective.two_layer import TwoLayer
from pfl_flower.run.config import parse_config
from pfl_flower.run.problem import Problem, build_problem
from pfl_flower.run.strategic_user import make_attack
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.seeding import generator
from tests.support.runs import configure, play, trajectory

HERE = f"{__name__}:"
SMALL: dict[str, Any] = {
    "dataset": "tests.support.small_images:small_images",
    "model": HERE + "bend",
    "local-solver": "adam",
    "users": 3,
    "points-per-user": "12",
    "strategic-users": "2",
    "nu": 0.01,
    "rounds": 2,
    "evaluate-every": 0,
    "attack": "gradient-matching",
    "attack-options": '{"points": 40}',
}


def bend(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Return a network of 69 parameters that is not convex, and smooth."""
    return nn.Sequential(nn.Flatten(), nn.Linear(20, 3), nn.Tanh(), nn.Linear(3, outputs))


def problem(**keys: Any) -> Problem:
    asked = {**SMALL, **{name.replace("_", "-"): value for name, value in keys.items()}}
    return build_problem(parse_config(asked))


def searcher(model: Model, loss: str, **keys: Any) -> Inverse:
    return Inverse(model=model, loss=LOSSES[loss](), bias=True, **keys)


CASES: dict[str, tuple[Model, str]] = {
    "softmax": (Linear(inputs=5, outputs=3), "softmax"),
    "logistic": (Linear(inputs=5, outputs=1), "logistic"),
    "least-squares": (Linear(inputs=5, outputs=1), "least-squares"),
    "two layers": (TwoLayer(inputs=5, outputs=3, hidden=4), "softmax"),
}
NOTHING = torch.zeros(0, 5, dtype=torch.float64)


def at(model: Model, *, scale: float = 0.3, seed: int = 1) -> Tensor:
    draw = generator(seed, "theta")
    return scale * torch.randn(model.dim, generator=draw, dtype=torch.float64)


def begin(inverse: Inverse, points: int, theta: Tensor, seed: int = 1) -> Points:
    return inverse.start(points, theta, generator(seed, "start"), NOTHING)


def answered(inverse: Inverse, points: Points, seed: int = 3) -> Points:
    """Return points with labels at random, of the loss's kind."""
    draw = generator(seed, "labels")
    labels = torch.rand(points.answers.shape, generator=draw, dtype=torch.float64)
    return replace(points, answers=on_simplex(labels) if labels.shape[1] > 1 else labels)


def by_autograd(inverse: Inverse, theta: Tensor, points: Points) -> Tensor:
    """Return the gradient of the points as a user holds them, by torch's own losses."""
    data, here = inverse.data(points), theta.clone().requires_grad_()
    scores = inverse.model.scores(here[None], data.features[None])[0]
    if isinstance(inverse.loss, Softmax):
        each = functional.cross_entropy(scores, data.labels, reduction="none")
    elif isinstance(inverse.loss, Logistic):
        each = functional.softplus(-data.labels * scores[:, 0])
    else:
        each = 0.5 * (scores[:, 0] - data.labels) ** 2
    assert data.weights is not None
    value = (data.weights * each).sum() + inverse.nu * here.square().sum()
    return torch.autograd.grad(value, here)[0]


def check_valid(inverse: Inverse, points: Points) -> None:
    data = inverse.data(points)
    assert bool(((data.features >= 0) & (data.features <= 1)).all())
    assert bool((data.features[:, -1] == 1).all())
    assert data.weights is not None
    assert bool((data.weights >= 0).all())
    assert float(data.weights.sum()) == pytest.approx(inverse.weight * len(points.pixels))
    if isinstance(inverse.loss, Softmax):
        assert bool((data.labels >= 0).all())
        assert torch.allclose(data.labels.sum(dim=1), data.weights.new_ones(()))
    if isinstance(inverse.loss, Logistic):
        assert bool((data.labels.abs() == 1).all())


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_points_loss(case: str) -> None:
    model, loss = CASES[case]
    inverse, theta = searcher(model, loss, nu=0.3, weight=0.25), at(model)
    points = answered(inverse, begin(inverse, 6, theta))
    check_valid(inverse, points)
    found = inverse.gradient(theta, points).detach()
    assert torch.allclose(found, by_autograd(inverse, theta, points), rtol=1e-10)
    silent = begin(inverse, 6, theta)
    assert torch.allclose(inverse.gradient(theta, silent).detach(), 0.6 * theta, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_that_points_have_is_found_again_within_the_box(case: str) -> None:
    """What other points report can be reported: asked of the search from other features."""
    model, loss = CASES[case]
    inverse, theta = searcher(model, loss, nu=0.1, weight=2.0, steps=400), at(model)
    theirs = answered(inverse, begin(inverse, 10, theta, seed=2))
    wished = by_autograd(inverse, theta, theirs)
    start = begin(inverse, 20, theta)
    before = inverse.judged(theta, wished, start).residual
    found = inverse.search(theta, wished, start)
    assert found.residual < 0.03 * before
    check_valid(inverse, found.points)
    again = by_autograd(inverse, theta, found.points)
    assert torch.allclose(again, found.gradient, rtol=1e-9, atol=1e-12)
    apart = float(torch.linalg.vector_norm(again - wished))
    assert found.residual == pytest.approx(apart, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("case", ["softmax", "logistic"])
def test_of_a_convex_model_it_reaches_what_the_known_data_attack_reaches(case: str) -> None:
    """``matching`` meets the aim; as many points and labels as it needs meet it here as well."""
    model, loss = CASES[case]
    theta, gradient = at(model), at(model, scale=0.5, seed=5)
    if case == "softmax":
        # Of all classes alike nothing can be said.
        gradient = (gradient.view(3, 5) - gradient.view(3, 5).mean(dim=0)).flatten()
    aim = Aim(model=model, loss=LOSSES[loss](), attack_model=theta, gradient=gradient, bias=True)
    known = matching(aim, generator=generator(1, "known"), box=(0.0, 1.0))
    assert known.feasible
    points = 20
    inverse = searcher(model, loss, weight=2 * known.total_weight / points, steps=2000)
    found = inverse.search(theta, gradient, begin(inverse, points, theta))
    data = inverse.data(found.points)
    assert data.weights is not None
    made = PoisonedData.measure(aim, "", data.features, data.labels, data.weights)
    assert made.residual == pytest.approx(found.residual, rel=1e-6, abs=1e-9)
    assert made.residual < 1e-3 * float(torch.linalg.vector_norm(gradient))


def test_few_points_do_not_reach_a_long_gradient_and_the_residual_says_so() -> None:
    """Two points of [0, 1]^4 and a bias move a linear softmax by 2 sqrt(2) sqrt(5) at most."""
    model = Linear(inputs=5, outputs=3)
    inverse, theta = searcher(model, "softmax"), at(model)
    wished = 100 * functional.normalize(at(model, scale=1.0), dim=0)
    found = inverse.search(theta, wished, begin(inverse, 2, theta))
    assert 100 - 2 * 10**0.5 < found.residual < 100


def test_a_search_is_never_worse_than_its_start_or_silence() -> None:
    model = Linear(inputs=5, outputs=3)
    inverse, theta = searcher(model, "softmax", steps=1, sweeps=1), at(model)
    start = answered(inverse, begin(inverse, 4, theta))
    for wished in (inverse.gradient(theta, start).detach(), at(model, scale=1e-3)):
        silent = inverse.silent(theta, start.pixels)
        best = min(inverse.judged(theta, wished, one).residual for one in (start, silent))
        assert inverse.search(theta, wished, start).residual <= best


def test_distributions_are_the_nearest() -> None:
    rows = torch.randn((50, 4), generator=generator(1, "rows"), dtype=torch.float64)
    near = on_simplex(rows)
    assert bool((near >= 0).all())
    assert torch.allclose(near.sum(dim=1), near.new_ones(50))
    # Variational inequality, at the corners: <row - near, corner - near> <= 0.
    apart = rows - near
    assert float((apart.max(dim=1).values - (apart * near).sum(dim=1)).max()) < 1e-12


def test_own_points_are_the_first_where_they_are_in_the_box() -> None:
    model = Linear(inputs=5, outputs=3)
    inverse, theta = searcher(model, "softmax"), at(model)
    own = torch.rand((3, 5), generator=generator(1, "own"), dtype=torch.float64)
    made = inverse.start(6, theta, generator(1, "start"), own).pixels
    assert torch.equal(made[:3], own[:, :4])
    made = inverse.start(6, theta, generator(1, "start"), own + 1).pixels
    assert bool(((made >= 0) & (made <= 1)).all())


def observed(made: Problem, round: int = 1) -> Observation:
    rho = made.initial
    zero = torch.zeros_like(rho)
    return Observation(round=round, rho=rho, eta=0.1, eta_sum=0.0, accepted=zero)


@pytest.mark.parametrize("regularizer", ["squared-l2", "l2", "smooth-l2"])
def test_the_report_is_cgas_up_to_what_the_points_miss(regularizer: str) -> None:
    made = problem(regularizer=regularizer, lam=0.5)
    attack, seen = make_attack(made, 2), observed(made)
    assert isinstance(attack, GradientMatching)
    report, state = attack.update(attack.init(seen.rho), seen)
    wished = made.regularizer.project(attack.pace * (seen.rho - made.target) / seen.eta)
    if regularizer == "smooth-l2":
        wished = 0.45 * wished / torch.linalg.vector_norm(wished)
    missed = float(torch.linalg.vector_norm(report - wished))
    assert missed == pytest.approx(float(state.residual), rel=1e-9)
    assert missed < float(torch.linalg.vector_norm(wished))
    assert float(report @ wished) > 0
    # The model that an honest user would have: its report is what was wished for.
    asked = state.share * wished
    theta = attack.stationary(seen.rho, asked)
    if isinstance(made.regularizer, L2):
        assert torch.equal(theta, seen.rho)
    else:
        assert torch.allclose(made.regularizer.grad_rho(seen.rho, theta), asked, atol=1e-5)
    points = Points(pixels=state.pixels, answers=state.answers)
    again = by_autograd(attack.inverse, theta, points)
    assert torch.allclose(again, report, rtol=1e-8, atol=1e-10)


def test_where_reports_are_slopes_they_are_what_the_honest_code_says_on_the_points() -> None:
    made = problem(personalization="classical", server_lr=0.01)
    attack, seen = make_attack(made, 2), observed(made)
    assert isinstance(attack, GradientMatching)
    report, state = attack.update(attack.init(seen.rho), seen)
    data = attack.inverse.data(Points(pixels=state.pixels, answers=state.answers))
    said = made.population_of([data]).gradient(seen.rho[None])[0]
    assert torch.allclose(said, report, rtol=1e-8, atol=1e-10)


def test_a_wish_beyond_reach_is_shortened() -> None:
    made = problem(personalization="classical", server_lr=0.01, nu=0.0)
    attack = make_attack(made, 2)
    assert isinstance(attack, GradientMatching)
    asked = 1e4 * (made.initial - made.target)
    found, share = attack.match(made.initial, asked, None)
    assert 0 < share < 0.1
    near, whole = attack.match(made.initial, 1e-7 * asked, None)
    assert whole == 1.0
    assert near.residual < 1e-7 * float(torch.linalg.vector_norm(asked))
    assert found.residual < share * float(torch.linalg.vector_norm(asked))


def test_the_same_seed_is_the_same_run_whatever_the_nodes() -> None:
    runs = [play(parse_config({**SMALL, "rounds": 3}), nodes=nodes) for nodes in (1, 3)]
    assert torch.equal(trajectory(runs[0]), trajectory(runs[1]))
    other = play(parse_config({**SMALL, "rounds": 3, "seed": 2}))
    assert not torch.allclose(trajectory(other), trajectory(runs[0]))
    said = runs[0][-1].metrics
    assert (said.poisoned_points, said.poisoned_labels) == (40, 40.0)
    assert said.poisoned_residual > 0


def test_cga_makes_up_for_what_points_missed() -> None:
    """Of a linear model the way that is left shrinks by the pace, 0.9^12 = 0.28 in all."""
    keys = {"model": "linear", "local-solver": "exact", "rounds": 12, "nu": 0.1}
    keys["attack-options"] = '{"points": 80, "weight": 200.0, "pace": 0.1}'
    config = parse_config({**SMALL, **keys})
    made = build_problem(config)
    way = torch.cat([made.initial[None], trajectory(play(config))]) - made.target
    # Of all classes alike no data can say anything.
    way = way.view(len(way), 3, -1)
    gaps = torch.linalg.vector_norm((way - way.mean(dim=1, keepdim=True)).flatten(1), dim=1)
    assert float(gaps[-1]) < 0.3 * float(gaps[0])


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"reduction": "scaled-sum"}, "reduction = scaled-sum: expected sum or mean"),
        ({"server_optimizer": "adam", "server_lr": 0.1}, "estimator = inferred: expected oracle"),
        ({"attack_options": '{"points": 0}'}, "points = 0"),
        ({"attack_options": '{"pace": 1.5}'}, "pace = 1.5"),
        ({"attack_options": '{"weight": 0}'}, "weight = 0"),
        (
            {"equilibrium": True, "model": "linear", "local_solver": "exact"},
            "equilibrium = .*: expected false, unless",
        ),
    ],
)
def test_what_cannot_be_is_one_line(keys: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as error:
        problem(**keys)
    assert "\n" not in str(error.value)


def test_points_of_a_mean_do_not_weigh_more_than_it() -> None:
    made = problem(reduction="mean", attack_options='{"weight": 2.0}')
    with pytest.raises(ConfigError, match=r"weight = 2\.0: expected weight = 1"):
        make_attack(made, 2)


def test_what_somebody_elses_attack_calls_cost_is_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CounterGradient, "cost", 3.0, raising=False)
    for record in play(configure(rounds=2)):
        assert len(record.accepted) == 5 and record.metrics.poisoned_points == 0
