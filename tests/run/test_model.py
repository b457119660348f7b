"""Models of one's own in whole runs: torch modules by name and as objects, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pfl_flower as pfl
from pfl_flower.attacks import targets
from pfl_flower.data.sources import Images
from pfl_flower.data.spec import DataSpec
from pfl_flower.data.synthetic import Synthetic
from pfl_flower.data.table import PARTITIONS
from pfl_flower.objective import modules
from pfl_flower.objective.models import Linear
from pfl_flower.objective.modules import ModuleModel
from pfl_flower.objective.networks import cnn
from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.problem import build_problem
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.seeding import generator
from tests.support import nets
from tests.support.runs import play, trajectory

KEYS: dict[str, Any] = {
    "dataset": "digits",
    "points-per-user": "30,20",
    "strategic-users": "none",
    "local-solver": "adam",
    "rounds": 3,
    "evaluate-every": 0,
}
HERE = __name__


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target need not be learned well to be aimed at."""
    monkeypatch.setattr(targets, "STEPS", 60)


def configure(model: object, **changes: Any) -> RunConfig:
    spelled = {key.replace("_", "-"): value for key, value in changes.items()}
    return parse_config({**KEYS, "model": model, **spelled})


def wide(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """The network by name, as a run configuration writes it."""
    return nets.mlp(shape, outputs, hidden=9)


ROWS: dict[str, dict[str, Any]] = {
    "linear": {"model": nets.linear},
    "mlp": {"model": wide},
    "cnn": {"model": "cnn", "model-options": '{"channels": 2}'},
    "an object": {"model": nets.mlp((1, 8, 8), 10)},
    "frozen": {"model": wide, "model-frozen": "1,2.weight"},
    "minibatches": {"model": wide, "batch-size": 4, "local-steps": 3},
    "sgd, a sample, chunks": {
        "model": nets.small_cnn,
        "local-solver": "sgd",
        "participation": 0.6,
        "chunk-users": 2,
    },
    "users who differ": {
        "model": "cnn",
        "model-options": '{"channels": 2}',
        "partition": "dirichlet",
        "partition-alpha": 0.3,
        "points-per-user": "",
    },
    "sign-flip": {"model": wide, "attack": "sign-flip", "strategic-users": "10"},
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ROWS)
def test_the_same_trajectory_whatever_the_nodes(name: str, dtype: str) -> None:
    config = parse_config({**KEYS, **ROWS[name], "dtype": dtype})
    runs = [trajectory(play(config, nodes=nodes)) for nodes in (1, 4, 11)]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0][0], runs[0][-1])
    assert bool(torch.isfinite(runs[0]).all())


@pytest.mark.parametrize("dataset", ["digits", "synthetic-logistic", "synthetic-linear"])
def test_a_linear_module_is_the_built_in_linear_model(dataset: str) -> None:
    """Of images, whose constant feature makes the bias, and of vectors, which have none."""

    def bare(shape: tuple[int, ...], outputs: int) -> nn.Module:
        layer = nn.Linear(math.prod(shape), outputs, bias=dataset == "digits")
        for value in layer.parameters():
            nn.init.zeros_(value)
        return nn.Sequential(nn.Flatten(), layer)

    # Adam would divide by gradients that are 0 but for their rounding.
    keys = {"dataset": dataset, "local_steps": 2, "local_solver": "sgd", "local_lr": 0.01}
    built_in, module = (play(configure(model, **keys))[-1].rho for model in ("linear", bare))
    if dataset == "digits":
        # theta is [vec(W), b] of a module, and row by row [W, b] of the built-in model.
        module = torch.cat([module[:640].view(10, 64), module[640:, None]], dim=1).reshape(-1)
    assert float(built_in.norm()) > 0.01
    torch.testing.assert_close(module, built_in, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["linear", "cnn", "an object", "frozen"])
def test_torchs_own_generator_is_left_as_it_was(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    starts = []
    for turn, seed in enumerate((1, 1, 2)):
        # Under another name it is another problem, and made anew.
        again = {"seed": seed, "name": f"turn-{turn}"}
        problem = build_problem(parse_config({**KEYS, **ROWS[name], **again}))
        starts.append(problem.initial)
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(seed)
        before = torch.get_rng_state()
    assert torch.equal(starts[0], starts[1])
    drawn = name not in ("linear", "an object")
    assert torch.equal(starts[0], starts[2]) != drawn


def test_a_module_that_was_given_starts_at_its_parameters_and_is_not_changed() -> None:
    module = nets.mlp((1, 8, 8), 10)
    before = [value.clone() for value in module.parameters()]
    config = configure(module)
    first = build_problem(config)
    assert torch.equal(first.initial, nn.utils.parameters_to_vector(before).double())
    first_rho = play(config)[-1].rho
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), before, strict=True))
    with torch.no_grad():
        for value in module.parameters():
            value += 0.1
    changed = configure(module)
    assert changed.model != config.model
    torch.testing.assert_close(build_problem(changed).initial, first.initial + 0.1)
    # Another name, so that the problem is built again: from what was kept.
    again = config.model_copy(update={"name": "again"})
    assert torch.equal(play(again)[-1].rho, first_rho)


