"""The same results on a CUDA device as on the processor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support import nets, problems
from tests.support.on_card import CASES, RUNS, SINGLE, accuracies, check_same, judged
from tests.support.problems import draw
from tests.support.runs import configure, play, trajectory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_same_on_both_devices(name: str) -> None:
    """Float64, round by round; solves agree to their tolerance, sums to their rounding."""
    runs = [play(configure(**RUNS[name], device=device)) for device in ("cpu", "cuda")]
    assert runs[1][0].rho.device.type == "cuda"
    assert all(record.metrics.unconverged == 0 for run in runs for record in run)
    processor, card = (trajectory(run).cpu() for run in runs)
    assert processor.abs().max() > 1e-3
    assert (card - processor).abs().max() <= 1e-8 * processor.abs().max().clamp(min=1)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("model", [nets.mlp, nets.small_cnn, nets.Tied])
def test_a_module_is_the_same_on_both_devices_and_whatever_the_nodes(
    model: nets.Factory, dtype: str
) -> None:
    keys = {
        "dataset": "digits",
        "model": model,
        "local_solver": "sgd",
        "local_lr": 1e-3,
        "local_steps": 2,
        "users": 11,
        "strategic_users": "none",
        "points_per_user": "50,20",
        "server_lr": 0.05,
        "dtype": dtype,
    }
    processor = trajectory(play(configure(**keys, device="cpu")))
    config = configure(**keys, device="cuda")
    cards = [trajectory(play(config, nodes=nodes)).cpu() for nodes in (1, 4, 11)]
    assert torch.equal(cards[0], cards[1]) and torch.equal(cards[0], cards[2])
    tolerance = 1e-10 if dtype == "float64" else 1e-4
    torch.testing.assert_close(cards[0], processor, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("model", SINGLE)
def test_single_precision_is_the_same_to_its_own_rounding(model: str) -> None:
    runs = [play(configure(**SINGLE[model], device=device)) for device in ("cpu", "cuda")]
    processor, card = (trajectory(run).cpu() for run in runs)
    torch.testing.assert_close(card, processor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("users", [3, 100])
@pytest.mark.parametrize("name", problems.REGULARIZERS)
@pytest.mark.parametrize("case", problems.LOSSES)
def test_solves_agree(case: problems.LossCase, name: str, users: int) -> None:
    """One user at a time, and many as one batch."""
    problem = draw(case, name, seed=3, users=users, points=5, inputs=9)
    expected = problem.solve()
    loss = replace(
        problem.loss,
        features=problem.loss.features.cuda(),
        labels=problem.loss.labels.cuda(),
        weights=problem.loss.weights.cuda(),
        scale=problem.loss.scale.cuda(),
    )
    there = replace(problem, loss=loss, rho=problem.rho.cuda(), start=problem.start.cuda())
    found = there.solve()
    assert found.theta.device.type == "cuda"
    assert bool(found.converged.all())
    torch.testing.assert_close(found.theta.cpu(), expected.theta, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_every_rule_and_attack_is_the_same_on_both_devices(name: str) -> None:
    check_same(name, judged(CASES[name], "cuda"))


@pytest.mark.parametrize("models", [1, 2])
@pytest.mark.parametrize("model", SINGLE)
def test_accuracies_agree(model: str, models: int) -> None:
    torch.testing.assert_close(accuracies(model, models, "cuda"), accuracies(model, models, "cpu"))
