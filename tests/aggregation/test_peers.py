"""Our rules beside byzfl's and Flower's: where definitions agree so do the numbers.

Where they do not agree, both are held against their own definition, which is what differs:

- byzfl's Krum and Multi-Krum sum the distances to the k - f - 1 nearest others, Blanchard et al. to
  k - f - 2; so byzfl's with f + 1 scores as ours with f, and Krum's row is the same.
- byzfl's MDA takes the first of several sets of one diameter in the order of ids; ours the mean of
  all of them.
- Flower's Bulyan takes the k - 2 f best rows of one Krum, the paper's (and ours) one after another.
- Flower's Krum subtracts products: of rows that are alike in most digits it takes others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp.strategy import fedtrimmedavg, multikrum
from torch import Tensor

from pfl_flower.aggregation.kernels import distances
from pfl_flower.aggregation.rules import bind
from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.support.seeding import generator
from tests.support import peers, reference_rules

SEEDS, SHAPES = range(8), ((7, 3), (11, 40), (20, 5))
Peer = Callable[[np.ndarray, int], np.ndarray]
PRE = "aggregators.preaggregators"


def drawn(seed: int, shape: tuple[int, int]) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "peers", *shape), dtype=torch.float64)


def ours(name: str, rows: Tensor, f: int, **options: float) -> np.ndarray:
    mean: Tensor = bind(AGGREGATIONS.load(name), tolerance=f, **options)(rows) / len(rows)
    return mean.numpy()


def flower(rows: np.ndarray, f: int, kept: int) -> np.ndarray:
    contents = [RecordDict({"arrays": ArrayRecord([row])}) for row in rows]
    found = multikrum.select_multikrum(contents, f, kept)
    return np.mean([one["arrays"].to_numpy_ndarrays()[0] for one in found], axis=0)


def byzfl(name: str, *arguments: float) -> Callable[[np.ndarray], np.ndarray]:
    return peers.byzfl("aggregators", name, *arguments)


BYZFL: dict[str, Peer] = {
    "median": lambda rows, f: byzfl("Median")(rows),
    "trimmed-mean": lambda rows, f: byzfl("TrMean", f)(rows),
    "krum": lambda rows, f: byzfl("Krum", f + 1)(rows),
    "sum": lambda rows, f: byzfl("Average")(rows),
}
FLOWER: dict[str, Peer] = {
    "krum": lambda rows, f: flower(rows, f, 1),
    "multi-krum": lambda rows, f: flower(rows, f, len(rows) - f),
    "trimmed-mean": lambda rows, f: fedtrimmedavg.trim_mean(rows, (f + 0.5) / len(rows)),
}
PEERS = [
    *(pytest.param(name, peer, id=f"byzfl {name}") for name, peer in BYZFL.items()),
    *(pytest.param(name, peer, id=f"Flower {name}") for name, peer in FLOWER.items()),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "peer"), PEERS)
def test_rules_of_one_definition_agree(name: str, peer: Peer, shape: tuple[int, int]) -> None:
    for seed in SEEDS:
        rows = drawn(seed, shape)
        for f in range(1, (len(rows) - 3) // 2 + 1):
            theirs = peer(rows.numpy().copy(), f)
            np.testing.assert_allclose(ours(name, rows, f), theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("seed", SEEDS)
def test_clipping_is_byzfls(seed: int) -> None:
    rows = drawn(seed, (11, 6))
    for radius in (0.5, 2.0):
        theirs = peers.byzfl(PRE, "Clipping", radius)(rows.numpy().copy()).mean(axis=0)
        found = ours("static-clipping", rows, 1, radius=radius)
        np.testing.assert_allclose(found, theirs, rtol=1e-12)
    for f in range(1, 5):
        cut = peers.byzfl(PRE, "ARC", f)(rows.numpy().copy())
        theirs = byzfl("TrMean", f)(cut)
        np.testing.assert_allclose(ours("adaptive-clipping", rows, f), theirs, rtol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_least_diameter_is_byzfls_and_one_of_ours_is_its_set(seed: int) -> None:
    rows = drawn(seed, (9, 4))
    for f in (1, 2, 3):
        theirs = byzfl("MDA", f)(rows.numpy().copy())
        slow = reference_rules.mda(rows.numpy(), f)
        found = ours("mda", rows, f)
        np.testing.assert_allclose(found, slow, rtol=1e-12)
        if not np.allclose(theirs, slow):
            # Then several sets tie: in another order of ids byzfl's answer is another.
            others = [byzfl("MDA", f)(rows.numpy()[::-1].copy())]
            others += [byzfl("MDA", f)(np.roll(rows.numpy(), n, axis=0)) for n in range(1, 9)]
            assert not all(np.allclose(theirs, other) for other in others)


def test_krum_by_products_takes_other_rows() -> None:
    """Flower's, on rows that agree in their first digits, in single precision."""
    wrong = 0
    for seed in SEEDS:
        rows = (100 + 1e-3 * drawn(seed, (11, 40))).float()
        exact = reference_rules.krum(rows.double().numpy(), 2)
        mine = ours("krum", rows, 2)
        np.testing.assert_allclose(mine, exact, rtol=1e-6)
        wrong += not np.allclose(flower(rows.numpy(), 2, 1), exact, rtol=1e-7, atol=0)
    assert wrong >= len(SEEDS) // 2
    assert float(distances(rows).max()) > 0


def test_byzfls_krum_with_the_same_f_is_another_rule() -> None:
    """One neighbour more: on some rows another one is the best."""
    differing = 0
    for seed in SEEDS:
        rows = drawn(seed, (7, 3))
        theirs = byzfl("Krum", 2)(rows.numpy().copy())
        differing += not np.allclose(theirs, ours("krum", rows, 2))
    assert differing
