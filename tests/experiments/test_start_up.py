"""Help, lists and refusals answer at once: they import nothing that takes long."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "flwr", "ray", "matplotlib", "scipy", "sklearn", "pandas")
SECONDS = 0.6
SCRIPT = f"""
import json, sys, time
from experiments.__main__ import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
loaded = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps([code, loaded, time.process_time()]))
"""

ASKED = [
    (["--help"], 0),
    (["run", "--help"], 0),
    (["list"], 0),
    (["reproduce", "nope"], 2),
    (["report", "nope"], 2),
    (["run", "nope"], 2),
    (["run", "digits-l2", "--set", "lamm=1"], 2),
    (["run", "digits-l2", "--set", "aggregation=krum", "users=4"], 2),
    (["run", "fig1-cga", "--set", "lamm=1"], 2),
    (["sweep", "digits-l2", "--over", "lam=1,-1"], 2),
    (["compare", "/no/such/folder"], 2),
    (["data", "nope"], 2),
    (["data", "digits-l2", "--set", "partition=shards", "partition-alpha=0.1"], 2),
]


@pytest.mark.parametrize(("arguments", "code"), ASKED, ids=[" ".join(words) for words, _ in ASKED])
def test_nothing_heavy_is_imported_to_answer(arguments: list[str], code: int) -> None:
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ended, loaded, seconds = json.loads(done.stdout.splitlines()[-1])
    assert (ended, loaded) == (code, [])
    assert seconds < SECONDS
    assert "Traceback" not in done.stderr
