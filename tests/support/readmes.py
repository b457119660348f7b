"""The commands that READMEs tell a reader to type."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FILES = sorted(
    path
    for path in [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *ROOT.rglob("README.md")]
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
PROGRAMS = r"pfl-flower|python|flwr|flower-\w+|pip|pytest|ruff|\.ci/run|experiments/deployment/\S+"
LINE = re.compile(rf"^ {{4,}}((?:{PROGRAMS})(?: .*)?)$")

ELSEWHERE = {
    "experiments/deployment/README.md": "tests/engines/test_deployment.py, with hosts of its own",
    "CONTRIBUTING.md": "the gate; the recipes' in tests/test_contributing.py",
    "SECURITY.md": "asks the network which packages have known faults",
    "experiments/results/README.md": "NAME and DIR stand for something",
}
"""Files whose commands are run by other tests, or cannot be run as they stand."""


@dataclass(frozen=True)
class Command:
    """A line of a README.

    Attributes
    ----------
    file : str
        The README, from the root.
    text : str
        What is typed.
    comment : str
        What the README says beside it.
    """

    file: str
    text: str
    comment: str

    @property
    def excused(self) -> bool:
        """Whether its line says that it is not tested."""
        return "not tested" in self.comment

    @property
    def by_the_gate(self) -> bool:
        """Whether it is one of the two that set everything up, which ``.ci/run`` runs."""
        return self.file == "README.md" and self.text.startswith("pip install")


def commands(path: Path) -> list[Command]:
    """Return the commands of a README, in the order in which they stand."""
    found = []
    for line in path.read_text().splitlines():
        if match := LINE.match(line):
            text, _, comment = match[1].partition("  #")
            found.append(Command(path.relative_to(ROOT).as_posix(), text.rstrip(), comment))
    return found


ALL = [command for path in FILES for command in commands(path)]
TYPED = [c for c in ALL if c.file not in ELSEWHERE and not c.excused and not c.by_the_gate]
"""What ``tests/engines/test_readme_commands.py`` runs, file by file."""
