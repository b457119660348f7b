"""Every file of this project is written by ``support.files``: read from the source."""

from __future__ import annotations

import ast
import re

import pytest

from tests.test_imports import MODULES

STREAMS = ("file", "body", "buffer")
"""What is written to in memory, or given by ``replacing``."""
MAY = {
    "pfl_flower.support.files": "the one way",
    "pfl_flower.run.rounds": "rounds.csv grows line by line",
    "experiments.running.engines": "logs grow line by line",
    "experiments.defences.cells": "a line for each run, as it ends",
    "experiments.examples.anyone": "logs grow line by line",
    "experiments.examples.fedavg_digits.fedavg_digits.server_app": "a stranger's app",
    "experiments.examples.sgd_tabular.sgd_tabular.server_app": "a stranger's app",
    "experiments.deployment.loopback": "logs grow line by line",
}


def writes(tree: ast.AST) -> list[str]:
    """Return the calls that write a file under its own name."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called = ast.unparse(node.func)
        modes = [
            part.value for a in node.args for part in ast.walk(a) if isinstance(part, ast.Constant)
        ]
        modes += [k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)]
        opened = node.func.attr in ("open", "fdopen") and any(
            isinstance(mode, str) and re.fullmatch("[rwaxbt+]+", mode) and set(mode) & set("wax")
            for mode in modes
        )
        if node.func.attr in ("write_text", "write_bytes", "mkstemp") or opened:
            found.append(called)
        if called in ("os.replace", "os.rename", "os.link"):
            found.append(called)
        if called in ("torch.save", "np.save", "np.savez", "np.savez_compressed"):
            target = ast.unparse(node.args[1 if called == "torch.save" else 0])
            if target not in STREAMS:
                found.append(called)
        if node.func.attr == "savefig" and ast.unparse(node.args[0]) not in STREAMS:
            found.append(called)
    return found


@pytest.mark.parametrize("name", MODULES)
def test_nobody_writes_a_file_in_another_way(name: str) -> None:
    found = writes(ast.parse(MODULES[name].read_text()))
    assert not found or name in MAY


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("path.write_text('x')", True),
        ("path.open('w')", True),
        ("path.open(mode='ab')", True),
        ("path.open('a' if on else 'w')", True),
        ("path.open()", False),
        ("open('what.csv')", False),
        ("tarfile.open(path)", False),
        ("os.replace(a, b)", True),
        ("text.replace('a', 'b')", False),
        ("np.save(path, rho)", True),
        ("np.save(file, rho)", False),
        ("torch.save(state, path)", True),
        ("figure.savefig(path, dpi=1)", True),
    ],
)
def test_what_counts_as_writing(code: str, wrong: bool) -> None:
    assert bool(writes(ast.parse(code))) == wrong
