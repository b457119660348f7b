"""Torch modules as models: one vector of parameters, users in batches, and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from pfl_flower.objective import modules
from pfl_flower.objective.local_loss import LocalLoss
from pfl_flower.objective.losses import LOSSES
from pfl_flower.objective.modules import ModuleModel
from tests.support import nets, problems
from tests.support.nets import NETS, made
from tests.support.problems import LossCase
from tests.support.reference import central_difference

USERS, POINTS = 5, 6


def by_hand(model: ModuleModel, theta: Tensor, features: Tensor) -> Tensor:
    """Scores of one user, by the module itself with theta as its parameters."""
    module = copy.deepcopy(model.module).double()
    vector_to_parameters(theta, module.parameters())
    count = torch.Size(model.shape).numel()
    scores: Tensor = module(features[:, :count].reshape(-1, *model.shape))
    return scores


def problem(name: str, case: LossCase, *, seed: int = 1) -> tuple[LocalLoss, Tensor]:
    """Weighted points of users, the last one of weight 0, and their models."""
    factory, shape = NETS[name]
    model, draw = made(factory, shape, case.outputs), problems.generator(seed)
    raw = torch.rand((USERS, POINTS, model.inputs), generator=draw, dtype=torch.float64)
    weights = torch.rand((USERS, POINTS), generator=draw, dtype=torch.float64) + 0.5
    weights[:, -1] = 0.0
    labels = problems.draw_labels(case, USERS, POINTS, seed=draw)
    loss = LocalLoss.build(model, LOSSES[case.name](), raw, labels, weights=weights, nu=0.3)
    theta = model.initial(USERS, draw, torch.float64)
    return loss, theta + 0.3 * problems.normal(USERS, model.dim, seed=draw)


@pytest.fixture(params=[1, 3, 8], ids=lambda width: f"{width} at once")
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Users at once, as on a card; with 3 and 8 of 5 users, batches are filled up."""
    monkeypatch.setattr(modules, "users_at_once", lambda device, activations: request.param)
    return int(request.param)


@pytest.mark.parametrize("name", NETS)
def test_scores_are_those_of_the_module(name: str, width: int) -> None:
    loss, theta = problem(name, LossCase("softmax", outputs=3))
    scores = loss.model.scores(theta, loss.features)
    shared = loss.model.shared_scores(theta, loss.features[0])
    for user in range(USERS):
        expected = by_hand(loss.model, theta[user], loss.features[user])
        problems.close(scores[user], expected.detach(), 1e-12, 1e-12)
        expected = by_hand(loss.model, theta[user], loss.features[0])
        problems.close(shared[user], expected.detach(), 1e-12, 1e-12)


@pytest.mark.parametrize("case", [*problems.LOSSES, *problems.SOFT_LOSSES])
@pytest.mark.parametrize("name", NETS)
def test_gradients_are_those_of_a_loop_over_users(name: str, case: LossCase, width: int) -> None:
    loss, theta = problem(name, case)
    found = loss.gradient(theta)
    for user in range(USERS):
        leaf = theta[user].clone().requires_grad_()
        scores = loss.model._call(leaf, loss.model._points(loss.features[user][None], 1)[0])
        each = loss.loss.values(scores, loss.labels[user])
        total = (loss.weights[user] * each).sum() + 0.3 * leaf @ leaf
        (expected,) = torch.autograd.grad(total, leaf)
        problems.close(found[user], expected, 1e-10, 1e-11)


@pytest.mark.parametrize("name", ["mlp", "cnn", "tied"])
def test_gradients_are_the_derivatives_of_the_values(name: str) -> None:
    loss, theta = problem(name, LossCase("softmax", outputs=3))
    loss, theta = loss.select(slice(1, 2)), theta[1:2]
    numeric = central_difference(lambda t: loss.value(t).sum(), theta)
    problems.close(loss.gradient(theta), numeric, 1e-6, 1e-6)
    value, gradient = loss.value_and_gradient(theta)
    assert torch.equal(value, loss.value(theta)) and torch.equal(gradient, loss.gradient(theta))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NETS)
