"""``train-vgg``: train the network whose embeddings the users of Appendix J hold.

A checkpoint after each epoch lets the same command go on where it was stopped; at the end there are
the weights and, beside them, a JSON that says what accuracy they reached and how they were made.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.vgg.arguments import EPOCHS
from experiments.vgg.training import (
    MOMENTUM,
    RISING,
    WEIGHT_DECAY,
    Recipe,
    Training,
    checkpoint_recipe,
)
from pfl_flower.data.embeddings import file_hash, weights_file
from pfl_flower.data.image_folder import ImageSet
from pfl_flower.data.image_sets import read_images
from pfl_flower.data.vgg import LEAST_PIXELS
from pfl_flower.run.problem import choose_device
from pfl_flower.run.results import write_json
from pfl_flower.support.console import place, plain
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.folders import data_folder, own_path, writable_folder
from pfl_flower.support.versions import commit, versions


def train(
    images: ImageSet,
    recipe: Recipe,
    output: Path,
    *,
    device: torch.device,
    console: Console,
) -> dict[str, Any]:
    """Train, write the weights to ``output`` and a report beside it; return the report.

    Raises
    ------
    RunFailedError
        If the training diverges.
    """
    training = Training.start(recipe, len(images.classes), device)
    training.restore(_checkpoint(output))
    if training.history:
        console.print(f"going on after epoch {len(training.history)}")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    steps = recipe.steps(recipe.images or len(images.train))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=steps, loss=math.nan)
        for epoch in range(len(training.history), recipe.epochs):
            title = f"epoch {epoch + 1}/{recipe.epochs}"
            bar.reset(task, description=title)
            training.epoch(images, lambda done, loss: bar.update(task, completed=done, loss=loss))
            training.save(_checkpoint(output))
            last = training.history[-1]
            console.print(
                f"{title}: loss {last['loss']:.3f}, test accuracy {last['test_accuracy']:.4f}, "
                f"{last['seconds']:.0f} s"
            )
    training.save_weights(output)
    report = _report(images, training, output)
    write_json(output.with_suffix(".json"), report)
    _checkpoint(output).unlink(missing_ok=True)
    return report


def _checkpoint(output: Path) -> Path:
    return output.with_suffix(".checkpoint.pt")


def _report(images: ImageSet, training: Training, output: Path) -> dict[str, Any]:
    recipe, device = training.recipe, training.device
    cuda = device.type == "cuda"
    return {
        "weights": output.name,
        "sha256": file_hash(output),
        "test_accuracy": training.history[-1]["test_accuracy"],
        "test_images": len(images.test),
        "left_out": [asdict(one) for one in images.left_out],
        "train_images": recipe.images or len(images.train),
        "reduced": recipe.epochs < EPOCHS["cuda"],
        "recipe": asdict(recipe),
        "schedule": f"SGD, Nesterov momentum {MOMENTUM}, weight decay {WEIGHT_DECAY}, step size "
        f"linear to {recipe.lr} in the first {RISING:.0%} of steps, then a cosine to 0",
        "history": training.history,
        "seconds": round(sum(epoch["seconds"] for epoch in training.history), 1),
        "device": torch.cuda.get_device_name(device) if cuda else platform.machine() + " CPU",
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "versions": {**versions(), "torchvision": version("torchvision")},
    }


def run(parsed: argparse.Namespace, console: Console) -> int:
    """Train as the command line asks and return its exit code.

    Raises
    ------
    ConfigError
        If an option is out of range, or the output was made by another recipe.
    DataError
        If the images cannot be had.
    """
    device = choose_device(parsed.device)
    output = _output(parsed)
    images = read_images(parsed.dataset, data_folder(parsed.data_dir))
    for one in images.left_out:
        console.print(plain(f"left out: {one}"))
    recipe = _recipe(parsed, images, device)
    if parsed.fresh:
        _checkpoint(output).unlink(missing_ok=True)
    else:
        stopped = checkpoint_recipe(_checkpoint(output))
        made = stopped or _made_by(output)
        if made not in (None, json.dumps(asdict(recipe))):
            raise ConfigError(f"--output {output}: made by another recipe; --fresh replaces it")
        if made and not stopped:
            console.print("kept from before:", place(output), soft_wrap=True)
            return 0
    report = train(images, recipe, output, device=device, console=console)
    text = f"test accuracy {report['test_accuracy']:.4f}, epochs: {recipe.epochs}"
    if report["reduced"]:
        text += f", a reduced schedule: {EPOCHS['cuda']} are a full one"
    console.print(text)
    for path in (output, output.with_suffix(".json")):
        console.print(place(path), soft_wrap=True)
    return 0


def _output(parsed: argparse.Namespace) -> Path:
    if not parsed.output and parsed.dataset != "cifar10":
        raise ConfigError(
            "--output: expected a file, because the default is for CIFAR-10's weights"
        )
    output = own_path("--output", parsed.output) if parsed.output else weights_file()
    if output.suffix == ".json":
        raise ConfigError(f"--output {output}: expected another ending than .json, the report's")
    if output.is_dir():
        raise ConfigError(f"--output = {output}: expected a file, and it is a folder")
    writable_folder("--output", output.parent)
    return output


def _recipe(parsed: argparse.Namespace, images: ImageSet, device: torch.device) -> Recipe:
    epochs = EPOCHS[device.type] if parsed.epochs is None else parsed.epochs
    total = len(images.train)
    for key, wrong, right in (
        ("epochs", epochs < 1, "at least 1"),
        ("batch-size", parsed.batch_size < 2, "at least 2"),
        ("lr", not 0 < parsed.lr < math.inf, "a positive number"),
        ("label-smoothing", not 0 <= parsed.label_smoothing < 1, "a number in [0, 1)"),
        ("images", not 0 <= parsed.images <= total, f"0 to {total}"),
        ("dataset", min(images.train.shape[2:]) < LEAST_PIXELS, f"{LEAST_PIXELS} pixels or more"),
    ):
        if wrong:
            raise ConfigError(f"--{key}: expected {right}")
    return Recipe(
        data=f"{parsed.dataset} {images.key}",
        epochs=epochs,
        batch_size=parsed.batch_size,
        lr=parsed.lr,
        label_smoothing=parsed.label_smoothing,
        seed=parsed.seed,
        images=parsed.images,
    )


def _made_by(output: Path) -> str | None:
    """Return the recipe of finished weights, as JSON; None if there are no weights."""
    if not output.exists():
        return None
    try:
        return json.dumps(json.loads(output.with_suffix(".json").read_text())["recipe"])
    except (OSError, ValueError, KeyError):
        return "unknown"
