"""The app's model in a message and in the reply to it, and what an attack makes of the two."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import RecordDict
from torch import Tensor

from pfl_flower.interop.layers import Layers, Layout, arrays_of, unpacked
from pfl_flower.support.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Model:
    """What the server sent and what the app's own code made of it.

    Attributes
    ----------
    layout : Layout
        Of both.
    first, layers : mapping
        The layers as they came, and as the honest client returns them.
    rho, report : Tensor
        The floating ones that came, and ``rho - theta``, ``(d,)`` in float64.
    """

    layout: Layout
    first: Layers
    layers: Layers
    rho: Tensor
    report: Tensor


def matched(content: RecordDict, answer: RecordDict) -> tuple[str, Model]:
    """Return the name of the reply's record that holds the model, and the model.

    It is the record of the same name as one of the message's, else the first with the same layers.

    Raises
    ------
    ConfigError
        If the reply has no such record, or the model no layer that training moves.
    """
    sent, returned = arrays_of(content), arrays_of(answer)
    pairs = [(name, name) for name in sent if name in returned]
    pairs += [(one, other) for one in sent for other in returned]
    fault = "a message with arrays, and a reply with arrays"
    for one, other in pairs:
        first, layers = unpacked(sent[one]), unpacked(returned[other])
        # The reply's types: a server that averages counters sends them back as floating numbers.
        layout = Layout.of(layers)
        if difference := layout.difference(first):
            fault = f"a reply that fits its message, which has {difference}"
        elif not layout.moved:
            fault = "layers of floating numbers"
        else:
            rho = layout.vector(first)
            report = rho - layout.vector(layers)
            return other, Model(layout=layout, first=first, layers=layers, rho=rho, report=report)
    raise ConfigError(f"attack_mod: expected {fault}")
