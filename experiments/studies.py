"""The studies by name: theorems, and what the laboratory adds to them."""

from __future__ import annotations

from collections.abc import Mapping

THEORY = "experiments.theory"
PAPER = "experiments.paper"

STUDIES: Mapping[str, str] = {
    "fig1-cga": f"{PAPER}.cga:STUDY",
    "fig2-model-attack": f"{PAPER}.model:STUDY",
    "fig3-data-poisoning": f"{PAPER}.data:STUDY",
    "table1-sum-vs-mean": f"{PAPER}.sums:TABLE1",
    "fig4-13-lambda": f"{PAPER}.sums:LAMBDA",
    "fig14-15-no-noise": f"{PAPER}.sums:NO_NOISE",
    "prop1-projection": f"{THEORY}.projection:STUDY",
}
