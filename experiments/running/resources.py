"""What each node of Flower's simulation may use of this machine.

Ray starts as many actors as the resources that nodes ask for allow, and hides the cards from an
actor that asked for no share of one: a node that is to compute on a card has to ask.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from pfl_flower.support.errors import ConfigError, DeviceError

USUAL_NODES = 2
"""Flower's own number of nodes, where none is asked for."""
STEPS = 10_000
"""Ray counts resources in ten thousandths: so many shares of a card there can be."""


@dataclass(frozen=True)
class Machine:
    """What there is to share: processor cores, and CUDA devices that torch sees."""

    cores: int
    cards: int

    @classmethod
    def here(cls) -> Machine:
        """Return this machine."""
        import torch  # the command line looks at its options before torch is loaded

        if hasattr(os, "sched_getaffinity"):
            cores = len(os.sched_getaffinity(0))
        else:
            cores = os.cpu_count() or 1
        return cls(cores, torch.cuda.device_count() if torch.cuda.is_available() else 0)


def federation(device: str, nodes: int | None, machine: Machine) -> str:
    """Return what ``flwr run --federation-config`` is told; nothing where Flower's own will do.

    Parameters
    ----------
    device : str
        The run's ``device``: on ``auto`` nodes compute on a card where there is one.
    nodes : int or None
        How many; None for as many as Flower is set to.
    machine : Machine
        What they share. At most as many run at once as there are cores; these share the cards
        equally, and no share is of two cards.

    Raises
    ------
    ConfigError
        If a card is asked for and there is none, or there are more shares than cards can have.

    Examples
    --------
    >>> federation("cuda", 11, Machine(cores=16, cards=1))
    'num-supernodes=11 client-resources-num-cpus=1 client-resources-num-gpus=0.0909'
    >>> federation("cpu", None, Machine(cores=16, cards=1))
    ''
    """
    if device == "cuda" and machine.cards == 0:
        raise DeviceError.no_card()
    said = [] if nodes is None else [f"num-supernodes={nodes}", "client-resources-num-cpus=1"]
    if device == "cpu" or machine.cards == 0:
        return " ".join(said)
    together = min(USUAL_NODES if nodes is None else nodes, machine.cores)
    sharing = math.ceil(together / machine.cards)
    if sharing > STEPS:
        most = STEPS * machine.cards
        raise ConfigError(
            f"--nodes {nodes}: expected at most {most:,} at once on {machine.cards} "
            f"{'card' if machine.cards == 1 else 'cards'}"
        )
    # Rounded down, or the last share would be more than is left.
    share = (STEPS // sharing) / STEPS
    said = said or ["client-resources-num-cpus=1"]
    return " ".join([*said, f"client-resources-num-gpus={share:g}"])
