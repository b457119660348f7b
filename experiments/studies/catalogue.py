"""The studies by name: the paper's figures and theorems, and what the laboratory adds to them."""

from __future__ import annotations

from collections.abc import Mapping

THEORY = "experiments.theory"
PAPER = "experiments.paper"

STUDIES: Mapping[str, str] = {
    "thm1-equivalence": f"{THEORY}.equivalence:STUDY",
    "thm2-linear-pac": f"{THEORY}.linear_pac:STUDY",
    "thm3-logistic-pac": f"{THEORY}.logistic_pac:STUDY",
    "thm4-cga-convergence": f"{THEORY}.convergence:STUDY",
    "thm5-single-point": f"{THEORY}.single_point:STUDY",
    "prop1-projection": f"{THEORY}.projection:STUDY",
    "prop2-partial-honesty": f"{THEORY}.partial_honesty:STUDY",
    "prop3-model-attack": f"{THEORY}.model_attack:STUDY",
    "lemma1-reduction": f"{THEORY}.reduction:STUDY",
    "lemma5-own-regularizer": f"{THEORY}.own_regularizer:STUDY",
    "gradient-pac": f"{THEORY}.gradient_pac:STUDY",
    "alpha-grows-with-n": f"{THEORY}.alpha_growth:STUDY",
    "budget-curve": "experiments.poisoning_budget.study:STUDY",
    "defences": "experiments.defences.study:STUDY",
    "fig1-cga": f"{PAPER}.cga:STUDY",
    "fig2-model-attack": f"{PAPER}.model:STUDY",
    "fig3-data-poisoning": f"{PAPER}.data:STUDY",
    "table1-sum-vs-mean": f"{PAPER}.sums:TABLE1",
    "fig4-13-lambda": f"{PAPER}.sums:LAMBDA",
    "fig14-15-no-noise": f"{PAPER}.sums:NO_NOISE",
    "fig17-cifar-cga": f"{PAPER}.cifar:CGA",
    "fig18-cifar-model": f"{PAPER}.cifar:MODEL",
    "fig19-cifar-data": f"{PAPER}.cifar:DATA",
    "inversion-cifar": f"{PAPER}.inversion:STUDY",
}
