"""CONTRIBUTING's recipes are run as they stand there: as plug-ins, and as rows of the tables."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import pfl_flower as pfl
from experiments.running.options import parse_settings
from pfl_flower.attacks.poisoning.table import POISONINGS
from pfl_flower.data.users import Partitioned
from pfl_flower.run.attack_plans import fabricate
from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.presets import preset
from pfl_flower.run.problem import Problem, build_problem
from pfl_flower.run.tables import TABLES as RUN_TABLES
from pfl_flower.support.errors import ConfigError
from tests.support.runs import play, trajectory

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"```python ([^\n]+)\n(.*?)```", TEXT, flags=re.DOTALL)
FILES = {label: code for label, code in BLOCKS if label.startswith("lab/")}
COMMANDS = re.findall(r"^    python -m experiments run (\S+) --set (.*)$", TEXT, flags=re.MULTILINE)
TABLES = {
    "attack": ("ATTACKS", "pfl_flower/attacks/table.py"),
    "poisoning": ("POISONINGS", "pfl_flower/attacks/poisoning/table.py"),
    "aggregation": ("AGGREGATIONS", "pfl_flower/aggregation/table.py"),
    "aggregation that sees users and rounds, and remembers": (
        "AGGREGATIONS",
        "pfl_flower/aggregation/table.py",
    ),
    "regularizer": ("REGULARIZERS", "pfl_flower/objective/table.py"),
    "model": ("MODELS", "pfl_flower/objective/table.py"),
    "model by its scores": ("MODELS", "pfl_flower/objective/table.py"),
    "dataset": ("DATASETS", "pfl_flower/data/table.py"),
    "partition": ("PARTITIONS", "pfl_flower/data/table.py"),
    "tracker": ("TRACKERS", "pfl_flower/run/tracking/table.py"),
}
"""The table, and its file, of each recipe."""
SMALL = {"points-per-user": "30", "rounds": 3, "evaluate-every": 0}
IN_THE_COPY = """
import json, sys
import pytest
import pfl_flower as pfl
from tests.support.runs import play, trajectory
from pfl_flower.run.config import parse_config

found = {}
for name, keys in json.load(sys.stdin).items():
    found[name] = trajectory(play(parse_config(keys)))[-1].tolist()
    if name == "tracker":
        pfl.run(output="told", **keys)
tests = pytest.main(["-q", "-p", "no:cacheprovider", "-n0", "tests/run/test_tables.py",
                     "tests/run/test_reference.py"])
print(json.dumps([found, int(tests)]))
"""


def settings(words: tuple[str, str]) -> dict[str, Any]:
    """Return what a command of a recipe asks for, with fewer points and rounds."""
    name, pairs = words
    return {**preset(name), **parse_settings(shlex.split(pairs)), **SMALL}


def point(keys: dict[str, Any]) -> str:
    """Return the key that names a member of one's own."""
    (found,) = [key for key, value in keys.items() if str(value).startswith("lab.")]
    return found


PLUGINS = dict(zip(TABLES, map(settings, COMMANDS), strict=True))
"""The runs of the recipes."""


@pytest.fixture(scope="module", autouse=True)
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("plug-ins")
    for place, code in FILES.items():
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(code)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.split(".")[0] == "lab"]:
        del sys.modules[name]


@cache
def ran(key: str) -> tuple[Problem, list[Any]]:
    config = parse_config(PLUGINS[key])
    return build_problem(config), play(config)


def suffix(recipe: str) -> str:
    """What tells a recipe from another one of the same point."""
    return recipe.removeprefix(point(PLUGINS[recipe]))


def test_every_extension_point_has_a_recipe() -> None:
    points = {table.point for table in RUN_TABLES}
    assert {point(keys) for keys in PLUGINS.values()} == points
    assert all(recipe.startswith(point(keys)) for recipe, keys in PLUGINS.items())
    assert len(FILES) == len(PLUGINS)
    assert [label for label, _ in BLOCKS if label not in FILES] == [
        label
        for recipe, (table, _) in TABLES.items()
        for label in (f"above {table}{suffix(recipe)}", f"row of {table}{suffix(recipe)}")
    ]
    assert all(f"{point(keys)}-options" in keys for keys in PLUGINS.values())


