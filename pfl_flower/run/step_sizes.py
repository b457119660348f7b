"""The step sizes that a run's keys come to: of the server, and of the users' local steps."""

from __future__ import annotations

from pfl_flower.aggregation.server_steps import StepSizes
from pfl_flower.objective.regularizers import Regularizer
from pfl_flower.run.config import RunConfig


def server_step_sizes(config: RunConfig, regularizer: Regularizer) -> StepSizes:
    """Return the eta_t by which the server moves rho, ``server-lr`` and what goes with it."""
    if config.server_lr == "auto":
        summed = config.users if config.participation_rescale else config.sample_size()
        return StepSizes.auto(regularizer, summed, config.server_lr_factor)
    return StepSizes(
        first=config.server_lr * config.server_lr_factor,
        decay=config.server_lr_decay,
        floor=config.server_lr_floor,
    )


def local_step_sizes(config: RunConfig) -> StepSizes:
    """Return the step sizes of a round's local steps, ``local-lr`` and so on."""
    return StepSizes(first=config.local_lr, decay=config.local_lr_decay, floor=config.local_floor())
