"""Personalised federated learning under strategic users: a simulator and an attack laboratory.

>>> import pfl_flower as pfl
>>> result = pfl.run("digits-l2", rounds=2, points_per_user=50)
>>> result.rounds.columns[:3]
('seed', 'round', 'eta')

Names are imported when they are used: ``import pfl_flower`` loads neither torch nor Flower.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pfl_flower.api import compare, load, run, sweep
    from pfl_flower.interop.checked import Checked
    from pfl_flower.interop.datasets import poisoned, relabelled
    from pfl_flower.interop.mod import attack_mod
    from pfl_flower.interop.nonces import nonce_mod
    from pfl_flower.interop.robust import RobustFedAvg
    from pfl_flower.run.columns import Table
    from pfl_flower.run.comparison import Comparison
    from pfl_flower.run.config import RunConfig
    from pfl_flower.run.finished import Result
    from pfl_flower.run.presets import presets
    from pfl_flower.run.sweeps import Sweep
    from pfl_flower.support.errors import ConfigError, DataError

__version__ = "0.2.0"
__all__ = [
    "Checked",
    "Comparison",
    "ConfigError",
    "DataError",
    "Result",
    "RobustFedAvg",
    "RunConfig",
    "Sweep",
    "Table",
    "attack_mod",
    "compare",
    "load",
    "nonce_mod",
    "poisoned",
    "presets",
    "relabelled",
    "run",
    "sweep",
]
_PLACES = {
    "Checked": "pfl_flower.interop.checked",
    "Comparison": "pfl_flower.run.comparison",
    "ConfigError": "pfl_flower.support.errors",
    "DataError": "pfl_flower.support.errors",
    "Result": "pfl_flower.run.finished",
    "RobustFedAvg": "pfl_flower.interop.robust",
    "RunConfig": "pfl_flower.run.config",
    "Sweep": "pfl_flower.run.sweeps",
    "Table": "pfl_flower.run.columns",
    "attack_mod": "pfl_flower.interop.mod",
    "compare": "pfl_flower.api",
    "load": "pfl_flower.api",
    "nonce_mod": "pfl_flower.interop.nonces",
    "poisoned": "pfl_flower.interop.datasets",
    "presets": "pfl_flower.run.presets",
    "relabelled": "pfl_flower.interop.datasets",
    "run": "pfl_flower.api",
    "sweep": "pfl_flower.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted([*__all__, "__version__"])
