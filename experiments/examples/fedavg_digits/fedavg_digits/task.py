"""The network, the data and the training, in torch alone."""

from __future__ import annotations

from functools import lru_cache

import datasets
import numpy as np
import torch
from flwr_datasets.partitioner import DirichletPartitioner
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

HELD_OUT = 360
"""Digits that no client has, the last ones: other hands wrote them."""


def network(seed: int) -> nn.Module:
    """Return the network, its weights drawn by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


@lru_cache(maxsize=1)
def digits() -> tuple[Tensor, Tensor]:
    """Return images in [0, 1], ``(1797, 64)``, and labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images / 16.0).float(), torch.from_numpy(labels).long()


def test_points() -> tuple[Tensor, Tensor]:
    """Return the digits that are held out."""
    images, labels = digits()
    return images[-HELD_OUT:], labels[-HELD_OUT:]


@lru_cache(maxsize=4)
def _partitions(count: int, alpha: float, seed: int) -> list[np.ndarray]:
    """Return which digits each partition holds."""
    labels = digits()[1][:-HELD_OUT].tolist()
    partitioner = DirichletPartitioner(
        num_partitions=count, partition_by="label", alpha=alpha, min_partition_size=20, seed=seed
    )
    rows = {"label": labels, "row": list(range(len(labels)))}
    partitioner.dataset = datasets.Dataset.from_dict(rows)
    return [np.array(partitioner.load_partition(one)["row"]) for one in range(count)]


def partition(number: int, count: int, alpha: float, seed: int) -> TensorDataset:
    """Return one client's digits."""
    images, labels = digits()
    rows = torch.from_numpy(_partitions(count, alpha, seed)[number])
    return TensorDataset(images[rows], labels[rows])


def train(model: nn.Module, points: TensorDataset, *, epochs: int, rate: float, seed: int) -> float:
    """Train in place by stochastic gradient descent; return the last epoch's mean loss."""
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(points, batch_size=32, shuffle=True, generator=order)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    total = 0.0
    for _ in range(epochs):
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(labels)
    return total / len(points)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that the model reads right."""
    with torch.no_grad():
        return float((model(images).argmax(dim=1) == labels).float().mean())
