"""What a researcher would write: one nn.Module, autograd and Adam per user, in a Python loop.

The benchmark times it, a variant by ``torch.func.vmap``, and what the paper's authors run in their
notebooks, against the product on Figure 1's workload. Nothing here imports the package, so that all
compute the same by different code.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

LocalRound = Callable[[Tensor, float], Tensor]
"""From rho and the local step size to the sum of the honest gradients, after a local step."""


@dataclass(frozen=True)
class Workload:
    """Honest users against one CGA user, squared l2, softmax, one Adam step a round.

    Attributes
    ----------
    features, labels : Tensor
        ``(k, n, q)``, the constant column included, and ``(k, n)``.
    test_features, test_labels : Tensor
        ``(m, q)`` and ``(m,)``.
    target : Tensor
        theta_dagger, ``(c, q)``.
    lam : float
        Strength of the regulariser.
    server_lr, local_lr : callable
        Step sizes of round t.
    """

    features: Tensor
    labels: Tensor
    test_features: Tensor
    test_labels: Tensor
    target: Tensor
    lam: float
    server_lr: Callable[[int], float]
    local_lr: Callable[[int], float]


def modules(work: Workload) -> LocalRound:
    """Return rounds by one ``nn.Linear`` and one ``torch.optim.Adam`` per user, in a loop."""
    networks = _networks(work)
    optimizers = [torch.optim.Adam(network.parameters()) for network in networks]
    criterion = nn.CrossEntropyLoss(reduction="sum")

    def local_round(rho: Tensor, lr: float) -> Tensor:
        total = torch.zeros_like(rho)
        users = zip(networks, optimizers, work.features, work.labels, strict=True)
        for network, optimizer, features, labels in users:
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            loss = criterion(network(features), labels)
            loss = loss + work.lam * (rho - network.weight).pow(2).sum()
            torch.autograd.backward(loss)
            optimizer.step()
            total += 2 * work.lam * (rho - network.weight.detach())
        return total

    return local_round


def _networks(work: Workload) -> list[nn.Linear]:
    classes, inputs = work.target.shape
    dtype, device = work.target.dtype, work.target.device
    made = [
        nn.Linear(inputs, classes, bias=False, dtype=dtype, device=device) for _ in work.features
    ]
    for network in made:
        nn.init.zeros_(network.weight)
    return made


def vmapped(work: Workload) -> LocalRound:
    """Return rounds by ``vmap(grad(loss))`` over the users' stacked parameters."""
    theta = nn.Parameter(work.target.new_zeros((len(work.features), *work.target.shape)))
    optimizer = torch.optim.Adam([theta])

    def loss(weights: Tensor, features: Tensor, labels: Tensor, rho: Tensor) -> Tensor:
        scores = features @ weights.T
        fit = functional.cross_entropy(scores, labels, reduction="sum")
        return fit + work.lam * (rho - weights).pow(2).sum()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(0, 0, 0, None))

    def local_round(rho: Tensor, lr: float) -> Tensor:
        optimizer.param_groups[0]["lr"] = lr
        theta.grad = gradients(theta.detach(), work.features, work.labels, rho)
        optimizer.step()
        return 2 * work.lam * (rho - theta.detach()).sum(dim=0)

    return local_round


RIVALS: dict[str, Callable[[Workload], LocalRound]] = {"loop": modules, "vmap": vmapped}


def federated(work: Workload, rival: str, rounds: int) -> tuple[Tensor, list[float]]:
    """Return rho ``(c, q)`` after some rounds of CGA, and the seconds of each round.

    A round is local training, the attack, the server's step and two accuracies of rho: on the test
    labels and on those the attacker wants.
    """
    local_round = RIVALS[rival](work)
    eta = work.server_lr(1)
    rho = torch.zeros_like(work.target)
    before, own, seconds = rho, torch.zeros_like(rho), []
    for t in range(1, rounds + 1):
        began = time.perf_counter()
        honest = local_round(rho, work.local_lr(t))
        estimate = (before - rho) / eta - own if t > 1 else torch.zeros_like(rho)
        own = (rho - work.target) / eta - estimate
        before, rho = rho, rho - eta * (honest + own)
        _accuracies(work, rho)
        if rho.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return rho, seconds


def notebook(work: Workload, rounds: int) -> tuple[Tensor, list[float]]:
    """Return the same of the loop that the paper's authors train by, under their protocol.

    One loss of rho and all users is derived at once, and rho has an Adam of its own, which steps
    with the users'; the attacker is given the last round's honest sum. Every round measures rho and
    each user's model.
    """
    networks, rho = _networks(work), nn.Parameter(torch.zeros_like(work.target))
    weights: list[Tensor] = [rho, *(network.weight for network in networks)]
    optimizers = [torch.optim.Adam([one]) for one in weights]
    criterion = nn.CrossEntropyLoss(reduction="sum")
    honest, seconds = torch.zeros_like(work.target), []
    for t in range(1, rounds + 1):
        began = time.perf_counter()
        loss = torch.zeros((), dtype=rho.dtype, device=rho.device)
        for network, features, labels in zip(networks, work.features, work.labels, strict=True):
            loss = loss + criterion(network(features), labels)
            loss = loss + work.lam * (rho - network.weight).pow(2).sum()
        for optimizer, lr in zip(optimizers, _lrs(work, t), strict=False):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
        torch.autograd.backward(loss)
        assert rho.grad is not None
        estimate, honest = honest, rho.grad.clone()
        rho.grad += (rho.detach() - work.target) / work.server_lr(t) - estimate
        for optimizer in optimizers:
            optimizer.step()
        _accuracies(work, rho.detach(), *(network.weight for network in networks))
        if rho.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return rho.detach(), seconds


def _lrs(work: Workload, t: int) -> Iterator[float]:
    """Yield the server's step size, and then those of the users without end."""
    yield work.server_lr(t)
    yield from itertools.repeat(work.local_lr(t))


@torch.no_grad()
def _accuracies(work: Workload, rho: Tensor, *local: Tensor) -> None:
    """Work out rho's accuracy on test labels and on the attacker's, and users' on test labels."""
    for weights, shift in ((rho, 0), (rho, 1), *((one, 0) for one in local)):
        wanted = (work.test_labels + shift) % len(work.target)
        scores = work.test_features @ weights.T
        float((scores.argmax(dim=1) == wanted).float().mean())
