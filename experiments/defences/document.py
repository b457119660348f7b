"""``defences.md``: verdicts on rules and their spread, then all cells, and what broke off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from experiments.defences import spread
from experiments.defences.coverage import SEEDS, crossed, having, missing, seeds_of, there
from experiments.defences.judgement import Measured, Verdict, number
from experiments.defences.plan import ATTACKS, NOBODY, SCENES
from experiments.defences.tables import HEAD, averaged, broken, means, ranked, shown, verdicts
from experiments.studies.study import Result
from pfl_flower.run.reference import markdown

Lines = Iterator[str]


def report(results: Sequence[Result]) -> Lines:
    """Yield all tables: verdicts on crossed scenes, those at their sides, cells, what broke off."""
    yield f"# Rules and attackers: {seeds_of(results)}"
    yield ""
    if lacking := missing({name: len(having(results, name)) for name in SCENES}, SEEDS):
        yield lacking
        yield ""
    for scene in crossed(results):
        yield f"## {scene}: {seeds_of(having(results, scene))}"
        yield ""
        yield from (markdown(HEAD, ranked(results, scene)), "")
    yield from _sides(results)
    yield from _spread(results)
    for scene in crossed(results):
        yield f"## {scene}: accuracy of rho (share of the way), every run"
        yield ""
        yield from _cells(means(results, scene))
    yield from _broken(results)


def _sides(results: Sequence[Result]) -> Lines:
    scenes = there(results)
    sides = [name for name in scenes if not SCENES[name].crossed]
    if not sides:
        return
    attacks = sorted({a for name in sides for a in having(results, name)[0]["cells"][name]})
    attacks.remove(NOBODY)
    yield "## One thing changed at a time: cost, worst harm (largest share of the way)"
    yield ""
    yield f"Scenes at the sides of the crossed ones meet {', '.join(attacks)} alone."
    yield ""
    said = {name: {r: averaged(v) for r, v in verdicts(results, name).items()} for name in scenes}
    rules = list(next(iter(said.values())))
    rows = [
        [rule, *(_short(said[name][rule]) if rule in said[name] else "" for name in scenes)]
        for rule in rules
    ]
    heads = [f"{name}: {seeds_of(having(results, name))}" for name in scenes]
    yield from (markdown(["rule", *heads], rows), "")


def _spread(results: Sequence[Result]) -> Lines:
    """Yield for each scene of several seeds what differs between them."""
    for scene in there(results):
        if len(of_it := having(results, scene)) > 1:
            seeds = ", ".join(str(one.get("asked", {}).get("seed", "?")) for one in of_it)
            yield f"## {scene}: each rule's place for seeds {seeds}, and means (least to most)"
            yield ""
            yield from (markdown(spread.HEAD, spread.of_seeds(results, scene)), "")


def _short(said: Verdict) -> str:
    return f"{shown(said.cost, 3)}, {shown(said.harm, 3)} ({shown(said.share)})"


def _cells(cells: Mapping[str, Mapping[str, Measured]]) -> Lines:
    rules = list(cells[NOBODY])
    rows = []
    for attack, by_rule in cells.items():
        knowledge = ATTACKS[attack].knowledge
        label = f"{attack} [{knowledge}]" if knowledge else attack
        rows.append([label, *(_cell(by_rule.get(rule)) for rule in rules)])
    yield from (markdown(["attack", *rules], rows), "")


def _cell(cell: Measured | None) -> str:
    if cell is None:
        return ""
    if "error" in cell:
        return "broke off"
    mark = "!" if "unsound" in cell else ""
    return f"{shown(number(cell, 'accuracy'))} ({shown(number(cell, 'share'))}){mark}"


def _broken(results: Sequence[Result]) -> Lines:
    found = broken(results)
    if found:
        yield "## Runs that cannot be relied on"
        yield ""
        yield from (f"* {line}" for line in found)
        yield ""
