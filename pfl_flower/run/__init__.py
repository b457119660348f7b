"""One run: its keys, the problem that they state, its rounds, its verdict, its figures.

The room has the name of the function that people call, and importing a module of the room puts the
room in the function's place as ``pfl_flower.run``. So the room can be called too: it does what
``pfl_flower.api.run`` does.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _CallableRoom(ModuleType):
    def __call__(self, *arguments: Any, **keys: Any) -> Any:
        """Run a preset or settings, see ``pfl_flower.api.run``."""
        return import_module("pfl_flower.api").run(*arguments, **keys)


sys.modules[__name__].__class__ = _CallableRoom
