"""What the process of a node loads: on Flower's real nodes each message starts a fresh one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.images import write_tree

HEAVY = (
    "matplotlib", "sklearn", "scipy.optimize", "pandas", "pyarrow", "torchvision", "datasets",
    "ray", "experiments", "strategies",
)  # fmt: skip
"""pydantic and rich are not among them: Flower's own process loads both before ours begins."""
NODE = """
import json, sys
import torch
from flwr.app import Context, Message, MessageType, RecordDict
from pfl_flower.client_app import app
from pfl_flower.run.config import parse_config
from pfl_flower.run.problem import build_problem
from pfl_flower.transport import flower_internals as inside
from pfl_flower.transport.broadcasts import Broadcast, pack_broadcasts
from pfl_flower.transport.questions import pack_question

inside.identify_process(1)
heavy = json.loads(sys.argv[1])
for keys in map(json.loads, sys.argv[2:]):
    config = parse_config(keys)
    rho = build_problem(config).initial
    users = tuple(range(config.users))
    told = Broadcast(round=1, users=users, last_accepted=(0,) * len(users), rho=rho, eta=0.1,
                     eta_sum=0.0)
    context = Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config=keys)
    (broadcast,) = pack_broadcasts([told])
    question = pack_question(1, users)
    kinds = ((MessageType.QUERY, question), (MessageType.TRAIN, broadcast),
             (MessageType.EVALUATE, question))
    answered = 0
    for kind, content in kinds:
        asked = inside.number(Message(content, 7, kind), kind)
        answered += app(asked, context).has_content()
    print(json.dumps([answered, [name for name in heavy if name in sys.modules]]))
"""

TINY: dict[str, Any] = {
    "dataset": "synthetic-logistic",
    "features": 3,
    "users": 3,
    "points-per-user": "5",
    "strategic-users": "2",
    "nu": 0.1,
}
LIGHT: dict[str, dict[str, Any]] = {
    "CGA": {},
    "answers": {"dataset": "synthetic-linear"},
    "smooth l2": {"regularizer": "smooth-l2"},
    "steps on batches": {"local-solver": "adam", "batch-size": 2, "server-lr": 0.1},
    "a model attack": {"attack": "model"},
    "noise": {"attack": "gaussian"},
    "surrogates": {"attack": "min-max"},
    "other labels": {"attack": "label-flip"},
    "digits": {"dataset": "digits", "features": 20, "local-solver": "sgd", "server-lr": 0.1},
    "images": {
        "dataset": "imagefolder:{tree}",
        "features": 20,
        "local-solver": "sgd",
        "server-lr": 0.1,
    },
}
NEEDS: dict[str, dict[str, Any]] = {
    "data for theta_spade": {"attack": "data"},
}
"""What does need one of them, so that the test can be seen to look."""


def loaded(settings: list[dict[str, Any]], folder: Path) -> list[tuple[int, set[str]]]:
    """Return, of one process after it acted for users of each, its answers and what it loaded."""
    tree = write_tree(folder / "tree", size=8)
    told = [
        json.dumps({**TINY, "output-dir": str(folder), **one}).replace("{tree}", str(tree))
        for one in settings
    ]
    command = [sys.executable, "-c", NODE, json.dumps(HEAVY), *told]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return [(answers, set(names)) for answers, names in found]


def test_a_node_loads_no_more_than_its_data_and_its_attack_need(tmp_path: Path) -> None:
    settings = {**LIGHT, **NEEDS}
    found = dict(zip(settings, loaded(list(settings.values()), tmp_path), strict=True))
    assert all(answers == 3 for answers, _ in found.values())
    names = {name: loaded for name, (_, loaded) in found.items()}
    assert {name: names[name] for name in LIGHT} == {name: set() for name in LIGHT}
    assert names["data for theta_spade"] == {"scipy.optimize"}
