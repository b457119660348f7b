from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pfl_flower.data import embeddings
from pfl_flower.data.catalogue import load_source
from pfl_flower.data.embeddings import embed, weights_file
from pfl_flower.data.image_folder import read_tree
from pfl_flower.data.spec import DataSpec
from pfl_flower.data.vgg import VGG13, load_weights, unit
from pfl_flower.support.errors import DataError
from pfl_flower.support.seeding import generator
from tests.support.images import write_tar, write_tree

Patch = pytest.MonkeyPatch
CPU = torch.device("cpu")
WIDTH = 16
"""Of the tests' hidden layers; the paper's 4096 would make each weights' file 113 MB."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: Patch) -> Iterator[None]:
    monkeypatch.setenv("PFL_CACHE_DIR", str(tmp_path / "cache"))
    yield
    for file in tmp_path.rglob("*.pt"):  # of 38 MB each
        file.unlink()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network whose running statistics are not the batch's own."""
    draw = generator(1, "test weights")
    network = VGG13.initial(draw, width=WIDTH)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(module.num_features, generator=draw) / 10)
            module.running_var.copy_(torch.rand(module.num_features, generator=draw) + 0.5)
        elif isinstance(module, nn.Linear):
            module.weight.data *= 30
    path = tmp_path_factory.mktemp("weights") / "network.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree")


