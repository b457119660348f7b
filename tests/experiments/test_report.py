from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from PIL import Image

from experiments.report import entries, rendering
from experiments.report.command import report
from experiments.report.rendering import maths, plain
from experiments.report.text import prose
from pfl_flower.run.checks import Check
from pfl_flower.support import hardware
from pfl_flower.support.errors import ConfigError
from tests.support import fake_studies
from tests.support.fake_studies import (
    ALL,
    CHECKS,
    HOSTILE,
    VERDICT,
    leave,
    markdown_tables,
    quiet,
    read,
)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_studies.register(monkeypatch)


def test_every_study_stands_in_page_and_table(tmp_path: Path) -> None:
    leave(tmp_path, "good")
    leave(tmp_path, "fails", checks=[Check("too much", 0.5, ">= 0.9", False)])
    leave(tmp_path, "nasty")
    page, rows = read(tmp_path)
    assert set(ALL) <= page.ids
    assert {link[1:] for link in page.links} == set(ALL)
    for name in ALL:
        assert name in page.text
        assert any(row[0] == f"| {name}" for row in rows)
    found = {row[0][2:]: row[VERDICT] for row in rows[2:]}
    assert found == {
        "good": "passed",
        "plain": "not run",
        "fails": "FAILED",
        "nasty": "passed",
        "broken": "not run",
        "absent": "not run",
    }
    counts = "2 passed, 1 FAILED, 3 not run"
    assert counts in "".join(page.words)
    assert counts in (tmp_path / "report.md").read_text()
    assert page.row("too much") == ["too much", "0.5", ">= 0.9", "FAILED"]
    assert page.row("gap")[1:] == ["1e-09", "<= 1e-6", "passed"]


def test_the_table_has_as_many_columns_in_every_row(tmp_path: Path) -> None:
    leave(tmp_path, "nasty")
    _, rows = read(tmp_path)
    assert len(rows) == 2 + len(ALL)
    assert {len(row) for row in rows} == {8}
    assert set(rows[1]) == {"| ---", "---", "--- |"}


def test_text_is_escaped_and_nothing_is_loaded(tmp_path: Path) -> None:
    leave(
        tmp_path,
        "nasty",
        finals=[{"accuracy": 0.5, HOSTILE: 1.0}],
        checks=[Check(HOSTILE, HOSTILE, HOSTILE, True)],
        settings={"target": HOSTILE},
    )
    page, _ = read(tmp_path)
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) >= 8
    sources = [value or "" for _, name, value in page.attributes if name in ("src", "href")]
    assert sources
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in sources)
    assert "link" not in page.tags
    raw = (tmp_path / "report.html").read_text()
    assert "http://" not in raw and "https://" not in raw and "url(" not in raw
    assert "<script>" not in (tmp_path / "report.md").read_text().replace("\\<", "")


def test_pictures_are_embedded_whole(tmp_path: Path) -> None:
    leave(tmp_path, "good")
    folder = tmp_path / "good"
    Image.effect_noise((150, 75), 50).save(folder / "second.png", dpi=(150, 150))
    (folder / ".7-half.png").write_bytes(b"half")
    (folder / "third.png").write_bytes((folder / "second.png").read_bytes()[:5000])
    leave(tmp_path, "plain", picture=False)
    page, _ = read(tmp_path)
    sources = [str(value) for _, name, value in page.attributes if name == "src"]
    embedded = [base64.b64decode(source.partition(",")[2]) for source in sources]
    assert embedded == [(folder / f"{name}.png").read_bytes() for name in ("picture", "second")]
    assert [value for tag, name, value in page.attributes if (tag, name) == ("img", "width")] == [
        "30",
        "96",
    ]
    assert "third.png cannot be read" in page.text
    assert "half" not in page.text
    assert page.text.count("No picture") == len(ALL) - 1


def test_deviations_are_ours_minus_the_papers(tmp_path: Path) -> None:
    leave(tmp_path, "good", finals=[{"accuracy": 0.7, "gap": 0.25}, {"accuracy": 0.74, "gap": 0.5}])
    page, _ = read(tmp_path)
    wanted = [
        ["accuracy of the idle", "Table 1", "0.8", "0.72 ± 0.028", "-0.08 (-10.0 %)"],
        ["nothing of ours", "Fig. 2", "3", "not measured", "-"],
        ["a gap", "Fig. 3", "0", "0.375 ± 0.18", "+0.375"],
    ]
    wanted = [
        [*row, standing]
        for row, standing in zip(wanted, ("differs", "not measured", "reproduced"), strict=True)
    ]
    own = [row for row in page.rows if row[0] in [w[0] for w in wanted] and len(row) == 6]
    assert own[:3] == wanted
    printed = markdown_tables((tmp_path / "report.md").read_text())[1]
    assert [[*row[1:6], row[6][:-2]] for row in printed if row[0] == "| good"] == wanted