def test_a_users_bits_do_not_depend_on_the_others(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the processor, where a batch of users would make them depend on the place in it."""
    loss, theta = problem(name, LossCase("softmax", outputs=3))
    loss, theta = loss.to(dtype), theta.to(dtype)
    together = loss.gradient(theta)
    for chosen in ([4], [1, 2], [0, 3, 4]):
        index = torch.tensor(chosen)
        assert torch.equal(loss.select(index).gradient(theta[index]), together[index])


@pytest.mark.parametrize("name", NETS)
def test_blocks_of_points_add_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, theta = problem(name, LossCase("softmax", outputs=3))
    scores, gradient = loss.scores(theta), loss.gradient(theta)
    shared = loss.model.shared_scores(theta, loss.features[0])
    calls, call = [], ModuleModel._call
    monkeypatch.setattr(
        ModuleModel, "_call", lambda self, t, x: calls.append(len(x)) or call(self, t, x)
    )
    monkeypatch.setattr(modules, "POINTS_AT_ONCE", 4)
    problems.close(loss.scores(theta), scores, 1e-12, 1e-12)
    problems.close(loss.gradient(theta), gradient, 1e-12, 1e-12)
    problems.close(loss.model.shared_scores(theta, loss.features[0]), shared, 1e-12, 1e-12)
    assert set(calls) == {4, 2}


@pytest.mark.parametrize("name", NETS)
def test_theta_is_named_parameters_in_their_order(name: str) -> None:
    model = made(*NETS[name], 3)
    start = model.initial(2, problems.generator(3), torch.float64)
    seed = int(torch.randint(2**62, (), generator=problems.generator(3)))
    expected = parameters_to_vector(model.make(seed).parameters()).detach()
    assert torch.equal(start, expected.double().expand(2, -1))
    assert start.shape == (2, model.dim) == (2, sum(p.numel() for p in model.module.parameters()))
    if name != "linear":
        other = model.initial(1, problems.generator(4), torch.float64)
        assert not torch.equal(other[0], start[0])
    start[0] += 1
    assert not torch.equal(start[0], start[1])


def test_frozen_parameters_are_no_part_of_theta_and_stay() -> None:
    model = made(nets.small_cnn, (1, 4, 4), 3)
    names = frozenset({"0.weight", "0.bias", "1.weight"})
    frozen = made(nets.small_cnn, (1, 4, 4), 3, frozen=names)
    assert frozen.dim == model.dim - 2 * 25 - 2 - 2
    draw = problems.generator(5)
    features = torch.rand(4, 17, generator=draw, dtype=torch.float64)
    theta = frozen.initial(1, draw, torch.float64) + 0.1
    whole = parameters_to_vector(model.module.parameters()).detach().double()[None]
    whole[:, 54:] = theta
    assert torch.equal(frozen.scores(theta, features), model.scores(whole, features))
    loss = LocalLoss.build(
        frozen, LOSSES["softmax"](), features[None], torch.tensor([[0, 1, 2, 0]]), nu=0.0
    )
    numeric = central_difference(lambda t: loss.value(t).sum(), theta)
    problems.close(loss.gradient(theta), numeric, 1e-6, 1e-6)


def test_what_the_cache_knows_a_model_by() -> None:
    """A target is learned anew when what it depends on is another, and not otherwise."""
    model = made(nets.mlp, (7,), 3)
    assert repr(model) == repr(made(nets.mlp, (7,), 3))
    others = [
        made(nets.mlp, (7,), 2),
        made(nets.linear, (7,), 3),
        made(nets.mlp, (7,), 3, frozen=frozenset({"1.bias"})),
        made(lambda s, c: nets.mlp(s, c, hidden=4), (7,), 3),
    ]
    assert len({repr(one) for one in (model, *others)}) == 5
    pretrained = made(nets.mlp, (7,), 3, frozen=frozenset({"1.bias"}))
    dict(pretrained.module.named_parameters())["1.bias"].data += 1
    assert repr(pretrained) not in {repr(one) for one in others}


def test_pretrained_batch_norm_keeps_its_statistics() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module(torch.randn(50, 3, generator=problems.generator(1)) * 3 + 1)
    model = made(lambda shape, outputs: copy.deepcopy(module).eval(), (3,), 2, bias=False)
    features = problems.normal(2, 6, 3, seed=problems.generator(2))
    theta = parameters_to_vector(module.parameters()).detach().double().repeat(2, 1)
    expected = copy.deepcopy(module).double().eval()(features[1]).detach()
    problems.close(model.scores(theta, features)[1], expected, 1e-12, 1e-12)
