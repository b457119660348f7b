"""One measurement in a process of its own, which starts cold and whose peak memory is its own.

``python -m experiments.benchmark.worker CASE ARGUMENTS`` prints one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.benchmark.side_by_side import output_of, scratch
from experiments.running.options import Options
from pfl_flower.run.config import RunConfig, parse_config
from pfl_flower.run.rounds import read_rounds

Measured = dict[str, Any]

FIGURE_1: Mapping[str, Any] = {
    "points-per-user": "6000",
    "nu": 0.0,
    "dtype": "float32",
    "local-solver": "adam",
    "evaluate-every": 0,
}
"""Ten honest users and CGA under squared l2: one Adam step a round, rho evaluated every round."""


def in_process(*, settings: Mapping[str, Any], nodes: int = 2) -> Measured:
    """Run a configuration in this process; return seconds and distance of every round, and rho."""
    from pfl_flower import client_app, server_app
    from pfl_flower.transport.inprocess import run_in_process

    with scratch() as folder, contextlib.redirect_stdout(sys.stderr):
        config = parse_config({**settings, "output-dir": folder, "name": "run"})
        run_in_process(server_app.app, client_app.app, nodes=nodes, run_config=config.flat())
        rows = read_rounds(output_of(folder) / "rounds.csv")[1:]
        with np.load(output_of(folder) / "limit.npz", allow_pickle=False) as kept:
            rho = kept["rho"]
    return {
        "seconds": [row["seconds"] for row in rows],
        "distances": [row.get("distance_to_target", float("nan")) for row in rows],
        "rho": rho.astype(float).tolist() if rho.size < 10_000 else [],
    }


def rival(*, settings: Mapping[str, Any], name: str) -> Measured:
    """Run Figure 1's workload as a researcher would write it, see ``loops_and_vmap.py``."""
    from experiments.benchmark.loops_and_vmap import Workload, federated, notebook
    from pfl_flower.run.attack_plans import honest_users
    from pfl_flower.run.problem import build_problem
    from pfl_flower.run.step_sizes import local_step_sizes, server_step_sizes

    config: RunConfig = parse_config({**settings, "name": "rival"})
    problem = build_problem(config)
    points, classes = problem.points, problem.model.outputs
    drawn = [problem.source.draw(u, points[u], config.seed) for u in honest_users(problem)]
    tests = problem.test_set
    work = Workload(
        features=torch.stack([one.features for one in drawn]).to(problem.device, problem.dtype),
        labels=torch.stack([one.labels for one in drawn]).to(problem.device),
        test_features=tests.features,
        test_labels=tests.labels,
        target=problem.target.view(classes, -1),
        lam=config.lam,
        server_lr=server_step_sizes(problem).at,
        local_lr=local_step_sizes(config).at,
    )
    del drawn
    if name == "notebook":
        rho, seconds = notebook(work, config.rounds)
    else:
        rho, seconds = federated(work, name, config.rounds)
    flat = rho.reshape(-1)
    return {"seconds": seconds, "rho": flat.double().tolist() if len(flat) < 10_000 else []}


def mathematics(*, settings: Mapping[str, Any]) -> Measured:
    """Compute what a run's rounds compute, and nothing else, see ``bare_mathematics.py``."""
    from experiments.benchmark.bare_mathematics import rounds

    rho, seconds = rounds(parse_config({**settings, "name": "mathematics"}))
    return {"seconds": seconds, "rho": rho.double().tolist() if len(rho) < 10_000 else []}


def simulation(*, settings: Mapping[str, Any], nodes: int) -> Measured:
    """Run a configuration by ``flwr run`` on Ray; return the seconds of every round."""
    from experiments.running.engines import run_once

    with scratch() as folder:
        options = Options(engine="simulation", nodes=nodes, output=Path(folder))
        config = parse_config({**settings, "output-dir": folder, "name": "run"})
        run_once(config, options)
        rows = read_rounds(output_of(folder) / "rounds.csv")[1:]
    return {
        "seconds": [row["seconds"] for row in rows],
        "distances": [row.get("distance_to_target", float("nan")) for row in rows],
    }


def waits(*, settings: Mapping[str, Any]) -> Measured:
    """Count what a round waits for on a card, see ``waits.py``."""
    from experiments.benchmark.waits import per_round

    return per_round(settings)


def machine(*, device: str) -> Measured:
    """Measure what this machine moves (bytes a second) and multiplies (float32, flops a second)."""
    from experiments.benchmark.roofline import bandwidth, matrix_rate

    return {"bandwidth": bandwidth(device), "rate": matrix_rate(device)}


def messages(*, parameters: int) -> Measured:
    """Measure a tensor's way into a message and out of it: our form of it, and Flower's own."""
    from flwr.app import Array

    from pfl_flower.transport.wire import to_array, to_tensor

    tensor = torch.rand(parameters)
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: to_tensor(to_array(tensor)),
        "flower": lambda: torch.from_numpy(Array(tensor.numpy()).numpy()),
        "copy": lambda: tensor.clone().clone(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(30):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(some) for name, some in seconds.items()}


def aggregators(*, rule: str, shape: list[int]) -> Measured:
    """Measure an aggregation rule and its peers, see ``aggregators.py``."""
    from experiments.benchmark.aggregators import measure

    return measure(rule=rule, shape=(shape[0], shape[1]))


def aggregator_alone(*, rule: str, shape: list[int]) -> Measured:
    """Measure a rule on many long rows."""
    from experiments.benchmark.aggregators import alone

    return alone(rule=rule, shape=(shape[0], shape[1]))


def checked(*, turns: int, batches: int) -> Measured:
    """Measure FedAvg's round with and without ``Checked``, see ``checked_round.py``."""
    from experiments.benchmark.checked_round import measure

    return measure(turns=turns, batches=batches)


def zeros(*, dataset: str, what: str, points: int) -> Measured:
    """Measure a user's work with zeros and without, see ``zeros.py``."""
    from experiments.benchmark.zeros import measure

    return measure(dataset=dataset, what=what, points=points)


CASES: Mapping[str, Callable[..., Measured]] = {
    "in-process": in_process,
    "rival": rival,
    "mathematics": mathematics,
    "simulation": simulation,
    "waits": waits,
    "machine": machine,
    "messages": messages,
    "aggregators": aggregators,
    "aggregator-alone": aggregator_alone,
    "checked": checked,
    "zeros": zeros,
}


def main() -> None:
    """Measure what the command line asks for."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    case, arguments = sys.argv[1], json.loads(sys.argv[2])
    began = time.perf_counter()
    found = CASES[case](**arguments)
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    used = {"threads": torch.get_num_threads(), "peak": peak}
    print(json.dumps({**found, **used, "total": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
