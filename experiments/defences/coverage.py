"""What was measured, of which seeds: scenes may be of fewer than the study is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.defences.judgement import number
from experiments.defences.plan import SCENES
from experiments.studies.study import Result

SEEDS = 3
"""How many seeds the study is of."""
NUMBERS = ("accuracy", "hacked", "theta", "worst", "own rho", "share", "left")
"""What is kept of a run that came to an end."""


def seeds_of(results: Sequence[Result]) -> str:
    """Return of what numbers are.

    >>> seeds_of([{"asked": {"seed": 1}}]), seeds_of([{"asked": {"seed": 1}}, {}])
    ('one seed, 1', 'means of 2 seeds')
    """
    if len(results) > 1:
        return f"means of {len(results)} seeds"
    return f"one seed, {results[0].get('asked', {}).get('seed', '?')}"


def having(results: Sequence[Result], scene: str) -> list[Result]:
    """Return the results of the seeds for which a scene was measured."""
    return [result for result in results if scene in result["cells"]]


def there(results: Sequence[Result]) -> list[str]:
    """Return the scenes that were measured, for whichever seeds."""
    return [scene for scene in SCENES if having(results, scene)]


def crossed(results: Sequence[Result]) -> list[str]:
    """Return the crossed scenes that were measured."""
    return [name for name in there(results) if SCENES[name].crossed]


def missing(counts: Mapping[str, int], seeds: int) -> str:
    """Return what is not measured yet, from how many seeds there are of each scene.

    >>> missing(dict.fromkeys(SCENES, 3), seeds=3)
    ''
    >>> missing({**dict.fromkeys(SCENES, 3), "l2/iid": 1}, seeds=3)
    'Not measured yet: 2 of 3 seeds of l2/iid.'
    """
    lacking: dict[int, list[str]] = {}
    for scene in SCENES:
        lacking.setdefault(max(0, seeds - counts.get(scene, 0)), []).append(scene)
    parts = [f"{n} of {seeds} seeds of {', '.join(names)}" for n, names in lacking.items() if n]
    return f"Not measured yet: {'; '.join(parts)}." if parts else ""


def every_run(results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the CSV: of each seed, scene, attack and rule what the run came to."""
    for result in results:
        seed = result.get("asked", {}).get("seed", 0)
        for scene, by_attack in result["cells"].items():
            for attack, by_rule in by_attack.items():
                for rule, cell in by_rule.items():
                    numbers = {name: round(number(cell, name), 6) for name in NUMBERS}
                    said = str(cell.get("error") or cell.get("unsound") or "")
                    where = {"seed": seed, "scene": scene, "attack": attack, "rule": rule}
                    yield {**where, **numbers, "failed": said}
