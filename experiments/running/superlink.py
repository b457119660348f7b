"""What is asked of a SuperLink through Flower's own command line: start, status, stop."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from pfl_flower.support.errors import ConfigError

COMPLETED = "finished:completed"
NOT_STARTED = "not started"
PORT = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "39091"
"""Where Flower's command line looks for, or starts, the local SuperLink."""
SECONDS = 30.0
"""How long Flower's command line may take to answer: it takes two."""
COLOURS = re.compile(r"\x1b\[[\d;]*m")
BOX = re.compile(r"^│(.*)│\s*$", flags=re.MULTILINE)
"""Flower's command line draws boxes around errors, and breaks their lines to fit."""


def flower_environment() -> dict[str, str]:
    """Return the environment of ``flwr``, in which it finds Flower's other programs.

    It starts a local SuperLink by name: of an environment that is not activated they are not on
    the PATH.
    """
    programs = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)]),
    }


def script(name: str) -> str:
    """Return a program of this environment, which need not be on the PATH.

    Raises
    ------
    ConfigError
        If it is neither beside the interpreter nor on the PATH.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ConfigError(
            f"--engine simulation: expected the program {name} beside {sys.executable} or on the "
            "PATH; pip install 'flwr[simulation]' brings it"
        )
    return found


def run_id(output: str) -> str | None:
    """Return the id of the run that ``flwr run`` says it has started."""
    started = re.search(r"Successfully started run (\d+)", COLOURS.sub("", output))
    return None if started is None else started[1]


def run_status(output: str, environment: Mapping[str, str]) -> str:
    """Return the status Flower keeps of the run in ``output``; its exit code is always 0."""
    started = run_id(output)
    if started is None:
        return NOT_STARTED
    try:
        runs = json.loads(_asked(environment, "ls", "--format", "json"))["runs"]
    except (ValueError, KeyError):
        return "unknown"
    found = [run["status"] for run in runs if run["run-id"] == started]
    return found[0] if found else "unknown"


def stop_run(output: str, environment: Mapping[str, str]) -> str:
    """Stop the run in ``output``, and return a line on what became of it."""
    started = run_id(output)
    if started is None:
        return "no run was started in the SuperLink; if flwr ls names one, flwr stop RUN_ID ends it"
    try:
        stopped = json.loads(_asked(environment, "stop", started, "--format", "json"))["success"]
    except (ValueError, KeyError, OSError, subprocess.SubprocessError):
        stopped = False
    if stopped:
        return f"run {started} was stopped in the SuperLink"
    return f"run {started} goes on in the SuperLink: flwr stop {started} ends it"


def _asked(environment: Mapping[str, str], *words: str) -> str:
    """Return what ``flwr`` answers; an interrupt from the keyboard is ours and not its."""
    done = subprocess.run(
        [script("flwr"), *words],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=SECONDS,
        start_new_session=True,
    )
    return done.stdout


def failure_in(output: str, environment: Mapping[str, str]) -> str:
    """Return why a run failed, by what ``flwr run`` printed: the first error, in one line.

    A local SuperLink that did not start has its reason in a log of its own, or none: then it is
    looked at whether somebody else has its port.
    """
    plain = COLOURS.sub("", output)
    errors = re.findall(r"ERROR\s*:\s*(.*)", plain)
    if errors:
        return str(errors[0]).strip()
    boxed = " ".join(line.strip() for line in BOX.findall(plain))
    if "Failed to start local SuperLink" in boxed or "did not become" in boxed:
        return f"{boxed} {_why_not(boxed, environment)}".strip()
    lines = [line.strip() for line in plain.splitlines() if line.strip(" ╭╮╰╯─│")]
    return boxed or (lines[-1] if lines else "no output")


def _why_not(said: str, environment: Mapping[str, str]) -> str:
    name, usual = PORT
    port = environment.get(name, usual)
    if _taken(port):
        return f"Another program has port {port}; {name} chooses another."
    logged = re.search(r"logs at (\S+?)\.?(\s|$)", said)
    try:
        log = Path(logged[1]).read_text(errors="replace") if logged else ""
    except OSError:
        log = ""
    told = [line for line in log.splitlines() if re.search(r"error|denied|exit code", line, re.I)]
    return f"It says: {told[-1]}" if told else ""


def _taken(port: str) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return port.isdecimal() and probe.connect_ex(("127.0.0.1", int(port))) == 0
