"""The step sizes that a run's keys come to: of the server, and of the users' local steps."""

from __future__ import annotations

from pfl_flower.aggregation.server_steps import StepSizes
from pfl_flower.run.config import RunConfig
from pfl_flower.run.problem import Problem


def server_step_sizes(problem: Problem) -> StepSizes:
    """Return the eta_t by which the server moves rho, ``server-lr`` and what goes with it.

    ``auto`` is ``1/(3L)`` for all objectives, L the smoothness of what gradient descent minimises
    in rho: of the users' envelopes, which R bounds, or of ``sum_n L_n`` itself, which only their
    points tell. ``1/L`` would do for gradient descent; a third of it is what Theorem 4 leaves to
    CGA, whose recursion does not ask whose gradients are summed. Adam's steps have one length
    whatever the gradients are, so that no L tells what that should be: a number is asked for.
    """
    config = problem.config
    if config.server_lr == "auto":
        if config.way.moves and not config.way.coupled:
            scale = config.sample_scale()
            smoothness = scale * problem.smoothness(config.sample_size())
            return StepSizes(first=config.server_lr_factor / (3 * smoothness))
        summed = config.users if config.participation_rescale else config.sample_size()
        return StepSizes.auto(problem.regularizer, summed, config.server_lr_factor)
    return StepSizes(
        first=config.server_lr * config.server_lr_factor,
        decay=config.server_lr_decay,
        floor=config.server_lr_floor,
    )


def local_step_sizes(config: RunConfig) -> StepSizes:
    """Return the step sizes of a round's local steps, ``local-lr`` and so on."""
    return StepSizes(first=config.local_lr, decay=config.local_lr_decay, floor=config.local_floor())
