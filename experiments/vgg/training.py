"""Train a VGG13-BN, epoch by epoch: what ``train-vgg`` repeats.

SGD with Nesterov momentum; the step size rises linearly to its peak and falls along a cosine to 0;
images are cropped at random after a border of 4 and mirrored. Every draw is a function of the seed
and the epoch, so a training that was stopped ends as one that was not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.vgg.augmentation import batches
from pfl_flower.data.embeddings import BATCH
from pfl_flower.data.image_folder import ImageSet
from pfl_flower.data.vgg import VGG13, WIDTH, unit
from pfl_flower.support.errors import RunFailedError
from pfl_flower.support.seeding import generator
from pfl_flower.support.tensor_files import load_tensors, save_tensors

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
RISING = 0.2
"""Part of the steps in which the step size rises."""
SHOW_SECONDS = 0.5

Show = Callable[[int, float], None]
"""Is told the number of steps done in the epoch and the mean loss so far."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What makes the weights; a checkpoint of an equal recipe is continued.

    Attributes
    ----------
    data : str
        Name and key of the images.
    epochs, batch_size, lr, label_smoothing, seed
        ``lr`` is the peak of the step size.
    images : int
        Training images used, chosen at random; 0: all.
    width : int
        Of the hidden layers.
    """

    data: str
    epochs: int
    batch_size: int = 128
    lr: float = 0.05
    label_smoothing: float = 0.0
    seed: int = 1
    images: int = 0
    width: int = WIDTH

    def step_size(self, progress: float) -> float:
        """Return the step size at a part ``progress`` in [0, 1) of all steps.

        >>> recipe = Recipe(data="", epochs=1, lr=0.1)
        >>> [round(recipe.step_size(part), 3) for part in (0.1, 0.2, 0.6)]
        [0.05, 0.1, 0.05]
        """
        if progress < RISING:
            return self.lr * progress / RISING
        return self.lr * (1 + math.cos(math.pi * (progress - RISING) / (1 - RISING))) / 2

    def chosen(self, count: int) -> Tensor:
        """Return the rows of the training images that are used."""
        order = torch.randperm(count, generator=generator(self.seed, "vgg", "images"))
        return order[: self.images or count]

    def steps(self, count: int) -> int:
        """Return the steps of an epoch; an incomplete last batch is left out."""
        return max(1, count // self.batch_size)


@dataclass
class Training:
    """A network on its way, between two epochs.

    Attributes
    ----------
    recipe : Recipe
        How it is trained.
    network, optimizer
        What is trained, and by what.
    history : list of dict
        Mean loss, test accuracy and seconds of each epoch so far.
    """

    recipe: Recipe
    network: VGG13
    optimizer: torch.optim.SGD
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def start(cls, recipe: Recipe, classes: int, device: torch.device) -> Training:
        """Return an untrained network on the device."""
        draw = generator(recipe.seed, "vgg", "initial")
        network = VGG13.initial(draw, classes=classes, width=recipe.width)
        network = network.to(device).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(
            network.parameters(),
            lr=recipe.lr,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            nesterov=True,
        )
        return cls(recipe, network, optimizer)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        content = {
            "recipe": json.dumps(asdict(self.recipe)),
            "history": self.history,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        save_tensors(path, content, durable=True)

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint of the same recipe, if there is one."""
        if checkpoint_recipe(path) != json.dumps(asdict(self.recipe)):
            return
        kept = load_tensors(path)
        assert kept is not None, "it has just been read"
        self.network.load_state_dict(kept["network"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.history = kept["history"]

    def save_weights(self, path: Path) -> None:
        """Write the state dict that ``load_weights`` reads."""
        state = self.network.state_dict()
        weights = {name: value.cpu().contiguous() for name, value in state.items()}
        save_tensors(path, weights, durable=True)

    def epoch(self, images: ImageSet, show: Show) -> None:
        """Train one epoch more, test, and note both in the history.

        Raises
        ------
        RunFailedError
            If the loss is no longer finite.
        """
        began, number = time.perf_counter(), len(self.history)
        draw = generator(self.recipe.seed, "vgg", "epoch", number)
        # dropout draws from torch's own generators, which the caller gets back as they were
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**62, (), generator=draw)))
            loss = self._steps(images, number, draw, show)
        if not math.isfinite(loss):
            raise RunFailedError(f"the loss of epoch {number + 1} is {loss}: try a smaller --lr")
        correct = accuracy_on_test(self.network, images)
        seconds = time.perf_counter() - began
        self.history.append({"loss": loss, "test_accuracy": correct, "seconds": seconds})

    def _steps(self, images: ImageSet, number: int, draw: torch.Generator, show: Show) -> float:
        recipe, device = self.recipe, self.device
        chosen = recipe.chosen(len(images.train))
        order = chosen[torch.randperm(len(chosen), generator=draw)]
        steps = recipe.steps(len(chosen))
        total, shown = torch.zeros((), device=device), 0.0
        self.network.train()
        made = batches(images, order, recipe.batch_size, draw, device)
        for step, (batch, labels) in enumerate(made):
            done = number * steps + step + 1
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.step_size(done / (recipe.epochs * steps + 1))
            total += self._step(batch, labels)
            if time.monotonic() - shown > SHOW_SECONDS or step + 1 == steps:
                show(step + 1, float(total) / (step + 1))
                shown = time.monotonic()
        return float(total) / steps

    def _step(self, batch: Tensor, labels: Tensor) -> Tensor:
        mixed = batch.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=mixed):
            scores = self.network(batch)
        smoothing = self.recipe.label_smoothing
        loss = nn.functional.cross_entropy(scores.float(), labels, label_smoothing=smoothing)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        return loss.detach()


def checkpoint_recipe(path: Path) -> str | None:
    """Return the recipe of a checkpoint, as JSON; None if there is no checkpoint."""
    kept = load_tensors(path)
    return None if kept is None else str(kept.get("recipe"))


@torch.no_grad()
def accuracy_on_test(network: VGG13, images: ImageSet) -> float:
    """Return the accuracy on the test images."""
    device = next(network.parameters()).device
    network.eval()
    correct = 0
    for start in range(0, len(images.test), BATCH):
        rows = slice(start, start + BATCH)
        predicted = network(unit(images.test[rows], device)).argmax(dim=1).cpu()
        correct += int((predicted == images.test_labels[rows]).sum())
    return correct / len(images.test)
