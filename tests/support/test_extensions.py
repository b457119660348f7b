"""Extension points: names, options, what is importable, and what a process was given."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from pfl_flower.run.config import parse_config
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.extensions import Extension, Refusal, Table
from pfl_flower.support.options import Options
from pfl_flower.support.plugins import given

PLUGIN = """
from typing import Literal

def scaled(rows, gain: float, kind: Literal["a", "b"] = "a", *, model_copy=None):
    return [gain * row for row in rows], kind, model_copy

def any_options(rows, **options):
    return options

def unannotated(rows, gain=1, other: "NotDefined" = 2):
    return gain, other

class Made:
    def __init__(self, rows, copies: tuple[int, ...] = ()):
        if len(copies) > 2:
            raise ValueError("at most two\\ncopies")
        self.copies = copies

def nothing():
    return None

number = 3
"""
BROKEN = {
    "raises": "1 / 0\n",
    "typo": "def f(:\n",
    "exits": "raise SystemExit(3)\n",
    "calls": "import json\njson.loads('')\n",
    "calls_own": "import json\nimport raises\n",
    "absent_part": "import json\nimport no_such\n",
}


class StepOptions(Options):
    steps: int = Field(3, ge=1, description="steps")


def own_key(settings: Any) -> Refusal | None:
    return Refusal("rule", "for few users") if settings.users < 5 else None


RULES: Table[Extension] = Table(
    "rule",
    {
        "same": Extension(factory=f"{__name__}:same", text="rows as they are"),
        "steps": Extension(
            factory=f"{__name__}:steps", text="steps", options=StepOptions, admits=own_key
        ),
        "file:PATH": Extension(factory=f"{__name__}:same", text="rows of a file"),
    },
    own=Extension(text="a function as package.module:name"),
    passed=("rows",),
    keyed={"tolerance": "rule-tolerance"},
)


def same(rows: Any) -> Any:
    return rows


def steps(rows: Any, *, steps: int = 3) -> Any:
    return rows * steps


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, code in {"my_rules": PLUGIN, **BROKEN}.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("my_rules", *BROKEN):
        sys.modules.pop(name, None)


REFUSED = [
    ("same", '{"gain": 2}', 'rule-options = {"gain": 2}: gain: expected no option'),
    ("steps", '{"step": 2}', 'rule-options = {"step": 2}: step: expected steps'),
    ("steps", '{"steps": 0}', 'rule-options = {"steps": 0}: steps = 0: expected greater than or'),
    ("steps", '{"steps": 1.5}', 'rule-options = {"steps": 1.5}: steps = 1.5: expected a valid int'),
    ("steps", '{"steps": true}', 'rule-options = {"steps": true}: steps = true: expected a valid'),
    ("steps", "[1]", "rule-options = [1]: expected a JSON object such as"),
    ("steps", "steps=1", "rule-options = steps=1: expected JSON such as"),
    ("other", "", "rule = other: expected same, steps, file:PATH, or a function as package.mod"),
    ("file:", "", "rule = file:: expected same, steps, file:PATH, or"),
    ("file:PATH/x", '{"gain": 2}', 'rule-options = {"gain": 2}: gain: expected no option'),
    ("no_such:rule", "", "rule = no_such:rule: expected something importable (ModuleNotFoundError"),
    ("my_rules:absent", "", "rule = my_rules:absent: expected something importable (AttributeErr"),
    ("my_rules:number", "", "rule = my_rules:number: expected a class or a function, and it is a"),
    ("my_rules:nothing", "", "rule = my_rules:nothing: expected a class or a function of rows"),
    ("raises:f", "", "rule = raises:f: expected something importable ("),
    ("typo:f", "", "rule = typo:f: expected something importable ("),
    ("exits:f", "", "rule = exits:f: expected something importable ("),
    ("my_rules:scaled", "", "rule-options = : gain: expected a value, and it is missing"),
    ("my_rules:scaled", '{"gain": "x"}', 'rule-options = {"gain": "x"}: gain = "x": expected a v'),
    (
        "my_rules:scaled",
        '{"gain": 1, "gian": 2}',
        'rule-options = {"gain": 1, "gian": 2}: gian: expected gain, kind, model_copy',
    ),
    (
        "my_rules:scaled",
        '{"gian": 2}',
        'rule-options = {"gian": 2}: gian: expected gain, kind, model_copy',
    ),
    (
        "my_rules:scaled",
        '{"gain": 1, "kind": "c"}',
        'rule-options = {"gain": 1, "kind": "c"}: kind = "c": expected \'a\' or \'b\'',
    ),
    (
        "my_rules:any_options",
        '{"tolerance": 1}',
        'rule-options = {"tolerance": 1}: tolerance has a key of its own, rule-tolerance',
    ),
    (
        "my_rules:Made",
        '{"copies": [1, 2, 3]}',
        "rule = my_rules:Made: expected a factory that works (",
    ),
    ("this-process:gone", "", "rule = this-process:gone: expected an object that this process"),
]


@pytest.mark.parametrize(("value", "options", "message"), REFUSED)
def test_what_is_wrong_is_one_line(value: str, options: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RULES.make(value, options, [1, 2])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


OWN_ERRORS = [
    ("raises:f", "", "raises.py:1: ZeroDivisionError: division by zero)"),
    ("exits:f", "", "exits.py:1: SystemExit: 3)"),
    ("typo:f", "", "typo.py:1: SyntaxError: invalid syntax)"),
    ("calls:f", "", "calls.py:2: JSONDecodeError: Expecting value: line 1 column 1 (char 0))"),
    ("calls_own:f", "", "raises.py:1: ZeroDivisionError: division by zero)"),
    ("absent_part:f", "", "absent_part.py:2: ModuleNotFoundError: No module named 'no_such')"),
    ("my_rules:Made", '{"copies": [1, 2, 3]}', "my_rules.py:16: ValueError: at most two copies)"),
]


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize(("value", "options", "end"), OWN_ERRORS)
def test_a_plug_ins_own_error_names_its_file_and_line(
    value: str, options: str, end: str, here: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one sees the file from the current folder; of a library's error the line that called."""
    if here:
        monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        RULES.make(value, options, [1, 2])
    assert str(caught.value).endswith(f" ({end}" if here else f" ({tmp_path / end}")


