"""Objects by name: what can be imported, and what this process was given."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pfl_flower.support.errors import ConfigError
from pfl_flower.support.foreign_text import one_line

IMPORTABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""``package.module:Name``."""
HERE = "this-process:"
"""No module can be called this, so the names of given objects hide none."""

_given: dict[str, Callable[..., Any]] = {}


def given(thing: Callable[..., Any]) -> str:
    """Return a name for a class or a function, which a run configuration can carry.

    Of what a module defines it is ``package.module:Name``, which every process can import. Anything
    else (a lambda, a class of a notebook or of ``__main__``) is kept in this process, under a name
    that no other object gets: a class that is defined again is another one. Such a name means
    nothing to another process, unless that one was forked from this one afterwards; an object that
    was given is never let go.

    Raises
    ------
    ConfigError
        If the object cannot be called.

    Examples
    --------
    >>> from math import hypot
    >>> given(hypot)
    'math:hypot'
    """
    if not callable(thing):
        raise ConfigError(f"{thing!r}: expected a class or a function")
    name = str(getattr(thing, "__name__", type(thing).__name__))
    module = str(getattr(thing, "__module__", ""))
    place = f"{module}:{name}"
    if module != "__main__" and IMPORTABLE.fullmatch(place):
        if getattr(sys.modules.get(module), name, None) is thing:
            return place
    for known, other in _given.items():
        if other is thing:
            return known
    stem = HERE + (re.sub(r"\W", "", name) or "object")
    same = sum(1 for known in _given if re.sub(r"-\d+$", "", known) == stem)
    label = f"{stem}-{same + 1}" if same else stem
    _given[label] = thing
    return label


def shown(value: object) -> str:
    """Return a value of a key as a person reads it: numbers short, given objects by their names.

    >>> shown(0.1), shown("this-process:MyAttack"), shown(True)
    ('0.1', 'MyAttack', 'True')
    """
    return f"{value:g}" if isinstance(value, float) else str(value).removeprefix(HERE)


def is_plugin(name: str) -> bool:
    """Return whether a name has the form of something importable, or of something given.

    >>> is_plugin("my_attack:Opposite"), is_plugin("cga"), is_plugin("this-process:lambda")
    (True, False, True)
    """
    return name.startswith(HERE) or IMPORTABLE.fullmatch(name) is not None


def find(key: str, value: str, place: str) -> Callable[..., Any]:
    """Return what ``place`` names; in messages it is what ``key = value`` asks for.

    Raises
    ------
    ConfigError
        One line, if it cannot be imported or called: with the file and the line of a plug-in's own
        error.
    """
    if place.startswith(HERE):
        if place not in _given:
            raise ConfigError(f"{key} = {value}: expected an object that this process was given")
        return _given[place]
    module, _, name = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{key} = {value}: expected something importable ({told(error)})"
        ) from None
    if not callable(found):
        raise ConfigError(
            f"{key} = {value}: expected a class or a function, and it is a {type(found).__name__}"
        )
    return found


def told(error: BaseException) -> str:
    """Return an error as one line: where in somebody's code it was raised, its kind, what it says.

    ``my_attack.py:12: ValueError: no``. Of a traceback that ends in a library the line is shown
    from which the plug-in called it; of one that knows no line of a plug-in's, none is.
    """
    if isinstance(error, SyntaxError):
        return f"{_place(error.filename or '', error.lineno)}SyntaxError: {one_line(error.msg)}"
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not _ours(one.filename)]
    if not frames:
        return one_line(error)
    last = frames[-1]
    if last.filename.startswith(LIBRARIES):
        # Torch stands between us and a module's forward. A plug-in that is installed is a library
        # too: its file is the first that we called.
        own = [one for one in frames if not one.filename.startswith(LIBRARIES)]
        last = (own or [one for one in frames if one.filename == frames[0].filename])[-1]
    return _place(last.filename, last.lineno) + one_line(error)


PACKAGES = Path(__file__).resolve().parents[2]
OURS = tuple(f"{PACKAGES / name}{os.sep}" for name in ("pfl_flower", "clients", "strategies"))
LIBRARIES = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")})


def _ours(filename: str) -> bool:
    """Whether a file is this program's, or what imports modules."""
    return filename.startswith((*OURS, "<frozen ")) or filename == importlib.__file__


def _place(filename: str, line: int | None) -> str:
    """Return ``file:line: ``, the file as one sees it from the current folder."""
    if not filename:
        return ""
    path = Path(filename)
    with contextlib.suppress(OSError, ValueError):
        path = path.relative_to(Path.cwd())
    return f"{path}:{line}: "