def test_from_python() -> None:
    """By a factory, by its name, with options; by a module and by its class."""
    keys = {key.replace("-", "_"): value for key, value in KEYS.items()}
    by_factory = pfl.run(model=wide, **keys)
    by_name = pfl.run(model=f"{HERE}:wide", **keys)
    by_options = pfl.run(model=nets.mlp, model_options={"hidden": 9}, **keys)
    assert by_factory.rho.tolist() == by_name.rho.tolist() == by_options.rho.tolist()
    module = nets.Tied((1, 8, 8), 10)
    by_object = pfl.run(model=module, **keys)
    assert by_object.rho.shape == (3 * 64 + 30,)
    assert by_object.passed
    by_class = pfl.run(model=nets.Tied, **keys)
    assert by_class.rho.shape == by_object.rho.shape


@pytest.mark.parametrize("dataset", ["synthetic-logistic", "synthetic-linear"])
def test_one_score_is_learned_and_attacked(dataset: str) -> None:
    """The target answers the opposite, as minus the common model does for linear ones."""
    keys = {"local_lr": 0.05, "rounds": 30, "lam": 3.0, "points_per_user": "50"}
    runs = {}
    for chosen in ("none", "10"):
        config = configure(wide, dataset=dataset, features=4, strategic_users=chosen, **keys)
        problem = build_problem(config)
        rho = play(config)[-1].rho
        features, labels = problem.source.test_set()
        scores = problem.model.scores(rho[None], features)[0, :, 0]
        runs[chosen] = float((scores * labels).mean())
    assert runs["none"] > 0.1
    assert runs["10"] < -0.1


@pytest.mark.parametrize("dataset", ["synthetic-logistic", "synthetic-linear"])
def test_the_linear_target_of_synthetic_users_is_minus_their_common_model(dataset: str) -> None:
    problem = build_problem(configure("linear", dataset=dataset))
    assert isinstance(problem.source, Synthetic)
    assert torch.equal(problem.target, -problem.source.common)


def test_cga_takes_rho_to_its_target_where_it_may_send_anything() -> None:
    keys = {"strategic_users": "10", "local_solver": "sgd", "local_lr": 0.01, "rounds": 80}
    config = configure(wide, regularizer="squared-l2", local_lr_decay=0.97, **keys)
    problem = build_problem(config)
    records = play(config)
    start = float((problem.initial - problem.target).norm())
    assert start > 1
    assert float((records[-1].rho - problem.target).norm()) < 0.05 * start


def test_under_l2_it_moves_rho_by_no_more_than_its_bound() -> None:
    keys = {"strategic_users": "9,10", "lam": 0.5, "rounds": 30}
    config = configure(wide, regularizer="l2", **keys)
    problem, records = build_problem(config), play(config)
    rho = problem.initial
    for record in records:
        rows = torch.stack([record.accepted[user] for user in range(11)])
        norms = torch.linalg.vector_norm(rows, dim=1)
        assert bool((norms <= 0.5 * (1 + 1e-9)).all())
        honest = rho - record.eta * rows[:9].sum(dim=0)
        assert float((record.rho - honest).norm()) <= record.eta * 2 * 0.5 * (1 + 1e-9)
        rho = record.rho
    assert float(norms[9:].min()) == pytest.approx(0.5)


@pytest.mark.slow
def test_cga_takes_the_built_in_network_to_its_target() -> None:
    config = configure("cnn", strategic_users="10", rounds=40, points_per_user="100")
    problem = build_problem(config)
    rho = play(config)[-1].rho
    labels = (problem.test_set.labels + 1) % 10
    scores = problem.test_set.scores(problem.model, torch.stack([rho, problem.target]))
    accuracies = (scores.argmax(dim=-1) == labels).double().mean(dim=1)
    assert float(accuracies[1]) > 0.95
    assert float(accuracies[0]) > 0.95
    start = float((problem.initial - problem.target).norm())
    assert float((rho - problem.target).norm()) < 0.02 * start


