"""How the paper's figures are run: data and local steps, and the two protocols."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.studies.variants import Keys

MNIST: Keys = {
    "dataset": "mnist",
    "points-per-user": "6000",
    "nu": 0.0,
    "lam": 1.0,
    "dtype": "float32",
    "local-solver": "adam",
    "local-lr": 0.02,
    "local-lr-decay": 0.99,
    "local-lr-floor": 0.005,
}
"""Ten honest users of 6,000 draws and one Adam step a round (Appendix G)."""

THREAT_MODEL: Keys = {
    "server-optimizer": "sgd",
    "server-lr": "auto",
    "estimator": "inferred",
    "update-order": "local-first",
}
"""The protocol of Section 5.1: the attacker knows rho and eta, and the server steps by SGD."""

PAPER: Keys = {
    "server-optimizer": "adam",
    "server-lr": 0.02,
    "server-lr-decay": 0.99,
    "server-lr-floor": 0.005,
    "estimator": "oracle",
    "update-order": "simultaneous",
}
"""The protocol of the paper's experiments: Adam on the server too, which gives the sum away."""

AUTHORS_STEPS: Keys = {"local-lr": 0.0198, "server-lr": 0.0198}
"""The paper's protocol as its authors' ``train`` steps: it decays once before the first step, so
that round 1 has 0.02 x 0.99. Figures 1 and 16 are run so; the others a round behind."""

PROTOCOLS: Mapping[str, Keys] = {"threat model": THREAT_MODEL, "paper": PAPER}

QUICK_POINTS: Keys = {"points-per-user": "600"}
"""A tenth of the data: what the quick forms of Figures 1 to 3 learn from."""