def test_an_error_without_a_line_of_the_plug_ins_names_none() -> None:
    with pytest.raises(ConfigError, match=r"\(ModuleNotFoundError: No module named 'no_such'\)$"):
        RULES.load("no_such:rule")


MADE = [
    ("same", "", [1, 2]),
    ("steps", "", [1, 2] * 3),
    ("steps", '{"steps": 2}', [1, 2] * 2),
    ("file:some/where", "", [1, 2]),
    ("my_rules:scaled", '{"gain": 2}', ([2, 4], "a", None)),
    ("my_rules:scaled", '{"gain": 2, "model_copy": 1, "kind": "b"}', ([2, 4], "b", 1)),
    ("my_rules:any_options", '{"a": 1, "b": [2]}', {"a": 1, "b": [2]}),
    ("my_rules:unannotated", '{"other": "x"}', (1, "x")),
]


@pytest.mark.parametrize(("value", "options", "expected"), MADE)
def test_options_reach_the_factorys_parameters(value: str, options: str, expected: Any) -> None:
    RULES.check(value, options)
    made = RULES.make(value, options, [1, 2])
    assert made == expected


def test_lists_of_json_become_what_is_annotated() -> None:
    assert RULES.make("my_rules:Made", '{"copies": [1, 2]}', []).copies == (1, 2)


def test_a_check_imports_nothing() -> None:
    RULES.check("my_rules:scaled", '{"gian": 2}')
    assert "my_rules" not in sys.modules


def test_a_refusal_of_the_tables_own_key_names_who_would_do() -> None:
    few, many = parse_config({"users": 4, "strategic-users": "3"}), parse_config({})
    assert RULES.refusal("steps", few) == Refusal("rule", "same, file:PATH, for few users")
    assert RULES.refusal("steps", many) is None
    assert RULES.refusal("my_rules:scaled", few) is None


class Local:
    def __init__(self, rows: Any, gain: int = 1) -> None:
        self.rows = rows * gain


def test_what_a_process_is_given_has_a_name() -> None:
    assert given(Local) == f"{__name__}:Local"

    def redefined(gain: int) -> Any:
        class Local:
            def __init__(self, rows: Any) -> None:
                self.rows = rows * gain

        return Local

    two, three = redefined(2), redefined(3)
    names = [given(thing) for thing in (two, three, two)]
    assert names[0] == names[2] != names[1]
    assert [RULES.make(name, "", [1]).rows for name in names] == [[1, 1], [1, 1, 1], [1, 1]]
    assert RULES.make(given(partial(Local, gain=2)), "", [1]).rows == [1, 1]
    with pytest.raises(ConfigError, match="3: expected a class or a function"):
        given(3)  # type: ignore[arg-type]


def test_what_is_given_is_a_value_of_a_key() -> None:
    def total(rows: Any) -> Any:
        return rows.sum(dim=0)

    assert parse_config({"aggregation": total}).aggregation == given(total)
    assert parse_config({"attack": Local}).attack == f"{__name__}:Local"
    with pytest.raises(ConfigError, match="attack = 3: expected text"):
        parse_config({"attack": 3})


def test_a_script_gives_options_as_a_mapping() -> None:
    values = {"aggregation": "geometric-median", "aggregation-options": {"steps": 5}}
    assert parse_config(values).aggregation_options == '{"steps": 5}'