def test_a_model_attack_from_a_cga_run(tmp_path: Path) -> None:
    keys: dict[str, Any] = {key.replace("-", "_"): value for key, value in KEYS.items()}
    keys |= {"strategic_users": "10", "model": wide, "rounds": 25, "local_lr": 0.01}
    cga = pfl.run(output=tmp_path / "cga", **keys)
    model = pfl.run(attack="model", attack_model=str(tmp_path / "cga"), **keys)
    ends = [float(run.rounds["distance_to_target"][-1]) for run in (cga, model)]
    start = float(cga.rounds["distance_to_target"][0])
    assert ends[0] < 0.2 * start
    assert ends[1] < 0.5 * start


def weights(folder: Path, module: nn.Module) -> str:
    path = folder / "weights.pt"
    torch.save(module.state_dict(), path)
    return str(path)


def test_the_last_layer_of_a_pretrained_network_is_shared(tmp_path: Path) -> None:
    module = nets.mlp((1, 8, 8), 10, hidden=9)
    path = weights(tmp_path, module)
    config = configure(wide, model_weights=path, model_frozen="1,2", save_trajectory=True)
    problem = build_problem(config)
    last = nn.utils.parameters_to_vector(module[-1].parameters()).detach().double()
    assert torch.equal(problem.initial, last)
    points = problem.test_set.features[:20]
    rho = play(config, nodes=3)[-1].rho
    assert not torch.equal(rho, last)
    nn.utils.vector_to_parameters(rho, module.double()[-1].parameters())
    expected = module(points[:, :64].reshape(-1, 1, 8, 8)).detach()
    torch.testing.assert_close(problem.model.scores(rho[None], points)[0], expected)


def test_what_a_module_freezes_itself_is_frozen() -> None:
    def half(shape: tuple[int, ...], outputs: int) -> nn.Module:
        module = nets.mlp(shape, outputs)
        for value in module[1].parameters():
            value.requires_grad_(False)
        return module

    assert build_problem(configure(half)).model.dim == 2 * 5 + 60
    assert build_problem(configure(half, model_frozen="4")).model.dim == 2 * 5


class OldModel(Linear):
    """A model by today's contract: told the number of features, the constant one included."""

    def scores(self, theta: Tensor, features: Tensor) -> Tensor:
        return 2 * super().scores(theta, features)


def old_model(inputs: int, outputs: int) -> Linear:
    """The same from a function."""
    return OldModel(inputs, outputs)


def unnamed(shape: tuple[int, ...], outputs: int) -> Linear:
    """A function that takes the shape for the number of features."""
    return OldModel(shape, outputs)  # type: ignore[arg-type]


def test_a_model_class_is_used_as_it_is() -> None:
    for model in (OldModel, old_model):
        problem = build_problem(configure(model))
        assert type(problem.model) is OldModel and problem.model.inputs == 65


class Counting(nn.Module):
    """A module that counts its calls in a buffer."""

    calls: Tensor

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.last = nn.Linear(math.prod(shape), outputs)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, points: Tensor) -> Tensor:
        self.calls += 1
        scores: Tensor = self.last(points.flatten(1))
        return scores


class Noisy(nn.Module):
    """A module whose scores are drawn."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.last = nn.Linear(math.prod(shape), outputs)

    def forward(self, points: Tensor) -> Tensor:
        scores: Tensor = self.last(points.flatten(1) + torch.rand(1))
        return scores


class Broken(nn.Module):
    """A module with a fault of its own."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.last = nn.Linear(math.prod(shape), outputs)

    def forward(self, points: Tensor) -> Tensor:
        return self.lost(points)  # type: ignore[no-any-return, operator]


class Centred(nn.Module):
    """A module that looks at all points of a batch."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.last = nn.Linear(math.prod(shape), outputs)

    def forward(self, points: Tensor) -> Tensor:
        rows = points.flatten(1)
        scores: Tensor = self.last(rows - rows.mean(dim=0))
        return scores


class Branching(nn.Module):
    """A module whose way depends on the values of its points."""

    def __init__(self, shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.last = nn.Linear(math.prod(shape), outputs)

    def forward(self, points: Tensor) -> Tensor:
        rows = points.flatten(1)
        scores: Tensor = self.last(rows if bool((rows.sum() > 0).item()) else -rows)
        return scores


def layered(*layers: Callable[[], nn.Module]) -> Callable[[tuple[int, ...], int], nn.Module]:
    def make(shape: tuple[int, ...], outputs: int) -> nn.Module:
        return nn.Sequential(*(layer() for layer in layers), nn.Flatten(), nn.LazyLinear(outputs))

    return make


def unlike(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A module whose start is drawn elsewhere."""
    module = nets.linear(shape, outputs)
    with torch.no_grad():
        for value in module.parameters():
            value += torch.rand((), generator=ELSEWHERE)
    return module


