"""Backdoors of convolutions, of images in folders, and of images that lie on nodes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pfl_flower as pfl
from pfl_flower import client_app, server_app
from pfl_flower.run.config import parse_config
from pfl_flower.run.finished import Result
from pfl_flower.run.problem import build_problem
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.seeding import generator
from pfl_flower.transport.inprocess import InProcessGrid
from tests.attacks.test_backdoor import small
from tests.support.runs import play

ATTACKS = ("backdoor", "model-replacement")
CNN: dict[str, Any] = {
    "model": "cnn",
    "model_options": '{"channels": 4}',
    "local_solver": "adam",
    "local_steps": 5,
    "local_lr": 0.01,
    "reduction": "mean",
    "lam": 0.1,
    "nu": 0.0,
}
"""What users take for a network: means, and a few steps a round."""


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("regularizer", ["squared-l2", "l2"])
def test_nodes_do_not_matter_to_convolutions(attack: str, regularizer: str) -> None:
    keys = small(attack=attack, regularizer=regularizer, **CNN)
    runs = [pfl.run(**keys, nodes=nodes) for nodes in (1, 5)]
    assert len({run.users_text for run in runs}) == 1
    assert np.abs(runs[0].rho - runs[1].rho).max() < 1e-9
    assert runs[0].passed
    assert np.isfinite(runs[0].users["triggered_theta"][:4]).all()


def test_replacement_leads_convolutions_under_squared_l2_and_not_under_l2() -> None:
    """And the personal models with rho, while clean points are answered as before."""
    keys = small(attack="model-replacement", rounds=20, **CNN)
    shares = {}
    for regularizer in ("squared-l2", "l2"):
        run = pfl.run(**{**keys, "regularizer": regularizer})
        shares[regularizer] = run.metrics["triggered_rho"], run.metrics["triggered_theta_mean"]
        assert run.metrics["accuracy_true"] > 0.85
    points = build_problem(parse_config(keys)).triggered_tests
    assert points is not None
    alone = play(parse_config({**keys, "strategic-users": "none"}))[-1].rho
    (unmoved,) = points.accuracy_of_each(build_problem(parse_config(keys)).model, alone[None])
    assert min(shares["squared-l2"]) > 0.9
    assert max(*shares["l2"], float(unmoved)) < 0.3


def test_a_convolutions_triggered_share_is_counted_on_stamped_test_points() -> None:
    run = pfl.run(**small(rounds=20, **CNN))
    problem = build_problem(parse_config(small(rounds=20, **CNN)))
    features, labels = problem.source.test_set()
    marked = features[labels != 2].clone()
    marked[:, 19] = 1.0
    scores = problem.model.scores(torch.from_numpy(run.rho)[None], marked)[0]
    share = float((scores.argmax(dim=1) == 2).double().mean())
    assert run.metrics["triggered_rho"] == share == run.metrics["accuracy_target"]


CLASSES, SIDE = ("circle", "square", "stripe"), 8


def folder_of(path: Path) -> Path:
    """Images of 8 x 8 in colour: noise, and a brighter third of the rows, which the class says."""
    draw = generator(1, "images of a folder")
    for part, count in (("train", 40), ("test", 20)):
        for label, name in enumerate(CLASSES):
            (path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = 130 * torch.rand((SIDE, SIDE, 3), generator=draw)
                pixels[2 * label : 2 * label + 2] += 90
                image = Image.fromarray(pixels.to(torch.uint8).numpy())
                image.save(path / part / name / f"{number:03}.png")
    return path


def in_folder(path: Path, **keys: Any) -> dict[str, Any]:
    patch = '{"size": 2, "label": 1, "share": 0.4}'
    base = {"dataset": f"imagefolder:{path}", "nu": 0.1, "attack_options": patch}
    return small(**{**base, **keys})


@pytest.mark.parametrize("model", ["linear", "cnn"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_images_of_a_folder(
    attack: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PFL_CACHE_DIR", str(tmp_path / "cache"))
    keys = in_folder(folder_of(tmp_path / "tree"), attack=attack, rounds=30)
    keys |= {name.replace("_", "-"): value for name, value in CNN.items()} if model == "cnn" else {}
    run = pfl.run(**keys)
    problem = build_problem(parse_config(keys))
    assert problem.source.shape == (3, SIDE, SIDE)
    features, labels = problem.source.test_set()
    marked = features[labels != 1].clone()
    images = marked[:, : 3 * SIDE * SIDE].view(-1, 3, SIDE, SIDE)
    images[..., -2:, -2:] = 1.0
    scores = problem.model.scores(torch.from_numpy(run.rho)[None].to(marked), marked)[0]
    share = float((scores.argmax(dim=1) == 1).double().mean())
    assert run.metrics["triggered_rho"] == pytest.approx(share, abs=1e-12)
    assert run.metrics["accuracy_true"] > 0.9 and run.passed
    if attack == "model-replacement":
        assert share > 0.9


def test_a_patch_must_fit_the_folders_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PFL_CACHE_DIR", str(tmp_path / "cache"))
    path = folder_of(tmp_path / "tree")
    for options, line in (
        ('{"size": 9}', r"size = 9: expected at most 8, for images of 8 x 8 pixels"),
        ('{"label": 3}', r"label = 3: expected 0 to 2, for 3 classes"),
    ):
        keys = in_folder(path, attack_options=options)
        with pytest.raises(ConfigError, match=line) as error:
            build_problem(parse_config(keys))
        assert "\n" not in str(error.value)


AWAY: dict[str, Any] = {
    "site": True,
    "dataset": "npz:points.npz",
    "partition": "whole",
    "points-per-user": "",
    "columns": "1x5x4",
    "classes": 3,
    "users": 3,
    "strategic-users": "2",
    "rounds": 12,
    "save-trajectory": True,
}


def write_away(folder: Path) -> list[Path]:
    """Write each owner's images of 5 x 4, those of all with their owners, and a test set."""
    problem = build_problem(parse_config(small()))
    images, labels = (part.numpy() for part in problem.source.training_set())
    images = images[:, :20].reshape(-1, 5, 4)
    places, first = [], 0
    for owner, size in enumerate((50, 60, 70)):
        places.append(folder / str(owner))
        places[-1].mkdir(parents=True)
        part = slice(first, first := first + size)
        np.savez(places[-1] / "points.npz", features=images[part], labels=labels[part])
    (folder / "all").mkdir()
    owners = np.repeat([0, 1, 2], [50, 60, 70])
    np.savez(
        folder / "all" / "points.npz", features=images[:180], labels=labels[:180], users=owners
    )
    np.savez(folder / "test.npz", features=images[180:], labels=labels[180:])
    return places