def plain(weights: Path, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return torchvision's own network's last inputs and scores: the definition, spelled out."""
    from torchvision import models, transforms

    network = models.vgg13_bn(weights=None, init_weights=False)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    layers = [nn.Linear(512, WIDTH), nn.ReLU(), nn.Dropout(), nn.Linear(WIDTH, WIDTH)]
    network.classifier = nn.Sequential(*layers, nn.ReLU(), nn.Dropout(), nn.Linear(WIDTH, 10))
    network.load_state_dict(torch.load(weights, weights_only=True))
    normal = transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
    seen: list[Tensor] = []
    network.classifier[6].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        scores = network.eval()(normal(images.to(torch.float32) / 255))
    return seen[0], scores


def test_the_network_is_the_papers() -> None:
    network = VGG13()
    assert sum(parameter.numel() for parameter in network.parameters()) == 28_334_410
    assert network.embed(torch.empty((2, 3, 32, 32), device="meta")).shape == (2, 4096)
    assert network(torch.empty((2, 3, 48, 64), device="meta")).shape == (2, 10)


def test_embeddings_are_a_plain_forward_pass(weights: Path, tree: Path) -> None:
    source = load_source(DataSpec(f"imagefolder-embeddings:{tree}", weights=str(weights)))
    assert (source.inputs, source.outputs, source.most_points) == (WIDTH + 1, 2, 6)
    images = read_tree(tree)
    for pixels, labels, (features, found) in (
        (images.train, images.train_labels, source.training_set()),
        (images.test, images.test_labels, source.test_set()),
    ):
        expected, scores = plain(weights, pixels)
        assert expected.std() > 0.1
        assert (features.dtype, found.dtype) == (torch.float32, torch.int64)
        assert torch.allclose(features[:, :-1], expected, rtol=2**-10, atol=1e-5)
        assert torch.equal(features[:, -1], torch.ones(len(pixels)))
        assert torch.equal(found, labels)
        assert torch.allclose(load_weights(weights)(unit(pixels, CPU)), scores, atol=1e-4)
    drawn = source.draw(0, 3, 1).features
    assert drawn.shape == (3, WIDTH + 1)
    assert all((row == source.training_set()[0]).all(dim=1).any() for row in drawn)


def test_the_last_layer_turns_embeddings_into_the_networks_scores(
    weights: Path, tree: Path
) -> None:
    network, images = load_weights(weights), read_tree(tree).train
    embedded = embed(network, images, CPU).to(torch.float32)
    with torch.no_grad():
        direct = network(unit(images, CPU))
        assert torch.allclose(network.classifier[-1](embedded), direct, rtol=1e-3, atol=1e-3)


def test_embedding_is_deterministic_and_image_by_image(
    weights: Path, tree: Path, monkeypatch: Patch
) -> None:
    network, images = load_weights(weights), read_tree(tree).train
    whole = embed(network, images, CPU)
    assert torch.equal(whole, embed(network.train(), images, CPU))
    monkeypatch.setattr(embeddings, "BATCH", 4)
    parts = embed(network, images, CPU)
    assert torch.allclose(whole.float(), parts.float(), rtol=2**-9, atol=1e-4)


def test_an_embedding_has_a_gradient_by_its_image(weights: Path, tree: Path) -> None:
    pixels = unit(read_tree(tree).train[:2], CPU).requires_grad_()
    (slope,) = torch.autograd.grad(load_weights(weights).embed(pixels)[0].sum(), pixels)
    assert slope[0].abs().max() > 0
    assert slope[1].abs().max() == 0


def test_embeddings_are_kept_until_the_images_or_the_weights_change(
    weights: Path, tree: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    count: list[int] = []

    def counted(*arguments: Any) -> Tensor:
        count.append(1)
        return embed(*arguments)

    monkeypatch.setattr(embeddings, "embed", counted)

    def key(path: Path) -> str:
        load_source.cache_clear()
        return load_source(DataSpec(f"imagefolder-embeddings:{tree}", weights=str(path))).key

    first = key(weights)
    assert len(count) == 2
    copied = tmp_path / "same.pt"
    copied.write_bytes(weights.read_bytes())
    assert key(copied) == first
    assert len(count) == 2
    torch.save(VGG13.initial(generator(2, "other"), width=WIDTH).state_dict(), copied)
    second = key(copied)
    assert (second != first, len(count)) == (True, 4)
    os.utime(tree / "train/cat/0000.png", (1, 1))
    assert key(weights) not in (first, second)
    assert len(count) == 6


def test_cifar10_embeddings_take_the_default_weights(
    weights: Path, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    write_tar(tmp_path / "data/cifar10-imagefolder.tar", tree)
    spec = DataSpec("cifar10-embeddings", data_dir=str(tmp_path / "data"))
    with pytest.raises(DataError, match="no such file; python -m experiments train-vgg") as caught:
        load_source(spec)
    assert "\n" not in str(caught.value)
    weights_file().parent.mkdir(parents=True)
    weights_file().write_bytes(weights.read_bytes())
    assert load_source(spec).inputs == WIDTH + 1


def test_small_images_and_wild_weights(weights: Path, tmp_path: Path) -> None:
    small = write_tree(tmp_path / "small", size=16)
    with pytest.raises(DataError, match="images of 16 x 16: expected at least 32 x 32"):
        load_source(DataSpec(f"imagefolder-embeddings:{small}", weights=str(weights)))
    state = torch.load(weights, weights_only=True)
    state["classifier.3.weight"] *= 1e6
    torch.save(state, tmp_path / "wild.pt")
    tree = write_tree(tmp_path / "tree")
    with pytest.raises(DataError, match="not finite in float16"):
        load_source(DataSpec(f"imagefolder-embeddings:{tree}", weights=str(tmp_path / "wild.pt")))
    assert not (tmp_path / "cache/embeddings").exists()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil"),)


State = dict[str, Any]


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


FOREIGN: dict[str, tuple[Callable[[State], Any], str]] = {
    "a list": (lambda state: list(state.values()), "it holds something else"),
    "a checkpoint": (lambda state: {"network": state}, "it holds something else"),
    "an object": (lambda state: Evil(), r"torch cannot read it \(UnpicklingError\)"),
    "part missing": (without("features.0.weight"), "features.0.weight is missing"),
    "head missing": (without("classifier.6.weight"), r"classifier.0.weight has shape \(16, 512\)"),
    "another part": (
        lambda state: {**state, "fc.weight": torch.zeros(1)},
        "fc.weight is not a part of one",
    ),
    "ImageNet's": (
        lambda state: {**state, "classifier.0.weight": torch.zeros(16, 25088)},
        r"classifier.0.weight has shape \(16, 25088\) instead of \(16, 512\)",
    ),
    "a flat head": (
        lambda state: {**state, "classifier.6.weight": torch.zeros(10)},
        r"classifier.6.weight has shape \(10,\)",
    ),
    "not finite": (
        lambda state: {**state, "features.1.bias": torch.full((64,), torch.nan)},
        "features.1.bias is not finite",
    ),
}


@pytest.mark.parametrize("fault", FOREIGN)
def test_foreign_weights(fault: str, weights: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    spoil, message = FOREIGN[fault]
    path = tmp_path / "foreign.pt"
    torch.save(spoil(torch.load(weights, weights_only=True)), path)
    start = f"^embedding-weights = {path}: expected a VGG13-BN's state dict, and {message}"
    with pytest.raises(DataError, match=start) as caught:
        load_weights(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "content", [b"", b"text", pickle.dumps({"a": 1}, protocol=2)], ids=["empty", "text", "pickle"]
)
def test_files_that_torch_did_not_write(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "foreign.pt"
    path.write_bytes(content)
    with pytest.raises(DataError, match="expected a VGG13-BN's state dict"):
        load_weights(path)


def test_older_files_lack_the_batch_counters(weights: Path, tree: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    older = {name: value for name, value in state.items() if "num_batches" not in name}
    assert len(older) == len(state) - 10
    torch.save(older, tmp_path / "older.pt")
    images = read_tree(tree).train
    expected = embed(load_weights(weights), images, CPU)
    assert torch.equal(embed(load_weights(tmp_path / "older.pt"), images, CPU), expected)
