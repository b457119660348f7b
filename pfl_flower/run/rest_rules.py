"""Which keys leave it unknown where a run leads, or lead it nowhere: no ``equilibrium`` with them.

``pfl_flower.run.at_equilibrium`` knows the limits of the plain sum of everybody's reports. A key
stands here if another value than the usual one moves rho's limit, or takes it away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.attacks.table import ATTACKS
from pfl_flower.run.settings import Settings
from pfl_flower.support.extensions import Refusal


class Mover(NamedTuple):
    """A key, whether it moves the limit of a run or takes it away, and why."""

    key: str
    moves: Callable[[Settings], bool]
    why: str


def _other_sum(config: Settings) -> bool:
    return not AGGREGATIONS.row(config.aggregation).plain


def _sampled(config: Settings) -> bool:
    return config.sample_size() < config.users


def _ends_on_the_way(config: Settings) -> bool:
    """Of step sizes ``first decay^t``, whose sum is finite."""
    numeric = config.server_lr != "auto"
    return numeric and config.server_lr_decay < 1 and config.server_lr_floor == 0


def _local_steps_end(config: Settings) -> bool:
    stepped = config.local_solver != "exact"
    return stepped and config.local_lr_decay < 1 and config.local_lr_floor == 0


def _shared_otherwise(config: Settings) -> bool:
    chosen = config.strategic()
    cancels = bool(chosen) and ATTACKS.row(config.attack).rest == "limit"
    return cancels and config.coalition not in (0, len(chosen))


MOVERS = (
    Mover(
        "personalization",
        lambda c: not c.way.coupled,
        "whose LOSS is another",
    ),
    Mover("aggregation", _other_sum, "whose limit is not known"),
    Mover("aggregation-mixing", lambda c: c.aggregation_mixing, "whose limit is not known"),
    Mover(
        "max-gradient-norm",
        lambda c: c.max_gradient_norm > 0,
        "as reports that are longer do not count",
    ),
    Mover("participation", _sampled, "as the sum of a sample changes and rho comes to no rest"),
    Mover("batch-size", lambda c: c.batch_size > 0, "as random steps come to no rest"),
    Mover(
        "server-lr-decay", _ends_on_the_way, "as such steps end on the way: with a floor they go on"
    ),
    Mover(
        "local-lr-decay", _local_steps_end, "as such steps end on the way: with a floor they go on"
    ),
    Mover(
        "coalition",
        _shared_otherwise,
        "as only all strategic users together correct by what is missing",
    ),
    Mover(
        "strategic-users",
        lambda c: len(c.strategic()) == c.users,
        "as there is no honest user",
    ),
)
"""What is looked at where ``equilibrium`` is asked for, in this order."""


def rest_refusals(config: Settings) -> Iterator[Refusal]:
    """Yield why it is not known where a run with ``equilibrium`` leads."""
    if not config.equilibrium:
        return
    given = config.flat()
    for key, moves, why in MOVERS:
        if moves(config):
            yield Refusal("equilibrium", f"false, with {key} = {given[key]}, {why}")
