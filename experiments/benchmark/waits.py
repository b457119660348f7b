"""How often a round waits for the card, and how many kernels it starts there."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import torch

FEW, MORE = 6, 10
"""Rounds of two runs, which differ by rounds and nothing else."""


def per_round(settings: Mapping[str, Any]) -> dict[str, float | None]:
    """Return ``waits`` and ``launches`` of a round on a card; None on a processor."""
    if not torch.cuda.is_available() or settings["device"] == "cpu":
        return {"waits": None, "launches": None}
    few, more = (_counted(settings, rounds) for rounds in (FEW, MORE))
    return {name: (more[name] - few[name]) / (MORE - FEW) for name in few}


def _counted(settings: Mapping[str, Any], rounds: int) -> dict[str, float]:
    from pfl_flower import client_app, server_app
    from pfl_flower.run.config import parse_config
    from pfl_flower.run.problem import build_problem
    from pfl_flower.transport.inprocess import InProcessGrid

    config = parse_config({**settings, "rounds": rounds, "name": "waits"})
    problem = build_problem(config)

    def run() -> None:
        grid = InProcessGrid(client_app.app, nodes=2, run_config=config.flat())
        with contextlib.redirect_stdout(sys.stderr):
            server_app.run(grid, problem)

    run()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.set_warn_always(True)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
            torch.set_warn_always(False)
        waits = sum("synchronizing" in str(one.message) for one in said)
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as watched:
        run()
    launches = sum(
        event.count for event in watched.key_averages() if event.key.startswith("cudaLaunchKernel")
    )
    return {"waits": waits, "launches": launches}
