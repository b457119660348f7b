"""The data and the classifier, in numpy and scikit-learn alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import SGDClassifier
from sklearn.preprocessing import StandardScaler

FEATURES = 30
HELD_OUT = 119
"""Tumours that no client has."""
MALIGNANT, BENIGN = 0, 1


@lru_cache(maxsize=4)
def tumours(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features, ``(569, 30)``, and labels, in an order drawn by the seed."""
    features, labels = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    # By the mean and the spread of the shared ones: those that are held out play no part.
    scaler = StandardScaler().fit(features[order[:-HELD_OUT]])
    return scaler.transform(features[order]), labels[order]


def test_points(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the tumours that are held out."""
    features, labels = tumours(seed)
    return features[-HELD_OUT:], labels[-HELD_OUT:]


def partition(number: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one hospital's tumours."""
    features, labels = tumours(seed)
    own = np.array_split(np.arange(len(labels) - HELD_OUT), count)[number]
    return features[own], labels[own]


def classifier(rate: float, seed: int) -> SGDClassifier:
    """Return a logistic regression at 0, which learns by stochastic gradient descent."""
    model = SGDClassifier(
        loss="log_loss", learning_rate="constant", eta0=rate, random_state=seed, alpha=1e-3
    )
    model.classes_ = np.array([MALIGNANT, BENIGN])
    set_parameters(model, [np.zeros((1, FEATURES)), np.zeros(1)])
    return model


def parameters(model: SGDClassifier) -> list[np.ndarray]:
    """Return what was learnt."""
    return [model.coef_, model.intercept_]


def set_parameters(model: SGDClassifier, values: list[np.ndarray]) -> None:
    """Put what was learnt elsewhere into a classifier."""
    model.coef_, model.intercept_ = values