def test_the_attack_reports_what_it_says() -> None:
    problem, records = ran("attack")
    report = records[0].accepted[10]
    assert torch.allclose(report, 2 * (problem.initial - problem.target), rtol=1e-12)


def test_the_poisoning_makes_what_it_says() -> None:
    problem, records = ran("poisoning")
    data = fabricate(problem, 10)
    assert (data.method, len(data.features), data.total_weight) == ("confident", 80, 240.0)
    assert records[0].metrics.poisoned_labels == 240.0


def test_the_rule_makes_the_direction_that_it_says() -> None:
    problem, records = ran("aggregation")
    rows = torch.stack([records[0].accepted[user] for user in range(11)])
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    # Under l2 all are as long but for rounding, and two may be the longest: the later one is left.
    kept = norms[:, 0].argsort(stable=True)[:10]
    direction = 11 * (rows / norms.sqrt())[kept].mean(dim=0)
    expected = problem.initial - records[0].eta * direction
    assert torch.allclose(records[0].rho, expected, rtol=1e-10)


def test_the_rule_with_a_memory_remembers() -> None:
    problem, records = ran("aggregation that sees users and rounds, and remembers")
    rho, last = problem.initial, torch.zeros_like(problem.initial)
    for number, record in enumerate(records):
        total = record.accepted.values_by_user.sum(dim=0)
        last = 0.25 * total + 0.75 * last if number else total
        rho = rho - record.eta * last
        assert torch.allclose(record.rho, rho, rtol=1e-10)
    assert not torch.allclose(last, total, rtol=1e-2)


def test_the_regulariser_bounds_what_can_be_reported() -> None:
    problem, records = ran("regularizer")
    assert problem.regularizer.radius == 0.5
    norms = [float(torch.linalg.vector_norm(row)) for row in records[0].accepted.values()]
    assert max(norms) == pytest.approx(0.5)
    assert all(record.metrics.unconverged == 0 for record in records)


def test_the_module_is_what_the_users_learn() -> None:
    problem, records = ran("model")
    assert problem.model.dim == 3 * 9 + 3 + 2 * 3 + 48 * 10 + 10 == len(records[0].rho)
    module = strided_by_hand(records[-1].rho)
    points = problem.test_set.features[:9]
    expected = module(points[:, :64].reshape(-1, 1, 8, 8)).detach()
    found = problem.model.scores(records[-1].rho[None], points)[0]
    torch.testing.assert_close(found, expected)
    assert not torch.equal(records[0].rho, records[-1].rho)


def strided_by_hand(rho: torch.Tensor) -> torch.nn.Module:
    made = importlib.import_module("lab.strided").strided((1, 8, 8), 10, channels=3)
    module: torch.nn.Module = made.to(rho.dtype)
    torch.nn.utils.vector_to_parameters(rho, module.parameters())
    return module


def test_the_model_is_what_the_users_learn() -> None:
    problem, records = ran("model by its scores")
    assert problem.model.dim == 3 * (10 + 65) == len(records[0].rho)
    assert torch.linalg.matrix_rank(problem.target[30:].view(3, 65)) == 3
    assert not torch.equal(records[0].rho, records[-1].rho)


def test_the_data_are_what_the_users_draw() -> None:
    problem, records = ran("dataset")
    assert (problem.source.inputs, problem.source.outputs) == (3, 4)
    (data,) = problem.datasets((0,))
    assert set(data.labels.tolist()) == {0, 1, 2, 3}
    assert len(records[0].rho) == 12


def test_the_partition_gives_each_user_a_share_of_the_last_ones() -> None:
    problem, records = ran("partition")
    source = problem.source
    assert isinstance(source, Partitioned)
    tests = [len(source.split(user)[1]) for user in range(5)]
    assert tests[0] > 80
    assert all(abs(0.7 * one - next_one) <= 1 for one, next_one in itertools.pairwise(tests))
    assert problem.points[:5] == (30,) * 5
    assert len(records[-1].accepted) == 11


def test_the_tracker_writes_what_it_says(tmp_path: Path) -> None:
    result = pfl.run(output=tmp_path, **PLUGINS["tracker"])
    assert result.passed
    lines = told(tmp_path)
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    expected = [float(f"{value:.6g}") for value in result.rounds["norm_rho"]]
    assert [line["norm_rho"] for line in lines] == expected


