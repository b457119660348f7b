"""Which attack and which strategy, by the run configuration: so that one app shows them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdam,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    MultiKrum,
    Strategy,
)
from torch.utils.data import TensorDataset

import pfl_flower as pfl
from fedavg_digits.task import digits, network, train

Next = Callable[[Message, Context], Message]
EXAMPLES = 10**6
"""What a client claims to hold that exaggerates: 7,000 times as much as the average."""
LONGEST = 5.0
"""Longest update that is counted: an honest client's two epochs go 1 to 3 far."""
MOST = 1000.0
"""Most examples that are believed: all clients together hold 1,437."""


def shifted(layers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the attacker's target: the network trained to read every digit as the next one."""
    model = network(0)
    model.load_state_dict({name: torch.from_numpy(values) for name, values in layers.items()})
    images, labels = digits()
    own = slice(0, 500)
    points = TensorDataset(images[own], (labels[own] + 1) % 10)
    train(model, points, epochs=30, rate=0.1, seed=0)
    return {name: values.numpy() for name, values in model.state_dict().items()}


SURROGATES = {"surrogates": [0, 1, 2, 3]}
"""Other partitions whose data the attacker happens to have."""
ATTACKS: Mapping[str, Mapping[str, Any]] = {
    "sign-flip": {"strength": 5.0},
    "gaussian": {},
    "cga": {"target": shifted},
    "model-replacement": {"target": shifted, "weight": 0.1},
    "inner-product": SURROGATES,
    "little-is-enough": {**SURROGATES, "strength": 1.5},
    "min-max": SURROGATES,
    "free-rider": {},
    "stale": {"delay": 3},
    "honest": {"num_examples": EXAMPLES},
    "nan": {},
    "wrong-shape": {},
}


@lru_cache(maxsize=4)
def _mod(name: str, partitions: int, seed: int) -> Any:
    return pfl.attack_mod(name, partitions=[partitions - 1], seed=seed, **ATTACKS[name])


def attack(message: Message, context: Context, call_next: Next) -> Message:
    """Be the attack that the run configuration names, on the last partition."""
    name, count = str(context.run_config["attack"]), int(context.node_config["num-partitions"])
    if name == "none":
        return call_next(message, context)
    mod = _mod(name, count, int(context.run_config["seed"]))
    return mod(message, context, call_next)


STRATEGIES: Mapping[str, Callable[..., Strategy]] = {
    "fedavg": FedAvg,
    "fedadam": lambda **given: FedAdam(eta=0.03, **given),
    "fedmedian": FedMedian,
    "fedtrimmedavg": lambda **given: FedTrimmedAvg(beta=0.2, **given),
    "krum": lambda **given: Krum(num_malicious_nodes=1, **given),
    "multikrum": lambda **given: MultiKrum(num_malicious_nodes=1, num_nodes_to_select=8, **given),
    "bulyan": lambda **given: Bulyan(num_malicious_nodes=1, **given),
    "checked-fedavg": lambda **given: pfl.Checked(
        FedAvg(**given), max_norm=LONGEST, max_examples=MOST
    ),
    "robust-median": lambda **given: pfl.RobustFedAvg("median", **given),
    "robust-trimmed-mean": lambda **given: pfl.RobustFedAvg("trimmed-mean", 1, **given),
    "robust-multi-krum": lambda **given: pfl.RobustFedAvg("multi-krum", 1, **given),
    "robust-geometric-median": lambda **given: pfl.RobustFedAvg("geometric-median", **given),
    "robust-centred-clipping": lambda **given: pfl.RobustFedAvg("centred-clipping", **given),
    "robust-median-fedadam": lambda **given: pfl.RobustFedAvg(
        "median", on=FedAdam(eta=0.03, **given)
    ),
}


def strategy(config: Mapping[str, Any]) -> Strategy:
    """Return the strategy that the run configuration names."""
    return STRATEGIES[str(config["strategy"])](
        fraction_train=float(config["fraction-train"]), fraction_evaluate=0.0
    )