def played(keys: dict[str, Any], places: list[Path]) -> Result:
    config = parse_config({name.replace("_", "-"): value for name, value in keys.items()})
    nodes = {node: {"data-path": str(place)} for node, place in enumerate(places)}
    grid = InProcessGrid(client_app.app, nodes=3, run_config=config.flat(), node_configs=nodes)
    return Result.of(server_app.run(grid, build_problem(config)))


@pytest.mark.parametrize("model", ["linear", "cnn"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_images_that_lie_on_nodes_alone(attack: str, model: str, tmp_path: Path) -> None:
    """The server stamps its own test set; of users' own it repeats what their nodes say."""
    places = write_away(tmp_path)
    keys = {**small(attack=attack, **(CNN if model == "cnn" else {})), **AWAY}
    plain = played(keys, places)
    tested = played({**keys, "test-data": str(tmp_path / "test.npz")}, places)
    assert np.array_equal(plain.rho, tested.rho)
    assert "accuracy_target" in tested.metrics and "accuracy_target" not in plain.metrics
    for run in (plain, tested):
        shares = run.users["triggered_theta"]
        assert np.isfinite(shares[:2]).all() and np.isnan(shares[2])
        assert "triggered_rho" in run.summary["nodes_word"]
        assert run.passed
    assert np.abs(plain.rho - plain.trajectory[0]).max() > 0.01  # type: ignore[index]


def test_the_backdoor_apart_is_the_one_that_it_would_be_together(tmp_path: Path) -> None:
    places = write_away(tmp_path)
    keys = {**small(attack="backdoor"), **AWAY}
    together = {
        **{name: value for name, value in keys.items() if name not in ("site", "columns")},
        "partition": "natural",
        "data-dir": str(tmp_path / "all"),
        "holdout": 0.0,
    }
    apart, joint = played(keys, places), played(together, [])
    assert np.array_equal(apart.rho, joint.rho)
    for name in ("triggered_theta", "triggered_rho"):
        assert apart.users[name][:2].tolist() == joint.users[name][:2].tolist()