ELSEWHERE = torch.Generator()
FROZEN = nets.linear((1, 8, 8), 10).requires_grad_(False)

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "batch norm": (
        {"model": layered(lambda: nn.BatchNorm2d(1))},
        r"expected group norm or layer norm in place of BatchNorm2d \(layer '0'\), whose",
    ),
    "batch norm without statistics": (
        {"model": layered(lambda: nn.BatchNorm2d(1, track_running_stats=False).eval())},
        "expected group norm or layer norm in place of BatchNorm2d",
    ),
    "instance norm with statistics": (
        {"model": layered(lambda: nn.InstanceNorm2d(1, track_running_stats=True))},
        "expected group norm or layer norm in place of InstanceNorm2d",
    ),
    "dropout": (
        {"model": layered(lambda: nn.Dropout(0.3))},
        r"expected no Dropout \(layer '0'\), since .*: a rate of 0, or module.eval\(\), turns it",
    ),
    "random slopes": ({"model": layered(nn.RReLU)}, r"expected no RReLU \(layer '0'\)"),
    "random in forward": ({"model": Noisy}, "expected the same scores each time, and it draws"),
    "a buffer that changes": (
        {"model": Counting},
        "expected buffers that its forward leaves alone",
    ),
    "points that mix": ({"model": Centred}, "expected scores of a point that do not depend on the"),
    "its own error": (
        {"model": Broken},
        r"expected a module that takes points \(n, 1, 8, 8\) \(tests/.*\.py:\d+: .*'lost'",
    ),
    "another number of scores": (
        {"model": lambda shape, outputs: nets.linear(shape, 7)},
        r"expected scores \(3, 10\) of 3 points, and it makes \(3, 7\)",
    ),
    "another shape": (
        {"model": nn.Linear(64, 10)},
        r"expected a module that takes points \(n, 1, 8, 8\) \(.*cannot be multiplied",
    ),
    "no parameter": (
        {"model": nn.Flatten()},
        "expected parameters that are not frozen, and it has",
    ),
    "all frozen": ({"model": FROZEN}, "expected parameters that are not frozen"),
    "another start each time": (
        {"model": unlike},
        "expected the same parameters each time that it is made",
    ),
    "complex numbers": (
        {"model": lambda shape, outputs: nets.linear(shape, outputs).to(torch.complex64)},
        "expected real parameters on the CPU, .*complex64 on cpu",
    ),
    "no module": (
        {"model": f"{HERE}:layered"},
        "expected a torch.nn.Module, or a pfl_flower.objective.models.Model of the number of",
    ),
    "a model of a shape": (
        {"model": unnamed},
        "expected a torch.nn.Module, or a .*made a OldModel",
    ),
    "a layer of torch's own": ({"model": "torch.nn:Linear"}, "expected a factory that works"),
    "vectors": (
        {"model": nets.small_cnn, "dataset": "synthetic-logistic"},
        "expected images, and a point is 20 numbers",
    ),
}
KEYS_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such layer": (
        {"model": wide, "model-frozen": "9"},
        r"model-frozen = 9: expected names among 1.weight, 1.bias, 2.weight",
    ),
    "all layers": (
        {"model": wide, "model-frozen": "1,2,4"},
        "model-frozen = 1,2,4: expected fewer",
    ),
    "a class of models": (
        {"model": OldModel, "model-frozen": "1"},
        "model-frozen = 1: expected nothing, for a model without modules",
    ),
    "no such file": (
        {"model": wide, "model-weights": "/no/such.pt"},
        "model-weights = /no/such.pt: expected a file that is there",
    ),
    "no tensors": (
        {"model": wide, "model-weights": __file__},
        "model-weights = .*: expected a file of tensors by name",
    ),
    "linear": (
        {"model": "linear", "model-frozen": "1"},
        "model-frozen = 1: expected empty, unless model = cnn",
    ),
    "exact": (
        {"model": wide, "local-solver": "exact"},
        r"model = .*wide: expected linear, for exact solves",
    ),
    "an equilibrium": (
        {"model": "cnn", "equilibrium": True},
        "model = cnn: expected linear, for an exact equilibrium",
    ),
    "vectors": (
        {"model": "cnn", "dataset": "synthetic-linear"},
        "model = cnn: expected .*two-layer, for points that are no images",
    ),
    "exact responses": (
        {"model": wide, "attack": "model", "strategic-users": "1"},
        "attack-model = exact: expected the folder of a CGA run, for a model that is not linear",
    ),
    "designed data": (
        {"model": wide, "attack": "data", "poisoning": "matching", "attack-model": "/x"},
        "poisoning = matching: expected sampling, for a model that is not linear",
    ),
}


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("name", REFUSED)
def test_a_module_that_cannot_serve_is_one_line_before_round_1(name: str) -> None:
    keys, said = REFUSED[name]
    with pytest.raises(ConfigError, match=f"^model = .*: {said}") as caught:
        build_problem(parse_config({**KEYS, **keys}))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("name", KEYS_REFUSED)