def test_one_seed_has_no_spread_and_what_is_not_a_number_is_shown(tmp_path: Path) -> None:
    leave(tmp_path, "good", finals=[{"accuracy": 0.7, "gap": float("nan")}])
    path = tmp_path / "good" / "summary.json"
    path.write_text(path.read_text().replace("NaN", '"nan"'))
    page, _ = read(tmp_path, ["good"])
    rows = {row[0]: row[3:] for row in page.rows}
    assert rows["accuracy of the idle"] == ["0.7 (one seed)", "-0.1 (-12.5 %)", "differs"]
    assert rows["a gap"] == ["nan (one seed)", "+nan", "differs"]


def test_setting_or_the_modules_docstring(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    page, _ = read(tmp_path, ["good", "plain"])
    assert "another" in page.text and "rho" in page.text
    assert "Fake studies" in page.text
    monkeypatch.setattr(fake_studies, "__doc__", None)
    assert "Not described." in read(tmp_path, ["plain"])[0].text
    monkeypatch.setattr(fake_studies, "__doc__", "What is\nclaimed here.")
    assert "What is claimed here." in read(tmp_path, ["plain"])[0].text


UNREADABLE = ["{", "[]", "{}", '{"seeds": [1]}']


@pytest.mark.parametrize("content", UNREADABLE)
def test_a_summary_that_cannot_be_read_is_said(content: str, tmp_path: Path) -> None:
    leave(tmp_path, "good")
    (tmp_path / "good" / "summary.json").write_text(content)
    page, rows = read(tmp_path, ["good"])
    assert rows[2][VERDICT] == "unreadable"
    assert "unreadable: summary.json" in page.text


def test_quick_and_control_are_marked(tmp_path: Path) -> None:
    leave(tmp_path, "good", quick=True)
    summary = leave(
        tmp_path,
        "absent",
        checks=[Check("gap", 1.0, "<= 1e-6", False), Check("own", 1, "== 1", True)],
        control=True,
    )
    summary["passed"] = True
    (tmp_path / "absent" / "summary.json").write_text(json.dumps(summary))
    page, rows = read(tmp_path, ["good", "absent"])
    assert [row[VERDICT] for row in rows[2:]] == ["passed (quick)", "passed (control)"]
    assert rows[-1][CHECKS] == "1 of 1 fail, as they must"
    assert page.row("gap") == ["gap", "1", "<= 1e-6", "fails without the attack, as it must"]
    assert "Smaller sizes" in page.text and "The control" in page.text


def test_seconds_and_commits_of_seeds_that_were_kept_count(tmp_path: Path) -> None:
    summary = leave(tmp_path, "good")
    asked = summary["config"]
    for seed, seconds, config in ((1, 60.0, asked), (2, 600.0, {**asked, "quick": True})):
        path = tmp_path / "good" / f"seed-{seed}" / "result.json"
        path.parent.mkdir()
        kept = {"asked": {**config, "seed": seed}, "commit": f"of-{seed}", "seconds": seconds}
        path.write_text(json.dumps(kept))
    entry = entries.read_entry(tmp_path, "good")
    assert (entry.seconds, entry.commits) == (60.0, ["of-1", summary["commit"]])
    assert f"of-1, {summary['commit']}" in read(tmp_path)[0].text
    summary["seconds"] = 100.0
    (tmp_path / "good" / "summary.json").write_text(json.dumps(summary))
    assert entries.read_entry(tmp_path, "good").seconds == 100.0


def test_results_of_different_commits_are_said(tmp_path: Path) -> None:
    leave(tmp_path, "good")
    summary = leave(tmp_path, "plain")
    assert "different commits" not in read(tmp_path)[0].text
    (tmp_path / "plain" / "summary.json").write_text(json.dumps({**summary, "commit": "abc"}))
    assert "From 2 different commits" in read(tmp_path)[0].text


def test_summaries_say_the_hardware(tmp_path: Path) -> None:
    summary = leave(tmp_path, "good")
    assert summary["hardware"] == hardware.hardware()
    assert summary["hardware"] in read(tmp_path, ["good"])[0].text


def test_text_is_escaped_wherever_it_is_typeset() -> None:
    template = '{% from "parts.html.j2" import prose %}{{ prose(blocks) }}'
    made = (
        rendering._pages()
        .from_string(template)
        .render(blocks=prose("a\n\n    x <\n      y\n\n* b ``c <``\n* d"))
    )
    assert "".join(made.split("\n\n")).replace("\n<", "<").rstrip() == (
        "<p>a</p><pre>x &lt;\n  y</pre><ul><li>b <code>c &lt;</code></li><li>d</li></ul>"
    )
    assert maths("<i> 3e-08 & n^-0.5") == ("&lt;i&gt; 3·10<sup>-8</sup> &amp; n<sup>-0.5</sup>")
    assert plain("a\n|b| <c>") == "a \\|b\\| \\<c\\>"


def test_an_unknown_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NAME = nope: expected one of"):
        report(tmp_path, ["good", "nope"], quiet())
    assert not list(tmp_path.iterdir())
