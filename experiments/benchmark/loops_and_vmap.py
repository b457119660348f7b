"""What a researcher would write: one nn.Module, autograd and Adam per user, in a Python loop.

The benchmark times it, and a variant by ``torch.func.vmap``, against the product on Figure 1's
workload. Nothing here imports the package, so that both compute the same by different code.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
    lam, eta : float
        Strength of the regulariser; step size of the server.
    local_lr : callable
        Step size of round t.
    """

    features: Tensor
    labels: Tensor
    test_features: Tensor
    test_labels: Tensor
    target: Tensor
    lam: float
    eta: float
    local_lr: Callable[[int], float]


def modules(work: Workload) -> LocalRound:
    """Return rounds by one ``nn.Linear`` and one ``torch.optim.Adam`` per user, in a loop."""
    classes, inputs = work.target.shape
    dtype, device = work.target.dtype, work.target.device
    networks = [
        nn.Linear(inputs, classes, bias=False, dtype=dtype, device=device) for _ in work.features
    ]
    for network in networks:
        nn.init.zeros_(network.weight)
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
    classes = len(work.target)
    rho = torch.zeros_like(work.target)
    before, own, seconds = rho, torch.zeros_like(rho), []
    for t in range(1, rounds + 1):
        began = time.perf_counter()
        honest = local_round(rho, work.local_lr(t))
        estimate = (before - rho) / work.eta - own if t > 1 else torch.zeros_like(rho)
        own = (rho - work.target) / work.eta - estimate
        before, rho = rho, rho - work.eta * (honest + own)
        with torch.no_grad():
            for shift in (0, 1):
                wanted = (work.test_labels + shift) % classes
                scores = work.test_features @ rho.T
                float((scores.argmax(dim=1) == wanted).float().mean())
        if rho.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return rho, seconds
