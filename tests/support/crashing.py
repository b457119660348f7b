"""An attacker whose process fails in every way, for runs on Ray: a plug-in, ``attack = ...``."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from torch import Tensor

from pfl_flower.attacks.attack import Observation
from pfl_flower.attacks.cga import CGAState, CounterGradient, counter_gradient
from pfl_flower.attacks.setup import AttackSetup

PERIOD = 5
"""It raises in every fifth round."""
SLOW, SLOW_SECONDS = 193, 30.0
"""The round in which it takes far longer than the test's ``reply-timeout``, and how long."""
EXIT = 197
"""The round in which its process, where it has one of its own, ends."""


class Crashing(NamedTuple):
    """CGA that crashes; it tells its server's process, in which nothing may end, from Ray's."""

    attack: CounterGradient
    process: bool

    def init(self, rho: Tensor) -> CGAState:
        """Return CGA's state."""
        return self.attack.init(rho)

    def update(self, state: CGAState, observation: Observation) -> tuple[Tensor, CGAState]:
        """Return CGA's wish, or fail."""
        if observation.round % PERIOD == 0:
            raise RuntimeError(f"crashed in round {observation.round}")
        if observation.round == SLOW and self.process:
            time.sleep(SLOW_SECONDS)
        if observation.round >= EXIT and self.process:
            os._exit(1)
        return self.attack.update(state, observation)


def crashing(setup: AttackSetup) -> Crashing:
    """Return the attacker; on Ray it is another process than the server's."""
    return Crashing(counter_gradient(setup), _on_ray())


def _on_ray() -> bool:
    import sys

    # Of Ray a process may have loaded no more than its name: it is none of Ray's then.
    ray = sys.modules.get("ray")
    worker = getattr(getattr(ray, "_private", None), "worker", None)
    return worker is not None and bool(worker.global_worker.mode == ray.WORKER_MODE)  # type: ignore[union-attr]
