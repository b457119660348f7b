"""Feature inversion, and the studies of Appendix J on a tiny network and a handful of images."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console
from torch import nn

from experiments.paper import figures_17_to_19_cifar as figures
from experiments.paper import inversion_cifar
from experiments.running.options import Options
from experiments.studies.measuring import run_study, study_folder
from experiments.studies.study import Study
from pfl_flower.attacks.poisoning.image_inversion import (
    invert,
    nearest,
    relative_distance,
    total_variation,
)
from pfl_flower.data.vgg import VGG13, unit
from pfl_flower.support.seeding import generator
from tests.support.images import picture, write_tree

WIDTH = 16


@pytest.fixture(scope="module")
def network() -> VGG13:
    made = VGG13.initial(generator(1, "test weights"), width=WIDTH, classes=2)
    for module in made.modules():
        if isinstance(module, nn.Linear):
            module.weight.data *= 30
    return made.eval()


def pictures(*seeds: int) -> torch.Tensor:
    return torch.stack([picture(seed) for seed in seeds])


def test_total_variation_is_the_mean_step_between_neighbours() -> None:
    image = torch.zeros(1, 3, 2, 3)
    image[..., 1] = 1.0
    assert float(total_variation(image)) == 1.0
    assert float(total_variation(image.transpose(2, 3))) == 1.0
    assert float(total_variation(torch.full((1, 3, 4, 4), 0.7))) == 0.0


def test_the_nearest_embedding_is_found() -> None:
    known = torch.tensor([[0.0, 0.0], [1.0, 1.0], [3.0, 0.0]])
    assert nearest(torch.tensor([[2.4, 0.2], [0.9, 0.8]]), known).tolist() == [2, 1]
    wanted = torch.tensor([[3.0, 4.0]])
    assert relative_distance(torch.tensor([[3.0, 0.0]]), wanted).tolist() == [pytest.approx(0.8)]


def test_inversion_comes_nearer_than_its_start_and_reports_what_bytes_reach(
    network: VGG13,
) -> None:
    start, others = pictures(1, 2, 3), pictures(4, 5, 6)
    with torch.no_grad():
        wanted = network.embed(unit(others, torch.device("cpu")))
        before = relative_distance(network.embed(unit(start, torch.device("cpu"))), wanted)
    said: list[tuple[int, float]] = []
    found = invert(network, wanted, start, steps=12, batch=2, watch=lambda *step: said.append(step))
    assert found.images.dtype == torch.uint8
    assert found.images.shape == start.shape
    assert bool((found.distances < 0.9 * before).all())
    with torch.no_grad():
        again = network.embed(unit(found.images, torch.device("cpu")))
    # Single precision through 13 layers, three images at once instead of two.
    assert torch.allclose(again, found.embeddings, rtol=0, atol=1e-4 * float(again.abs().max()))
    assert torch.allclose(found.distances, relative_distance(again, wanted), rtol=0, atol=1e-4)
    assert [step[0] for step in said] == [2] * 13 + [3] * 13


def test_a_strong_prior_gives_smoother_images(network: VGG13) -> None:
    start = pictures(1)
    with torch.no_grad():
        wanted = network.embed(unit(pictures(4), torch.device("cpu")))
    rough, smooth = (
        invert(network, wanted, start, steps=8, smoothness=beta).images for beta in (0.0, 10.0)
    )
    cpu = torch.device("cpu")
    assert total_variation(unit(smooth, cpu)) < 0.9 * total_variation(unit(rough, cpu))


def test_every_embedding_needs_a_start(network: VGG13) -> None:
    with pytest.raises(ValueError, match="expected 2 images, and there are 1"):
        invert(network, torch.ones(2, WIDTH), pictures(1))


@pytest.fixture(scope="module")
def options(network: VGG13, tmp_path_factory: pytest.TempPathFactory) -> Options:
    folder = tmp_path_factory.mktemp("cifar")
    write_tree(folder / "tree", train=20, test=5)
    torch.save(network.state_dict(), folder / "network.pt")
    return Options(
        output=folder / "results",
        seeds=(1,),
        quick=True,
        keep=True,
        rounds=6,
        settings={
            "dataset": f"imagefolder-embeddings:{folder / 'tree'}",
            "embedding-weights": str(folder / "network.pt"),
            "points-per-user": "20",
        },
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFL_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(inversion_cifar, "QUICK_STEPS", 3)


STUDIES = [
    figures.CGA,
    figures.MODEL,
    figures.DATA,
    inversion_cifar.STUDY,
]


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_the_studies_of_appendix_j_run_and_draw(study: Study, options: Options) -> None:
    summary = run_study(study, options, Console(quiet=True))
    folder = study_folder(study, options)
    for ending in ("png", "pdf"):
        assert (folder / f"{study.name}.{ending}").stat().st_size > 10_000
    assert all(check["value"] == check["value"] for check in summary["checks"])
    measured = {name: metric["mean"] for name, metric in summary["metrics"].items()}
    if study is inversion_cifar.STUDY:
        for method in inversion_cifar.QUICK_RESTED:
            rest = [
                measured[f"{method}, {form}, equilibrium: distance_to_target"]
                for form in inversion_cifar.FORMS
            ]
            assert len(set(rest)) == len(rest)
    else:
        assert measured["cifar paper: distance_to_honest"] > 0
