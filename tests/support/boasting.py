"""An attacker whose node answers with far more than it was asked for: a plug-in, ``attack = ...``.

Only where ``BOAST_MB`` says how much, in the environment of that node: everywhere else, and for the
server that tries it, it is CGA.
"""

from __future__ import annotations

import os

import torch

from pfl_flower.attacks.cga import CounterGradient, counter_gradient
from pfl_flower.attacks.setup import AttackSetup
from pfl_flower.transport import training_replies

HOW_MUCH = "BOAST_MB"


def boasting(setup: AttackSetup) -> CounterGradient:
    """Return CGA, whose process packs megabytes of numbers instead of its report."""
    if HOW_MUCH in os.environ:
        numbers = int(os.environ[HOW_MUCH]) * 10**6 // 8
        right = training_replies.to_record

        def boast(tensors):  # type: ignore[no-untyped-def]
            # No two pieces are the same: Flower would send them once.
            return right({name: torch.randn(numbers, dtype=torch.float64) for name in tensors})

        training_replies.to_record = boast
    return counter_gradient(setup)
