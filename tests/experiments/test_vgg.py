from __future__ import annotations

import argparse
import io
import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from experiments.vgg import augmentation, train_command, training
from experiments.vgg.arguments import add_train_vgg
from experiments.vgg.augmentation import augmented, batches, windows
from experiments.vgg.training import Recipe, accuracy_on_test
from pfl_flower.data.embeddings import file_hash
from pfl_flower.data.image_folder import ImageSet, read_tree
from pfl_flower.data.vgg import load_weights
from pfl_flower.support.errors import ConfigError, RunFailedError
from pfl_flower.support.seeding import generator
from tests.support.card import DEVICE, Card
from tests.support.images import picture, write_tree

Patch = pytest.MonkeyPatch
CPU = torch.device("cpu")
TINY = Recipe(data="tiny", epochs=3, batch_size=8, lr=0.2, width=512)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PFL_CACHE_DIR", str(folder / "cache"))
        return read_tree(write_tree(folder / "tree", train=8, test=4))


@pytest.fixture(scope="module")
def trained(images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights after an uninterrupted training by ``TINY``."""
    output = tmp_path_factory.mktemp("trained") / "network.pt"
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    train_command.train(images, TINY, output, device=CPU, console=Console(quiet=True))
    assert torch.equal(torch.random.get_rng_state(), before), "torch's generator was used up"
    return output


def report(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(output.with_suffix(".json").read_text())
    return content


def test_training_reduces_the_loss_and_says_what_it_reached(
    trained: Path, images: ImageSet
) -> None:
    found = report(trained)
    losses = [epoch["loss"] for epoch in found["history"]]
    assert len(losses) == 3
    assert losses[-1] < losses[0] - 0.1
    assert found["test_accuracy"] == accuracy_on_test(load_weights(trained), images)
    assert found["recipe"] == asdict(TINY)
    assert found["sha256"] == file_hash(trained)
    assert (found["reduced"], found["train_images"], found["test_images"]) == (True, 16, 8)
    assert {"seconds", "device", "threads", "commit", "versions", "schedule"} <= set(found)
    assert sorted(file.name for file in trained.parent.iterdir()) == ["network.json", "network.pt"]


def test_a_stopped_training_ends_as_an_unstopped_one(
    trained: Path, images: ImageSet, tmp_path: Path, monkeypatch: Patch
) -> None:
    output, calls = tmp_path / "network.pt", []

    def stop(*arguments: Any) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return accuracy_on_test(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "accuracy_on_test", stop)
        with pytest.raises(KeyboardInterrupt):
            train_command.train(images, TINY, output, device=CPU, console=Console(quiet=True))
    assert not output.exists()
    torch.manual_seed(99)  # another process: its dropout must be the same
    written = io.StringIO()
    train_command.train(images, TINY, output, device=CPU, console=Console(file=written))
    assert "going on after epoch 1\n" in written.getvalue()
    expected, found = (torch.load(path, weights_only=True) for path in (trained, output))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(report(output)["history"]) == 3


def test_a_checkpoint_of_another_recipe_is_not_continued(images: ImageSet, tmp_path: Path) -> None:
    started = training.Training.start(TINY, 2, CPU)
    started.history = [{"loss": 1.0, "test_accuracy": 0.5, "seconds": 1.0}]
    started.save(tmp_path / "checkpoint.pt")
    for recipe, epochs in ((TINY, 1), (replace(TINY, seed=2), 0)):
        other = training.Training.start(recipe, 2, CPU)
        other.restore(tmp_path / "checkpoint.pt")
        assert len(other.history) == epochs


def test_another_seed_gives_other_weights(trained: Path) -> None:
    first, second = (training.Training.start(replace(TINY, seed=s), 2, CPU) for s in (1, 2))
    weights = [t.network.classifier[0].weight for t in (first, second)]
    assert not torch.equal(weights[0], weights[1])


def test_a_diverging_training_fails(images: ImageSet, tmp_path: Path) -> None:
    wild = replace(TINY, lr=1e12, epochs=2)
    with pytest.raises(RunFailedError, match=r"the loss of epoch 1 is .*: try a smaller --lr"):
        train_command.train(
            images, wild, tmp_path / "wild.pt", device=CPU, console=Console(quiet=True)
        )
    assert not list(tmp_path.iterdir())


def test_augmented_images_are_crops_and_mirror_images() -> None:
    image = picture(1, size=32)
    many = augmented(image.expand(300, -1, -1, -1), windows(300, generator(1, "crops")))
    assert (many.shape, many.dtype) == ((300, 3, 32, 32), torch.uint8)
    again = windows(300, generator(1, "crops"))
    assert torch.equal(many, augmented(image.expand(300, -1, -1, -1), again))
    padded = torch.zeros((3, 40, 40), dtype=torch.uint8)
    padded[:, 4:36, 4:36] = image
    places = {}
    for down in range(9):
        for right in range(9):
            crop = padded[:, down : down + 32, right : right + 32]
            places[crop.numpy().tobytes()] = (down, right, False)
            places[crop.flip(2).contiguous().numpy().tobytes()] = (down, right, True)
    found = [places[one.contiguous().numpy().tobytes()] for one in many]
    assert {place[0] for place in found} == {place[1] for place in found} == set(range(9))
    assert 100 < sum(place[2] for place in found) < 200
    assert len(set(found)) > 100


def test_an_epochs_batches_are_made_on_the_device(images: ImageSet, monkeypatch: Patch) -> None:
    """Bytes, draws, rows and labels go there once, however many batches there are."""

    def epoch(size: int, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.randperm(16, generator=generator(2, "order"))
        return list(batches(images, order, size, generator(3, "draws"), device))

    assert [len(labels) for _, labels in epoch(5, CPU)] == [5, 5, 5]
    assert [len(labels) for _, labels in epoch(20, CPU)] == [16], "one batch, if it is incomplete"
    for size in (2, 8):
        with Card() as there:
            found = epoch(size, DEVICE)
            assert there.waits == {"to the card": 4}
            for pair, expected in zip(found, epoch(size, CPU), strict=True):
                assert all(torch.equal(a.cpu(), b) for a, b in zip(pair, expected, strict=True))
    monkeypatch.setattr(augmentation, "KEPT_ON_THE_DEVICE", images.train.nbytes - 1)
    with Card() as there:
        moved = epoch(8, DEVICE)
        assert there.waits == {"to the card": 4}, "draws, labels and two batches of bytes"
        assert all(torch.equal(a[0].cpu(), b[0].cpu()) for a, b in zip(moved, found, strict=True))


def test_the_step_size_rises_and_falls_to_nothing() -> None:
    recipe = replace(TINY, lr=0.1)
    sizes = [recipe.step_size(step / 101) for step in range(1, 101)]
    top = sizes.index(max(sizes))
    assert max(sizes) == pytest.approx(0.1, rel=0.01)
    assert sizes[:top] == sorted(sizes[:top])
    assert sizes[top:] == sorted(sizes[top:], reverse=True)
    assert 0 < sizes[-1] < 1e-4
    assert 15 < top < 25


def ask(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_train_vgg(parser.add_subparsers())
    return parser.parse_args(["train-vgg", *arguments])


def command(tree: Path, output: Path, *arguments: str) -> str:
    written = io.StringIO()
    place = ["--dataset", f"imagefolder:{tree}", "--output", str(output)]
    console = Console(file=written, width=200)
    assert (
        train_command.run(ask(*place, "--epochs", "1", "--device", "cpu", *arguments), console) == 0
    )
    return written.getvalue()


def test_the_command_trains_keeps_and_replaces(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("PFL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(train_command, "Recipe", partial(Recipe, width=16))
    tree, output = write_tree(tmp_path / "tree", train=6), tmp_path / "network.pt"
    said = command(tree, output, "--images", "8")
    assert "epochs: 1, a reduced schedule: 60 are a full one" in said
    assert report(output)["train_images"] == 8
    assert load_weights(output).classes == 2
    before = output.read_bytes()
    assert "kept from before" in command(tree, output, "--images", "8")
    assert output.read_bytes() == before
    with pytest.raises(ConfigError, match="made by another recipe; --fresh replaces it"):
        command(tree, output, "--images", "7")
    command(tree, output, "--images", "7", "--fresh")
    assert report(output)["train_images"] == 7
    output.with_suffix(".json").unlink()
    with pytest.raises(ConfigError, match="made by another recipe"):
        command(tree, output, "--images", "7")


def test_the_command_does_not_drop_another_recipes_checkpoint(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("PFL_CACHE_DIR", str(tmp_path / "cache"))
    tree, output = write_tree(tmp_path / "tree"), tmp_path / "network.pt"
    started = training.Training.start(TINY, 2, CPU)
    started.save(output.with_suffix(".checkpoint.pt"))
    with pytest.raises(ConfigError, match="made by another recipe; --fresh replaces it"):
        command(tree, output)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs: expected at least 1"),
        (["--batch-size", "1"], "--batch-size: expected at least 2"),
        (["--lr", "-1"], "--lr: expected a positive number"),
        (["--lr", "nan"], "--lr: expected a positive number"),
        (["--label-smoothing", "1"], r"--label-smoothing: expected a number in \[0, 1\)"),
        (["--images", "7"], "--images: expected 0 to 6"),
        (["--output", "weights.json"], "expected another ending than .json"),
    ],
)
def test_bad_options(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("PFL_CACHE_DIR", str(tmp_path / "cache"))
    tree = write_tree(tmp_path / "tree")
    place = ["--dataset", f"imagefolder:{tree}", "--output", str(tmp_path / "network.pt")]
    with pytest.raises(ConfigError, match=message):
        train_command.run(ask(*place, *arguments), Console(quiet=True))


def test_other_images_do_not_replace_cifar10s_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--output: expected a file"):
        train_command.run(ask("--dataset", "imagefolder:x"), Console(quiet=True))
