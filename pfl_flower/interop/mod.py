"""An attacking client as a mod of somebody's Flower app.

The honest app answers first, whole; what goes out is its reply with other arrays. Record names,
metrics and shapes are the app's own, and on nodes that do not attack the mod is not there: the
message goes to the app and its reply goes out as they are.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor

from pfl_flower.attacks.attack import Attack, Observation
from pfl_flower.interop.arguments import Arguments, checked_arguments
from pfl_flower.interop.layers import Values, packed
from pfl_flower.interop.makers import make
from pfl_flower.interop.models import Model, matched
from pfl_flower.interop.remembered import Memory, put, taken
from pfl_flower.interop.targets import Target, target_vector
from pfl_flower.interop.who import PARTITION, number_in
from pfl_flower.support.errors import ConfigError
from pfl_flower.support.foreign_text import one_line
from pfl_flower.support.seeding import seed_everything, seed_of, undisturbed

Next = Callable[[Message, Context], Message]
Mod = Callable[[Message, Context, Next], Message]
TRAIN = "train"
ROUND = "server-round"
"""Where Flower's strategies write the round's number in their configuration record."""
SAME = (
    "attack_mod: %d runs of the app's own code gave one model: nothing is known of the others; "
    "name partitions as surrogates"
)
_LOG = logging.getLogger("flwr")


def attack_mod(
    attack: str | Attack[Any],
    *,
    partitions: Sequence[int] | None = None,
    share: float | None = None,
    strength: float | None = None,
    target: Target | None = None,
    weight: float | None = None,
    coalition: int | None = None,
    surrogates: int | Sequence[int] | None = None,
    delay: int | None = None,
    num_examples: int | None = None,
    weighted_by: str = "num-examples",
    seed: int = 0,
) -> Mod:
    """Return a mod that makes some clients of a Flower app attack: ``ClientApp(mods=[...])``.

    It changes the replies to training messages, on the nodes that were started with
    ``--node-config 'role="strategic"'`` and on those of ``partitions`` or ``share``. Floating
    layers are moved, in float64, and sent in their own types, limited to the type's range; other
    layers, metrics and configurations are those of the app's honest reply.

    Parameters
    ----------
    attack : str or Attack
        One of ``cga``, ``sign-flip``, ``gaussian``, ``model-replacement``, ``inner-product``,
        ``little-is-enough``, ``min-max``, ``free-rider``, ``stale``, ``nan``, ``wrong-shape`` and
        ``honest`` (``pfl_flower.interop.table`` says what each does), or an object with ``init``
        and ``update`` as of ``pfl_flower.attacks.attack.Attack``, whose report is
        ``rho - theta`` and which sees the honest report as ``surrogates[0]``.
    partitions : sequence of int, optional
        The partitions that attack.
    share : float, optional
        The share of all partitions that do, drawn by ``seed``.
    strength : float, optional
        How strong, above 0; what is 1, and the default, the table says.
    target : path, mapping or callable, optional
        theta_dagger: a file of weights (``.npz``, or a state dict of ``torch.save``), layers by
        name, or a function from the first global model's layers to the target's.
    weight : float, optional
        The client's weight in the server's mean, more than 0 and at most 1. CGA estimates it if it
        is not given, see ``WeightedCounterGradient``.
    coalition : int, optional
        How many clients report the same: by default as many as attack, 1 where that is not known.
    surrogates : int or sequence of int, optional
        What stands for the other clients' reports: so many more runs of the app's own code, the
        global generators seeded for each (4), or its runs on these partitions instead of its own.
    delay : int, optional
        Rounds, of ``stale``.
    num_examples : int, optional
        What the client claims in place of the number of its examples, from 0: FedAvg weighs by the
        client's own word.
    weighted_by : str
        The metric in which it is claimed.
    seed : int
        Of the attack's draws. The same seed gives the same run, whatever carries the nodes.

    Returns
    -------
    Mod

    Raises
    ------
    ConfigError
        One line about the argument that is wrong; by the mod itself, before it answers, if the
        app's layers or the node's configuration do not fit it.
    """
    arguments = checked_arguments(
        attack,
        partitions=partitions,
        share=share,
        strength=strength,
        target=target,
        weight=weight,
        coalition=coalition,
        surrogates=surrogates,
        delay=delay,
        num_examples=num_examples,
        weighted_by=weighted_by,
        seed=seed,
    )

    def mod(message: Message, context: Context, call_next: Next) -> Message:
        if message.metadata.message_type.split(".")[0] != TRAIN:
            return call_next(message, context)
        if not arguments.attackers.has(context.node_config):
            return call_next(message, context)
        return _Attacker(arguments, message, context, call_next).reply()

    return mod


@dataclass(frozen=True)
class _Attacker:
    """One training message on a node that attacks."""

    arguments: Arguments
    message: Message
    context: Context
    call_next: Next

    def reply(self) -> Message:
        """Return the app's honest reply with the attack's arrays in it."""
        memory = taken(self.context.state)
        try:
            # The app may write into the message and the state: what else is done, starts from here.
            asked = copy.deepcopy((self.message, self.context.state))
            honest = self.call_next(self.message, self.context)
            if honest.has_error():
                return honest
            model, own = matched(asked[0].content, honest.content)
            reports = [own.report, *self._surrogates(*asked, memory)]
            if len(reports) > 1 and all(torch.equal(one, own.report) for one in reports):
                _LOG.warning(SAME, len(reports))
            memory = memory._replace(messages=memory.messages + 1, target=self._target(memory, own))
            node = self.context.node_config
            made = make(self.arguments, own, len(reports), node, memory.target)
            if isinstance(made, Attack):
                forged, memory = self._attacked(made, memory, own, torch.stack(reports))
            else:
                forged = made(own.layers)
            honest.content[model] = packed(forged)
            self._claim(honest.content)
            return honest
        finally:
            put(self.context.state, memory)

    def _attacked(
        self, attack: Attack[Any], memory: Memory, own: Model, reports: Tensor
    ) -> tuple[Mapping[str, Values], Memory]:
        """Return the layers of the attack's report, and what to remember."""
        state, number = attack.init(own.rho), self._round(memory)
        if memory.state is not None:
            state = type(state)(**memory.state)
        seen = Observation(
            round=number,
            rho=own.rho,
            eta=1.0,
            eta_sum=float(number - 1),
            accepted=torch.zeros_like(own.rho) if memory.report is None else memory.report,
            surrogates=reports,
        )
        report, after = attack.update(state, seen)
        if report.shape != own.rho.shape or not bool(report.isfinite().all()):
            right = f"expected {len(own.rho)} finite numbers"
            raise ConfigError(f"attack = {self.arguments.name}: {right}")
        forged, limited = own.layout.layers(own.rho - report, own.layers)
        for name, beyond in limited.items():
            kind = own.layout.dtypes[name]
            says = "attack_mod: %s: %d numbers beyond the range of %s were sent as its largest"
            _LOG.warning(says, one_line(name), beyond, kind)
        # What the server saw, which is what the report became in the layers' own types.
        sent = own.rho - own.layout.vector(forged)
        return forged, memory._replace(report=sent, state=after._asdict())

    def _target(self, memory: Memory, own: Model) -> Tensor | None:
        """Return theta_dagger, made of the first model that came and of no later one."""
        goal = self.arguments.target
        if goal is None or memory.target is not None:
            return memory.target
        return target_vector(goal, own.first, own.layout)

    def _round(self, memory: Memory) -> int:
        """Return the server's number of the round, or the node's own count where it tells none."""
        for record in self.message.content.values():
            number = record.get(ROUND) if isinstance(record, ConfigRecord) else None
            if isinstance(number, int) and not isinstance(number, bool) and number > 0:
                return number
        return memory.messages

    def _surrogates(self, message: Message, state: RecordDict, memory: Memory) -> Iterator[Tensor]:
        """Return reports of the app's own code on other draws, or on other partitions."""
        wanted, node = self.arguments.surrogates, self.context.node_config
        for number in range(wanted) if isinstance(wanted, int) else wanted:
            context = copy.copy(self.context)
            context.state, context.node_config = copy.deepcopy(state), dict(node)
            if not isinstance(wanted, int):
                context.node_config[PARTITION] = number
            words = (number_in(node, PARTITION) or 0, memory.messages, number)
            with undisturbed():
                seed_everything(seed_of(self.arguments.seed, "surrogate", *words))
                reply = self.call_next(copy.deepcopy(message), context)
            if reply.has_error():
                right = (
                    f"expected a model of the app's own code, not {one_line(reply.error.reason)}"
                )
                raise ConfigError(f"surrogates = {number}: {right}")
            yield matched(message.content, reply.content)[1].report

    def _claim(self, content: RecordDict) -> None:
        """Write the number of examples that the client claims."""
        claimed, name = self.arguments.num_examples, self.arguments.weighted_by
        if claimed is None:
            return
        records = [one for one in content.values() if isinstance(one, MetricRecord)]
        having = [record for record in records if name in record]
        if not having:
            raise ConfigError(f"weighted_by = {name}: expected a metric of the app's replies")
        for record in having:
            record[name] = claimed
