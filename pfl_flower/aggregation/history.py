"""Centred clipping with a memory: momenta of every user, and where the last round ended."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pfl_flower.aggregation.clipping import shortened
from pfl_flower.aggregation.kernels import mean
from pfl_flower.aggregation.rounds import Received, RuleSetup
from pfl_flower.objective.vectors import length


class History(NamedTuple):
    """What is kept between rounds.

    Attributes
    ----------
    momenta : Tensor
        Of every user, ``(N, d)``.
    met : Tensor
        Whether a user's row ever counted, ``(N,)``, bool.
    centre : Tensor
        What the last round's estimate of one user's gradient was, ``(d,)``.
    """

    momenta: Tensor
    met: Tensor
    centre: Tensor


class HistoryClipping:
    """k times the last centre, moved by the mean of the users' clipped momenta about it.

    ``m_n <- beta m_n + (1 - beta) g_n``, a user's first row as it is; then ``v <- v + mean clip(m_n
    - v)`` from the v of the round before, 0 at first (Karimireddy, He, Jaggi, *Learning from
    history for Byzantine robust optimization*, 2021; their users keep the momenta, here the server
    does, and a strategic user cannot choose its own). ``clipping-radius`` is the radius, empty for
    the median distance of the momenta to v. Momenta of those who are not asked wait. The state is
    ``N d`` numbers.
    """

    def __init__(
        self,
        setup: RuleSetup,
        *,
        beta: float = 0.9,
        clippings: int = 1,
        radius: float | None = None,
    ) -> None:
        self.users, self.beta = setup.settings.users, beta
        self.clippings, self.radius = clippings, radius

    def init(self, rho: Tensor) -> History:
        """Return that nobody was met."""
        met = torch.zeros(self.users, dtype=torch.bool)
        return History(rho.new_zeros((self.users, len(rho))), met, torch.zeros_like(rho))

    def update(self, state: History, received: Received) -> tuple[Tensor, History]:
        """Return the direction, and the momenta and the centre after it."""
        users, rows = received.users, received.rows
        there = users.to(rows.device)
        known, beta = state.met[users].to(rows.device)[:, None], self.beta
        old = state.momenta[there]
        now = torch.where(known, beta * old + (1 - beta) * rows, rows)
        centre = state.centre
        for _ in range(self.clippings):
            away = now - centre
            norms = length(away)
            reach = norms.median() if self.radius is None else norms.new_tensor(self.radius)
            centre = centre + mean(shortened(away, norms, reach))
        momenta, met = state.momenta.clone(), state.met.clone()
        momenta[there], met[users] = now, True
        return len(rows) * centre, History(momenta, met, centre)
