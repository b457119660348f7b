"""``data PRESET``: who holds what, as a table and a picture, without a run."""

from __future__ import annotations

import argparse

from rich.console import Console

from experiments.running.options import parse_settings
from experiments.running.printing import print_table
from pfl_flower.run.config import parse_config
from pfl_flower.run.places import changes, named
from pfl_flower.run.presets import preset, preset_names, settings_of
from pfl_flower.support.console import place, plain
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.folders import writable_folder


def show_data(parsed: argparse.Namespace, console: Console) -> int:
    """Print what the users of a preset hold and what is left out, write the picture, return 0."""
    if parsed.name not in preset_names():
        raise ConfigError(f"PRESET = {parsed.name}: expected one of {', '.join(preset_names())}")
    asked = {"seed": parsed.seed, "name": parsed.name}
    config = parse_config({**preset(parsed.name), **parse_settings(parsed.settings), **asked})
    from pfl_flower.run.holdings import Holdings
    from pfl_flower.run.problem import build_problem
    from pfl_flower.run.user_figures import holdings_figure, holdings_title

    problem = build_problem(config)
    held = Holdings.of(problem)
    print_table(console, held.table())
    for one in problem.source.left_out:
        console.print(plain(f"left out: {one}"), soft_wrap=True)
    own = named(parsed.name, changes(config.flat(), settings_of(parsed.name), "seed"))
    folder = writable_folder("--output", parsed.output) / own
    for path in holdings_figure(held, holdings_title(config), folder):
        console.print(place(path), soft_wrap=True)
    return 0