def told(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


WRONG = [
    ("tracker-options", '{"digits": "many"}', 'digits = "many": expected a valid integer'),
    ("attack-options", '{"gian": 2.0}', "gian: expected gain"),
    ("model-options", '{"channels": 2.5}', "channels = 2.5: expected a valid integer"),
    ("dataset-options", '{"classes": "many"}', 'classes = "many": expected a valid integer'),
    ("regularizer-options", '{"lam": 2.0}', "lam has a key of its own, lam"),
    ("poisoning-options", '{"weight": null}', "weight = null: expected a valid number"),
    ("partition-options", '{"ratio": "half"}', 'ratio = "half": expected a valid number'),
    ("aggregation-options", '{"tolerance": 2}', "tolerance has a key of its own, aggregation-tol"),
]


@pytest.mark.parametrize(("key", "options", "said"), WRONG)
def test_a_wrong_option_is_one_line_before_round_1(key: str, options: str, said: str) -> None:
    from pfl_flower import server_app

    config = parse_config({**PLUGINS[key.removesuffix("-options")], key: options})
    with pytest.raises(ConfigError) as caught:
        server_app.run(None, build_problem(config))  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{key} = {options}: {said}")


def test_data_of_ones_own_say_which_poisonings_serve_them() -> None:
    keys = {"attack": "data", "poisoning": "repeated", "dataset": "lab.blobs:blobs"}
    config: RunConfig = parse_config(keys)
    with pytest.raises(ConfigError) as caught:
        build_problem(config)
    serving = ", ".join(name for name, row in POISONINGS.items() if "softmax" in row.losses)
    assert str(caught.value) == f"poisoning = repeated: expected {serving}, for a softmax loss"


def block(kind: str, recipe: str) -> str:
    """A recipe's row, or what goes above its table."""
    return dict(BLOCKS)[f"{kind} {TABLES[recipe][0]}{suffix(recipe)}"]


def extended(text: str, recipe: str) -> str:
    """Return a table's module with a recipe's options and row, imports at the top."""
    table, above = TABLES[recipe][0], block("above", recipe)
    imports = "".join(re.findall(r"^from .*\n", above, flags=re.MULTILINE))
    options = re.sub(r"^from .*\n", "", above, flags=re.MULTILINE).strip()
    future = "from __future__ import annotations\n"
    text = text.replace(future, future + imports, 1)
    head, start, rest = text.partition(f"\n{table}: Table[")
    assert start, table
    rows, end, tail = rest.partition("    },\n    own=")
    return f"{head}\n{options}\n\n{start}{rows}{block('row of', recipe)}{end}{tail}"


def test_as_rows_of_the_tables_they_do_the_same(tmp_path: Path) -> None:
    """A copy of the packages is extended as the recipes say, and runs them under their names."""
    leave_out = shutil.ignore_patterns("__pycache__", "*.so")
    for package in ("pfl_flower", "clients", "strategies", "tests"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=leave_out)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    asked = {}
    for (recipe, keys), (file, code) in zip(PLUGINS.items(), FILES.items(), strict=True):
        path = tmp_path / TABLES[recipe][1]
        path.write_text(extended(path.read_text(), recipe))
        (path.parent / Path(file).name).write_text(code)
        name = re.findall(r'"([\w-]+)": ', block("row of", recipe))[0]
        asked[recipe] = {**keys, point(keys): name}
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    write = [sys.executable, "-m", "pfl_flower.run.reference"]
    subprocess.run(write, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert "`strided`" in (tmp_path / "pfl_flower/run/README.md").read_text()
    done = subprocess.run(
        [sys.executable, "-c", IN_THE_COPY],
        cwd=tmp_path,
        env=environment,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, tests = json.loads(done.stdout.splitlines()[-1])
    assert tests == 0, done.stdout[-2000:]
    assert len(told(tmp_path / "told")) == SMALL["rounds"] + 1
    for recipe in PLUGINS:
        rho = trajectory(ran(recipe)[1])[-1]
        assert found[recipe] == rho.tolist(), recipe
