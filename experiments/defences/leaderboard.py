"""A rule of one's own among those of the table: the same attacks, the same scenes, one ranking.

The others' numbers are those of the study in the folder of results, or those that are stored with
the project. One's own rule meets every attack of the crossed scenes anew. The quick form stores
nothing of others: it runs a few of them beside one's own.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from experiments.defences.coverage import seeds_of
from experiments.defences.judgement import BROKE, FIELDS, SAID, UNSOUND, Verdict
from experiments.defences.plan import BASE, FIRST, SCENES, Rule
from experiments.defences.presentation import WIDTH, summary
from experiments.defences.study import STUDY, measure_plan, own_rule
from experiments.defences.tables import broken, shown
from experiments.running.options import Options
from experiments.studies.study import Result, Study
from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.run.checks import Claim, exactly
from pfl_flower.run.figures import save
from pfl_flower.run.reference import markdown
from pfl_flower.run.trial import check_before
from pfl_flower.support.console import plain
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.files import replace_file

STORED = Path(__file__).parents[1] / "results"
HEAD = ("place", "rule", *(words for _, words in SAID))
Found = dict[str, list[Verdict]]
"""By rule what is said of it in each seed; numbers that are not stored are NaN."""


@dataclass(frozen=True)
class Others:
    """What is known of the table's rules.

    Attributes
    ----------
    source : str
        Where it is from.
    seeds : tuple of int
        Of which seeds.
    values : mapping
        By metric, its value for each seed.
    lacking : tuple of str
        Metrics that are not known of every seed.
    """

    source: str = "this run alone"
    seeds: tuple[int, ...] = ()
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: Options) -> Others:
        """Return what the folder of results holds of the study, or else what the project stores.

        >>> Others.of(Options(output=Path("/nowhere"), quick=True)).seeds
        ()
        """
        for folder in [] if options.quick else [options.output / STUDY.name, STORED / STUDY.name]:
            try:
                kept = json.loads((folder / "summary.json").read_text())
                if kept["config"]["quick"] or kept.get("control"):
                    continue
                values = {name: one["values"] for name, one in kept["metrics"].items()}
                return cls(str(folder), tuple(kept["seeds"]), values)
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return cls()

    def among(self, seeds: Sequence[int]) -> Others:
        """Return what is known of these seeds; what was not measured for all of its own is none.

        A metric of fewer values than there are seeds does not say of which it has them.

        Raises
        ------
        ConfigError
            If one is asked for that the others are not known of: means of other seeds would be
            compared.

        >>> known = Others("here", (1, 2), {"whole": (0.1, 0.2), "half": (0.3,)})
        >>> known.among((2,)).values
        {'whole': [0.2]}
        """
        for seed in seeds:
            if self.seeds and seed not in self.seeds:
                raise ConfigError(
                    f"--seeds {seed}: expected of {', '.join(map(str, self.seeds))}, for which "
                    f"the other rules are known from {self.source}"
                )
        whole = {name: of for name, of in self.values.items() if len(of) == len(self.seeds)}
        at = [self.seeds.index(seed) for seed in seeds if self.seeds]
        values = {name: [of[place] for place in at] for name, of in whole.items()}
        lacking = tuple(name for name in self.values if name not in whole)
        return replace(self, seeds=tuple(seeds), values=values, lacking=lacking)

    def left_out(self, scene: str) -> str:
        """Return which rules were not measured for every seed, in a line; empty if there is none.

        >>> Others("here", (1, 2), {"l2/iid, sum: cost": [0.0]}).among((1, 2)).left_out("l2/iid")
        'l2/iid: not ranked, as not measured for every seed: sum'
        """
        rules = ", ".join(_rules(self.lacking, scene))
        return f"{scene}: not ranked, as not measured for every seed: {rules}" if rules else ""

    def of_scene(self, scene: str) -> Found:
        """Return what is said of each rule in a scene."""
        rules = _rules(self.values, scene)
        return {rule: from_metrics(self.values, f"{scene}, {rule}") for rule in rules}


def _rules(names: Iterable[str], scene: str) -> list[str]:
    """Return the rules of which metrics say something in a scene."""
    first, last = f"{scene}, ", f": {SAID[0][1]}"
    here = [name for name in names if name.startswith(first) and name.endswith(last)]
    return [name.removeprefix(first).removesuffix(last) for name in here]


def from_metrics(values: Mapping[str, Sequence[float]], where: str) -> list[Verdict]:
    """Return what metrics say of a rule in a scene, in each seed."""
    names = {key: f"{where}: {words}" for key, words in SAID}
    known = {key: values[name] for key, name in names.items() if name in values}
    count = len(known["cost"])
    return [
        Verdict(**{name: float(known[name][i]) if name in known else math.nan for name in FIELDS})
        for i in range(count)
    ]


def leaderboard(place: str, options: Options) -> tuple[Study, Options]:
    """Return the study in which one's own rule takes the place of the table's, and its options.

    Its seeds are those that the others are known of, or of these the ones that are asked for.

    Raises
    ------
    ConfigError
        If ``place`` is a rule of the table, or none that can be used; if a seed is asked for that
        the others are not known of.
    """
    if place in AGGREGATIONS:
        raise ConfigError(f"--rule {place}: expected one of your own, and it is in the table")
    rule = own_rule(place)
    keys = {**BASE, **SCENES[FIRST].keys, "strategic-users": "none", **rule.keys}
    check_before(options.configure(keys, options.output, 1, "run"))
    known = Others.of(options)
    known = known.among(options.seeds or known.seeds)
    claims = tuple(Claim(name, exactly(0), name) for name in (BROKE, UNSOUND))
    study = replace(
        STUDY,
        measure=partial(measure_plan, own=rule),
        draw=partial(draw, rule=rule, others=known),
        judge=lambda finals: [],
        seeds=known.seeds or STUDY.seeds,
        success=(),
        always=claims,
        paper=(),
        brought=frozenset({"scenes", "rule", "code"}),
        folder={"rule": place},
    )
    return study, replace(options, study={**options.study, "rule": place, "code": code(place)})


def code(place: str) -> str:
    """Return a digest of the module that holds a rule: what other code did is not kept."""
    module = inspect.getmodule(AGGREGATIONS.load(place))
    text = "" if module is None else inspect.getsource(module)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def draw(results: Sequence[Result], folder: Path, *, rule: Rule, others: Others) -> None:
    """Rank one's own rule in each scene: a table, also as Markdown, and a picture."""
    told = seeds_of(results)
    lines = [
        f"# {rule.name} among the rules of the table",
        "",
        f"Theirs from {others.source}; {told}.",
        "",
    ]
    panels: dict[str, Found] = {}
    for scene in results[0]["cells"]:
        own = {name: [one["metrics"][name] for one in results] for name in results[0]["metrics"]}
        panels[scene] = {**others.of_scene(scene), **Others(values=own).of_scene(scene)}
        rows = ranking(panels[scene])
        show(f"{scene}: {rule.name} among {len(rows)}", rows, rule.name)
        lines += [f"## {scene}", "", markdown(HEAD, rows), ""]
        if left_out := others.left_out(scene):
            Console().print(plain(left_out), soft_wrap=True)
            lines += [left_out, ""]
    save(summary(panels, f"{rule.name} among others", rule.name), folder, "leaderboard")
    replace_file(folder / "leaderboard.md", "\n".join(lines))
    for line in broken(results):
        Console().print(plain(line, "red"), soft_wrap=True)


def ranking(found: Found) -> list[list[str]]:
    """Return the rows under ``HEAD``: the least lost in the worst case, and to the rule, first.

    A number that is none is the worst there is.
    """
    said = {
        rule: [fmean(getattr(one, key) for one in ones) for key, _ in SAID]
        for rule, ones in found.items()
    }
    lost = {rule: numbers[0] + numbers[1] for rule, numbers in said.items()}
    order = sorted(lost, key=lambda rule: math.inf if math.isnan(lost[rule]) else lost[rule])
    return [
        [str(place), rule, *(shown(value, 3) for value in said[rule])]
        for place, rule in enumerate(order, 1)
    ]


def show(title: str, rows: Sequence[Sequence[str]], own: str) -> None:
    """Print a ranking in which one's own rule stands out."""
    table = Table(title=title)
    for column in HEAD:
        table.add_column(column, justify="left" if column == "rule" else "right")
    for row in rows:
        table.add_row(*row, style="bold" if row[1] == own else "")
    console = Console()
    Console(width=max(WIDTH, console.width)).print(table)
