"""Trust from a data set of the server's own: FLTrust."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pfl_flower.aggregation.rounds import Received, RuleSetup
from pfl_flower.objective.vectors import length


class Root(NamedTuple):
    """The model ``(d,)`` of the server's own user."""

    theta: Tensor


class Trust:
    """k times the mean of the rows, each as long as the server's own and as trusted as it is alike.

    (Cao, Fang, Liu, Gong, *FLTrust: Byzantine-robust federated learning via trust bootstrapping*,
    2021.) The server is a user of its own, with ``points`` points that nobody else holds, and
    reports ``g_0`` as an honest user does; its own report does not count otherwise.

        direction = k sum_n c_n (||g_0|| / ||g_n||) g_n / sum_n c_n,  c_n = max(0, cos(g_n, g_0))

    and 0 where no row points the server's way. It is no longer than ``k ||g_0||``, whatever users
    send.
    """

    def __init__(self, setup: RuleSetup, *, points: int = 100) -> None:
        self.setup, self.points = setup, points

    def init(self, rho: Tensor) -> Root:
        """Return that the server's user begins at rho."""
        return Root(rho.clone())

    def update(self, state: Root, received: Received) -> tuple[Tensor, Root]:
        """Return the direction, and the server's model."""
        own, theta = self.setup.root(received.rho, state.theta, self.points, received.round)
        return trusted(received.rows, own), Root(theta)


def trusted(rows: Tensor, own: Tensor) -> Tensor:
    """Return FLTrust's direction ``(d,)`` of rows ``(k, d)`` and the server's report ``(d,)``.

    >>> trusted(torch.tensor([[4.0, 0.0], [-9.0, 0.0], [1.0, 1.0]]), torch.tensor([2.0, 0.0]))
    tensor([5.2721, 1.7574])
    """
    tiny = torch.finfo(rows.dtype).tiny
    units = rows / length(rows).clamp(min=tiny)
    reach = length(own)
    # Not by a matrix product, whose order of summation hangs on where in memory the rows lie.
    alike = (units * (own / reach.clamp(min=tiny))).sum(dim=1).clamp(min=0)
    total = alike.sum()
    if float(total) == 0:
        return torch.zeros_like(own)
    return len(rows) * reach * ((alike / total)[:, None] * units).sum(dim=0)
