"""The report as one HTML page that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from experiments.report.entries import Comparison, Entry, Status, commits, machines
from experiments.report.markup import Markup, cell, element, join, prose, row, table
from experiments.report.style import STYLE
from experiments.report.text import duration, number, spread

TITLE = "The paper and our runs, side by side"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Tells the browser too that nothing is loaded from anywhere."""
SCREEN_DPI = 96
PHONE = 600
"""Wider pictures cannot be read when shrunk to a phone's width: they scroll instead."""
DEVIATION = "ours minus the paper's, and as a share of the paper's"


def page(entries: Sequence[Entry]) -> str:
    """Return the page: a table of all studies, then each with its pictures and numbers."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", TITLE),
        element("style", Markup(STYLE)),
    )
    main = element("main", _opening(entries), *(_section(entry) for entry in entries))
    body = element("body", element("div", _contents(entries), main, class_="layout"))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _contents(entries: Sequence[Entry]) -> Markup:
    items = [
        element("li", element("a", entry.name, href=f"#{entry.name}"), " ", _status(entry))
        for entry in entries
    ]
    return element(
        "nav", element("h2", "Contents"), element("ol", *items), class_="toc", aria_label="Contents"
    )


def _opening(entries: Sequence[Entry]) -> Markup:
    found = [entry.status for entry in entries]
    counts = [f"{found.count(word)} {word}" for word in get_args(Status) if word in found]
    lead = "An equivalence between data poisoning and Byzantine gradient attacks, reproduced; "
    rows = [line for entry in entries for line in _summary_rows(entry)]
    heads = ("study", "checks", "quantity", "paper", "ours", "deviation")
    return element(
        "header",
        element("h1", TITLE),
        element("p", lead, f"studies: {', '.join(counts)}.", class_="lead"),
        _origin(entries),
        table("All studies", heads, rows),
        element("p", f"Ours: mean ± standard deviation over seeds. Deviation: {DEVIATION}."),
    )


def _origin(entries: Sequence[Entry]) -> Markup:
    """Return commits and machines, which a table of numbers should come from one of."""
    found, made = machines(entries), commits(entries)
    parts = [element("p", f"Measured on {'; '.join(found)}.")] if found else []
    if len(made) == 1:
        parts.append(element("p", "Commit ", element("code", made[0]), "."))
    elif made:
        parts.append(_warning(f"From {len(made)} different commits: {', '.join(made)}."))
    return join(parts)


def _summary_rows(entry: Entry) -> list[Markup]:
    comparisons = entry.comparisons
    span = {"rowspan": max(1, len(comparisons))}
    what = element("span", entry.study.title, class_="small")
    name = element("th", element("a", entry.name, href=f"#{entry.name}"), what, scope="row", **span)
    checks = [element("span", entry.checks, class_="small")] if entry.summary is not None else []
    verdict = element("td", _status(entry), *_marks(entry), *checks, **span)
    if not comparisons:
        none = element("td", "The paper prints no number.", colspan=4, class_="note")
        return [row(name, verdict, none)]
    first, *others = (_summary_cells(comparison) for comparison in comparisons)
    return [row(name, verdict, *first), *(row(*cells) for cells in others)]


def _summary_cells(comparison: Comparison) -> list[Markup]:
    where = element("span", comparison.printed.where, class_="small")
    return [element("td", comparison.printed.what, where, class_="what"), *_numbers(comparison)]


def _numbers(comparison: Comparison) -> list[Markup]:
    return [
        cell("paper", number(comparison.printed.value)),
        cell("ours", comparison.ours),
        cell("deviation", comparison.deviation),
    ]


def _section(entry: Entry) -> Markup:
    parts = [
        element("h2", entry.study.title),
        element(
            "p", element("code", entry.name), " ", _status(entry), *_marks(entry), class_="name"
        ),
    ]
    if entry.problem:
        later = " These numbers are from before." if entry.summary is not None else ""
        parts.append(_warning(f"{entry.status}: {entry.problem.rstrip('.')}.{later}"))
    if "quick" in entry.marks:
        parts.append(_warning("Smaller sizes (--quick): these are not the study's own numbers."))
    if "control" in entry.marks:
        parts.append(_warning("The control: the attacker is idle, and its claims must fail."))
    parts += [
        _pictures(entry),
        element("h3", "Setting"),
        prose(entry.setting) or element("p", "Not described."),
        element("h3", "The paper's numbers and ours"),
        _comparisons(entry),
    ]
    if entry.summary is not None:
        parts += [element("h3", "Checks"), _checks(entry, entry.summary), _metrics(entry.summary)]
    parts += [element("h3", "How it is made"), _making(entry)]
    return element("section", *parts, id=entry.name)


def _pictures(entry: Entry) -> Markup:
    if not entry.pictures:
        return element("p", "No picture: none was found beside the results.", class_="note")
    figures = [_picture(path, entry.study.title) for path in entry.pictures]
    return element("div", *figures, class_="pictures")


def _picture(path: Path, title: str) -> Markup:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.load()
            size, dpi = image.size, image.info.get("dpi", (SCREEN_DPI, SCREEN_DPI))[0]
    except (OSError, SyntaxError, ValueError):
        return element("p", f"The picture {path.name} cannot be read.", class_="note")
    width, height = (round(side * SCREEN_DPI / (dpi or SCREEN_DPI)) for side in size)
    data = base64.b64encode(path.read_bytes()).decode()
    image_tag = element(
        "img",
        src=f"data:image/png;base64,{data}",
        alt=f"{title} ({path.stem})",
        width=width,
        height=height,
        class_="wide" if width > PHONE else "",
    )
    return element("figure", image_tag, element("figcaption", path.stem))


def _comparisons(entry: Entry) -> Markup:
    if not entry.study.printed:
        return element("p", "The paper prints no number to compare with.", class_="note")
    rows = [
        row(one.printed.what, cell("where", one.printed.where, class_="where"), *_numbers(one))
        for one in entry.comparisons
    ]
    heads = ("quantity", "where", "paper", "ours", "deviation")
    return table("The paper's numbers and ours", heads, rows)


def _checks(entry: Entry, summary: Mapping[str, Any]) -> Markup:
    rows = []
    for check in summary["checks"]:
        must_fail = check["name"] in entry.must_fail
        word = "passed" if check["passed"] else "FAILED"
        fine = bool(check["passed"]) != must_fail
        verdict = element("span", word, class_=f"status {'passed' if fine else 'failed'}")
        cells = [
            cell("value", number(check["value"])),
            cell("expected", str(check["expected"])),
            cell("result", verdict, " as it must" if must_fail and fine else ""),
        ]
        rows.append(row(check["name"], *cells))
    if not rows:
        return element("p", "None.", class_="note")
    return table("Checks", ("check", "value", "expected", "result"), rows)


def _metrics(summary: Mapping[str, Any]) -> Markup:
    rows = []
    for name, metric in summary["metrics"].items():
        values = [float(value) for value in metric["values"]]
        std = float(metric["std"]) if len(values) > 1 else None
        each = cell("by seed", ", ".join(map(number, values)), class_="seeds")
        mean = cell("mean ± std", spread(float(metric["mean"]), std))
        rows.append(row(element("code", name), mean, each))
    title = element("summary", f"All metrics ({len(rows)})")
    return element("details", title, table("Metrics", ("metric", "mean ± std", "by seed"), rows))


def _making(entry: Entry) -> Markup:
    command = element("pre", entry.command)
    summary = entry.summary
    if summary is None:
        return command
    versions = ", ".join(f"{name} {text}" for name, text in summary["versions"].items())
    facts = {
        "seeds": ", ".join(map(str, summary["seeds"])),
        "time": f"{duration(entry.seconds)} for all seeds",
        "hardware": str(summary.get("hardware", "not recorded")),
        "device": str(summary["device"]),
        "versions": versions,
        "commit": element("code", ", ".join(entry.commits)),
    }
    pairs = [join((element("dt", key), element("dd", text))) for key, text in facts.items()]
    return join((command, element("dl", *pairs)))


def _status(entry: Entry) -> Markup:
    kind = entry.status.lower().replace(" ", "-")
    return element("span", entry.status, class_=f"status {kind}")


def _marks(entry: Entry) -> list[Markup]:
    return [element("span", mark, class_="mark") for mark in entry.marks]


def _warning(text: str) -> Markup:
    return element("p", text, class_="warning")
