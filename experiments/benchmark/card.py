"""All that there is to check and to time on a card, in less than ten minutes.

    python -m experiments.benchmark.card [--device cpu] [--quick] [--only NAME] [--output FILE]

Cards are lent for minutes: each line is printed, and kept in the file, as it is found; a part that
fails or takes too long is a line as well, and the next one follows. ``--device cpu`` and
``--quick`` try the script itself. Exit codes: 0 all goals met (of a processor only that results are
the same is asked), 1 some missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.benchmark.roofline import Round
from experiments.benchmark.side_by_side import round_seconds
from experiments.benchmark.worker import FIGURE_1
from experiments.running.engines import ROOT
from pfl_flower.support.files import replace_file

Settings = Mapping[str, Any]
EXACT: Settings = {"dataset": "digits", "points-per-user": "100", "nu": 0.1, "evaluate-every": 0}
MANY: Settings = {
    "dataset": "synthetic-logistic",
    "features": 20,
    "users": 100_000,
    "points-per-user": "10",
    "strategic-users": "99999",
    "nu": 0.1,
    "evaluate-every": 0,
}
ADAM: Settings = {**FIGURE_1, "dataset": "digits", "points-per-user": "500", "dtype": "float64"}
SAME = 1e-8
"""Of rho, relative: what two devices may differ by in double precision."""


@dataclass(frozen=True)
class Line:
    """What was found: its name, the numbers, the goal where there is one, and whether it is met."""

    name: str
    found: str
    goal: str = ""
    met: bool = True


@dataclass(frozen=True)
class Asked:
    """Where to compute, whether to have a look only, and how many seconds a part may take."""

    device: str
    quick: bool

    @property
    def figure_1(self) -> Settings:
        """Figure 1's round, of the digits for a look."""
        size = {"points-per-user": "500", "dataset": "digits"} if self.quick else {}
        return {**FIGURE_1, "dataset": "mnist", **size, "device": self.device}

    def case(self, name: str, seconds: float, **arguments: Any) -> dict[str, Any]:
        """Return what a case of ``worker.py`` measures in a process of its own."""
        command = [sys.executable, "-m", "experiments.benchmark.worker", name]
        text = _said([*command, json.dumps(arguments)], seconds)
        found: dict[str, Any] = json.loads(text.splitlines()[-1])
        return found


def _said(command: list[str], seconds: float) -> str:
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or done.stdout.strip() or "no output")[-400:])
    return done.stdout


def same_results(asked: Asked) -> Iterator[Line]:
    """Compare rho after some rounds on the device with that of the processor."""
    users = 300 if asked.quick else 3000
    some = {**MANY, "users": users, "strategic-users": str(users - 1)}
    for name, keys in {"adam": ADAM, "exact solves": EXACT, "many users": some}.items():
        rhos = [
            asked.case("in-process", 120, settings={**keys, "rounds": 5, "device": device})["rho"]
            for device in ("cpu", asked.device)
        ]
        far = max(abs(a - b) for a, b in zip(*rhos, strict=True)) / max(map(abs, rhos[0]))
        yield Line(f"same rho, {name}", f"{far:.1e} apart", f"<= {SAME:g}", far <= SAME)


def figure_1(asked: Asked) -> Iterator[Line]:
    """Time Figure 1's rounds, and what they could take at least."""
    rounds = 20 if asked.quick else 200
    measured = asked.case("in-process", 180, settings={**asked.figure_1, "rounds": rounds})
    one = round_seconds(measured)
    goal = "" if asked.device == "cpu" else "200 rounds in 0.4 s"
    said = f"{1e3 * one:.2f} ms a round, 200 rounds {200 * one:.2f} s"
    yield Line("figure 1", said, goal, not goal or 200 * one <= 0.4)
    speed = asked.case("machine", 60, device=asked.device)
    points, inputs = (500, 65) if asked.quick else (6000, 785)
    sizes = Round(users=10, points=points, features=inputs, classes=10, tests=10_000)
    bound = sizes.bound(speed["bandwidth"], speed["rate"])
    goal = "" if asked.device == "cpu" else "<= 10 x"
    said = f"{one / bound:.1f} x the {1e3 * bound:.3f} ms of its memory traffic and flops"
    yield Line("figure 1's bound", said, goal, not goal or one <= 10 * bound)


