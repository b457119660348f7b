"""Names to things: tables, and what is importable."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from pfl_flower.support.errors import ConfigError


def resolve(key: str, name: str, table: Mapping[str, Any]) -> Any:
    """Return ``table[name]``, or what ``package.module:Name`` names.

    Raises
    ------
    ConfigError
        If there is no such module or attribute.
    """
    if name in table:
        return table[name]
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{key} = {name}: expected {', '.join(table)} or something importable ({error})"
        ) from None