def test_keys_that_a_model_rules_out(name: str) -> None:
    keys, said = KEYS_REFUSED[name]
    with pytest.raises(ConfigError, match=f"^{said}") as caught:
        build_problem(parse_config({**KEYS, **keys}))
    assert "\n" not in str(caught.value)


def test_a_way_by_values_is_for_users_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the processor: a card works on many at once, each of whom might go another way."""
    assert isinstance(build_problem(configure(Branching)).model, ModuleModel)
    monkeypatch.setattr(modules, "users_at_once", lambda device, activations: 2)
    with pytest.raises(ConfigError, match=r"torch.func can differentiate \(tests/.*\.py:\d+: "):
        build_problem(configure(Branching, name="batched"))


def test_weights_that_were_written_anew_are_read_anew(tmp_path: Path) -> None:
    starts = []
    for _ in range(2):
        torch.manual_seed(len(starts))
        module = nets.mlp((1, 8, 8), 10, hidden=9)
        config = configure(wide, model_weights=weights(tmp_path, module))
        starts.append(build_problem(config).initial)
        expected = nn.utils.parameters_to_vector(module.parameters()).detach().double()
        assert torch.equal(starts[-1], expected)
    assert not torch.equal(*starts)


def test_weights_of_another_network(tmp_path: Path) -> None:
    path = weights(tmp_path, nets.mlp((1, 8, 8), 10, hidden=8))
    with pytest.raises(ConfigError, match=r"^model-weights = .*: expected the state of this model"):
        build_problem(configure(wide, model_weights=path))


def test_layers_in_evaluation_mode_are_what_they_were() -> None:
    def make(shape: tuple[int, ...], outputs: int) -> nn.Module:
        return layered(lambda: nn.BatchNorm2d(1), lambda: nn.Dropout(0.5))(shape, outputs).eval()

    problem = build_problem(configure(make))
    assert isinstance(problem.model, ModuleModel) and problem.model.dim == 652
    assert bool(torch.isfinite(trajectory(play(problem.config))).all())


def test_the_built_in_network_has_two_convolutions_and_group_norm() -> None:
    kinds = [type(layer).__name__ for layer in cnn((3, 32, 32), 10).children()]
    assert kinds.count("Conv2d") == kinds.count("GroupNorm") == 2
    for shape in ((1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 5, 7), (3, 1, 1)):
        assert cnn(shape, 4, channels=3)(torch.zeros(2, *shape)).shape == (2, 4)


def pictures(spec: DataSpec) -> Images:
    """Four hundred images of 8 x 8 pixels in four classes, each of one of twelve owners."""
    draw = generator(2, "pictures")
    labels = torch.randint(4, (400,), generator=draw)
    pixels = torch.rand((400, 64), generator=draw, dtype=torch.float64) / 2
    pixels[torch.arange(400), 9 * labels] += 0.5
    return Images(
        (pixels[:300], labels[:300]),
        (pixels[300:], labels[300:]),
        owners=[number % 12 for number in range(300)],
        seed=spec.seed,
        shape=(1, 8, 8),
    )


@pytest.mark.parametrize("partition", PARTITIONS)
def test_a_cnn_is_the_same_whatever_the_nodes_for_every_partition(partition: str) -> None:
    keys = {
        "dataset": f"{HERE}:pictures",
        "partition": partition,
        "model": "cnn",
        "model-options": '{"channels": 2}',
        "users": 11,
        "strategic-users": "10",
        "points-per-user": "20,15" if partition == "draws" else "",
        "local-steps": 2,
        "batch-size": 8,
        "dtype": "float32",
    }
    config = parse_config({**KEYS, **keys})
    runs = [trajectory(play(config, nodes=nodes)) for nodes in (1, 4, 11)]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0][0], runs[0][-1])