def waits(asked: Asked) -> Iterator[Line]:
    """Count what the rounds wait for, and what they start."""
    some = {**MANY, "users": 3000, "strategic-users": "2999"}
    kinds = {"figure 1": (asked.figure_1, 8), "many users": (some, 20), "exact solves": (EXACT, 24)}
    for name, (keys, most) in kinds.items():
        found = asked.case("waits", 120, settings={**keys, "device": asked.device})
        if found["waits"] is None:
            yield Line(f"waits, {name}", "not counted on a processor")
            continue
        said = f"{found['waits']:.1f} waits, {found['launches']:.0f} launches a round"
        goal = f"<= {most} waits" if most else ""
        yield Line(f"waits, {name}", said, goal, not most or found["waits"] <= most)


def rounds(asked: Asked) -> Iterator[Line]:
    """Time rounds with exact solves, of many users and of few."""
    users = 1000 if asked.quick else MANY["users"]
    many = {**MANY, "users": users, "strategic-users": str(users - 1)}
    for name, keys, most in (("many users", many, 0.1), ("exact solves, digits", EXACT, 0.015)):
        settings = {**keys, "rounds": 12, "device": asked.device}
        one = round_seconds(asked.case("in-process", 180, settings=settings))
        goal = "" if asked.device == "cpu" else f"<= {1e3 * most:g} ms"
        yield Line(name, f"{1e3 * one:.1f} ms a round", goal, not goal or one <= most)


def simulation(asked: Asked) -> Iterator[Line]:
    """Let eleven nodes on Ray share the card; rho is that of one process."""
    settings = {**EXACT, "rounds": 5, "device": asked.device}
    began = time.perf_counter()
    nodes = 3 if asked.quick else 11
    found = asked.case("simulation", 240, settings=settings, nodes=nodes)
    seconds = time.perf_counter() - began
    there = asked.case("in-process", 120, settings=settings)["distances"]
    far = max(abs(a - b) for a, b in zip(found["distances"], there, strict=True))
    said = f"{nodes} nodes, {seconds:.0f} s in all, distances {far:.1e} apart"
    yield Line("simulation", said, f"<= {SAME:g}", far <= SAME)


def tests(asked: Asked) -> Iterator[Line]:
    """Run the tests that need a card."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-n", "0", "tests/engines"]
    if asked.device == "cpu" or not (ROOT / "tests").is_dir():
        yield Line("tests", "need a card, and a checkout")
        return
    text = _said([*command, "-p", "no:cacheprovider"], 240)
    last = text.strip().splitlines()[-1]
    yield Line("tests", last, "none fails or is skipped", "skipped" not in last)


PARTS: Mapping[str, Callable[[Asked], Iterator[Line]]] = {
    "same-results": same_results,
    "figure-1": figure_1,
    "waits": waits,
    "rounds": rounds,
    "simulation": simulation,
    "tests": tests,
}


def main(arguments: list[str] | None = None) -> int:
    """Check and time, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark.card")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="the digits, few users and rounds")
    parser.add_argument("--only", action="append", choices=list(PARTS), default=[])
    parser.add_argument("--output", type=Path, default=Path("card.json"), metavar="FILE")
    parsed = parser.parse_args(arguments)
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    asked, kept = Asked(parsed.device, parsed.quick), list[dict[str, Any]]()
    header = _header(parsed.device)
    print(header, flush=True)
    for name in parsed.only or PARTS:
        for line, seconds in _lines(name, asked):
            kept.append({**asdict(line), "seconds": seconds})
            goal = f"; goal {line.goal}: {'met' if line.met else 'MISSED'}" if line.goal else ""
            print(f"{seconds:5.0f} s  {line.name}: {line.found}{goal}", flush=True)
            content = {"machine": header, "quick": parsed.quick, "lines": kept}
            replace_file(parsed.output, json.dumps(content, indent=1) + "\n")
    return int(not all(line["met"] for line in kept))


def _lines(name: str, asked: Asked) -> Iterator[tuple[Line, float]]:
    """Yield the lines of a part, each with the seconds since the part began."""
    began = time.perf_counter()
    try:
        for line in PARTS[name](asked):
            yield line, time.perf_counter() - began
    except (RuntimeError, subprocess.SubprocessError, ValueError, OSError) as error:
        said = " ".join(str(error).split())[-300:]
        yield Line(name, f"failed: {said}", "an answer", False), time.perf_counter() - began


def _header(device: str) -> str:
    from pfl_flower.support.hardware import hardware
    from pfl_flower.support.versions import versions

    named = ", ".join(f"{name} {number}" for name, number in versions().items())
    return f"{hardware(device)}; {named}"


if __name__ == "__main__":
    sys.exit(main())
