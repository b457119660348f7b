"""The studies by name: the paper's figures and theorems, and what the laboratory adds to them.

Nothing is imported to list them: a study's module is loaded when it is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pfl_flower.support.errors import ConfigError


class Listed(NamedTuple):
    """Where a study is, as ``package.module:NAME``, and one line of what it shows."""

    place: str
    title: str


THEORY = "experiments.theory"
PAPER = "experiments.paper"

STUDIES: Mapping[str, Listed] = {
    "thm1-equivalence": Listed(
        f"{THEORY}.equivalence:STUDY",
        "Theorem 1: gradient attack, model attack and data poisoning hold the same models",
    ),
    "thm2-linear-pac": Listed(
        f"{THEORY}.linear_pac:STUDY",
        "Theorem 2: an honest user of linear regression learns theta_dagger, whoever else lies",
    ),
    "thm3-logistic-pac": Listed(
        f"{THEORY}.logistic_pac:STUDY",
        "Theorem 3: an honest user of logistic regression learns theta_dagger, whoever else lies",
    ),
    "thm4-cga-convergence": Listed(
        f"{THEORY}.convergence:STUDY",
        "Theorem 4: CGA against squared l2 converges to the target, up to eta h = 1/2",
    ),
    "thm5-single-point": Listed(
        f"{THEORY}.single_point:STUDY",
        "Theorem 5: one data point holds a linear regression's global model at any target",
    ),
    "prop1-projection": Listed(
        f"{THEORY}.projection:STUDY",
        "Proposition 1: CGA's report minimises Equation 6 over GRAD(rho)",
    ),
    "prop2-partial-honesty": Listed(
        f"{THEORY}.partial_honesty:STUDY",
        "Proposition 2: CGA out of reach of its target points at it, with all of lam",
    ),
    "prop3-model-attack": Listed(
        f"{THEORY}.model_attack:STUDY",
        "Proposition 3: a model attack that holds squared l2 at the target",
    ),
    "lemma1-reduction": Listed(
        f"{THEORY}.reduction:STUDY",
        "Lemma 1: data poisoning is a model attack with the data's own local model",
    ),
    "lemma2-l2": Listed(
        f"{THEORY}.sampled_l2:STUDY",
        "Lemma 2 under l2: data that a model labels do what the model attack does",
    ),
    "lemma5-own-regularizer": Listed(
        f"{THEORY}.own_regularizer:STUDY",
        "Lemma 5: regularisers of one's own, convex or not, let an honest user learn",
    ),
    "gradient-pac": Listed(
        f"{THEORY}.gradient_pac:STUDY",
        "Definition 2, Lemma 4: regressions are gradient-PAC*",
    ),
    "means-are-not-pac": Listed(
        f"{THEORY}.means_not_pac:STUDY",
        "Appendix C.1: with means of losses an honest user does not learn, however many points",
    ),
    "reports-against-data": Listed(
        f"{THEORY}.reports_presentation:STUDY",
        "Section 6, arXiv 2506.18020: reports answer to honest data, datasets do not",
    ),
    "equivalence-nonconvex": Listed(
        f"{THEORY}.nonconvex_presentation:STUDY",
        "Theorem 1 on a network, arXiv 2410.21453: how much of CGA data can say, and hold",
    ),
    "few-points": Listed(
        f"{THEORY}.honest_points:STUDY",
        "Section 5.3: what labels hold rho against honest users of many or few points",
    ),
    "alpha-grows-with-n": Listed(
        f"{THEORY}.alpha_growth:STUDY",
        "Appendix I.2: what weight the indifference poisoning needs against N honest users",
    ),
    "classical": Listed(
        f"{THEORY}.classical:STUDY",
        "Section 2: as lam grows rho becomes that of classical federated learning, and how fast",
    ),
    "budget-curve": Listed(
        "experiments.poisoning_budget.study:STUDY",
        "What poisoning methods buy for their labels, at equilibrium and after 250 rounds",
    ),
    "defences": Listed(
        "experiments.defences.study:STUDY",
        "Attack x rule: what a rule costs, and its worst case over attackers who know it too",
    ),
    "influence": Listed(
        "experiments.influence.study:STUDY",
        "How far k users move rho under each rule, in a round and at rest: bound and found",
    ),
    "anyone": Listed(
        "experiments.examples.anyone:STUDY",
        "In anyone's Flower app: attacks by a client mod against Flower's strategies and ours",
    ),
    "backdoors": Listed(
        "experiments.backdoors.study:STUDY",
        "A trigger on images x regulariser x model: whom it leads, rho or the users",
    ),
    "who-is-hurt": Listed(
        "experiments.personalization.study:STUDY",
        "Attack x way to personalise: who is hurt, rho or the users",
    ),
    "heterogeneity": Listed(
        "experiments.heterogeneity.study:STUDY",
        "Users who differ x lam x regulariser: what taking part pays, and what one attacker takes",
    ),
    "interpolation": Listed(
        "experiments.heterogeneity.interpolation:STUDY",
        "Allouah et al. 2024: how far to collaborate among users who differ and some who lie",
    ),
    "fig1-cga": Listed(
        f"{PAPER}.figure_1_cga:STUDY",
        "Figures 1 and 16: CGA on MNIST hacks squared l2 and neither l2 nor smooth l2",
    ),
    "fig2-model-attack": Listed(
        f"{PAPER}.figure_2_model_attack:STUDY",
        "Figure 2: the model attack of Proposition 3 on MNIST, from both sources of theta_spade",
    ),
    "fig3-data-poisoning": Listed(
        f"{PAPER}.figure_3_data_poisoning:STUDY",
        "Figure 3: 2,000 indifference points on MNIST, for 250 rounds and in the end",
    ),
    "table1-sum-vs-mean": Listed(
        f"{PAPER}.table_1_sums_and_means:TABLE1",
        "Table 1, Figures 8 and 9: sums of losses beat means on noisy FashionMNIST",
    ),
    "fig4-13-lambda": Listed(
        f"{PAPER}.table_1_sums_and_means:LAMBDA",
        "Figures 4 to 13: sums against means for lam from 0.01 to 100",
    ),
    "fig5-mean-ahead": Listed(
        f"{PAPER}.mean_ahead:STUDY",
        "Figure 5's exception: why an active user may do better with the mean, at lam = 0.01",
    ),
    "fig14-15-no-noise": Listed(
        f"{PAPER}.table_1_sums_and_means:NO_NOISE",
        "Figures 14 and 15: sums against means without label noise, 1,000 rounds",
    ),
    "fig17-cifar-cga": Listed(
        f"{PAPER}.figures_17_to_19_cifar:CGA",
        "Figure 17: CGA on the last layer of a VGG13-BN, CIFAR-10",
    ),
    "fig18-cifar-model": Listed(
        f"{PAPER}.figures_17_to_19_cifar:MODEL",
        "Figure 18: the model attack of CGA's last gradient, CIFAR-10",
    ),
    "fig19-cifar-data": Listed(
        f"{PAPER}.figures_17_to_19_cifar:DATA",
        "Figure 19: 100,000 indifferent embeddings, CIFAR-10",
    ),
    "inversion-cifar": Listed(
        f"{PAPER}.inversion_cifar:STUDY",
        "Images whose embeddings the data attack needs, by feature inversion (Appendix J.3)",
    ),
}


def check_names(names: Sequence[str]) -> None:
    """Raise ConfigError at the first name that is no study's."""
    for name in names:
        if name not in STUDIES:
            raise ConfigError(f"NAME = {name}: expected one of {', '.join(STUDIES)}")
