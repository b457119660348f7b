"""What one message costs a node of a site, whose ClientApp is a fresh process for each.

``python -m experiments.benchmark.message_cost ROLE ROUND FOLDER`` is such a process: it answers a
round's broadcast with the state that round 1 has left in the folder, as Flower keeps it, and prints
one line of JSON, seconds of processor time. ``experiments.benchmark.worker`` would have imported
half of it before.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from itertools import pairwise
from pathlib import Path

PROCESS = "flwr.supernode.runtime.run_clientapp"
"""What Flower itself imports in the process that answers a message."""
USERS = {"honest": 0, "strategic": 2}
SETTINGS: dict[str, int | str] = {
    "users": 3,
    "strategic-users": "2",
    "points-per-user": "30",
    "site": True,
}
"""The digits, one user a node, as the deployment's README runs them."""
DIM = 65 * 10


def measure(role: str, round: int, folder: Path) -> dict[str, float]:
    """Answer a broadcast and return what was spent on whose imports, and on the answer."""
    spent = [time.process_time()]
    for name in ("torch", PROCESS, "pfl_flower.client_app"):
        import_module(name)
        spent.append(time.process_time())
    flowers = import_module(PROCESS)
    from flwr.app import Context, Message, MessageType, RecordDict
    from torch import float64, zeros

    from pfl_flower.client_app import app
    from pfl_flower.support.files import replacing
    from pfl_flower.transport.broadcasts import Broadcast, pack_broadcasts
    from pfl_flower.transport.flower_internals import identify_process, number
    from pfl_flower.transport.nonces import failure_in

    identify_process(1)
    told = Broadcast(
        round=round,
        users=(USERS[role],),
        last_accepted=(round - 1,),
        rho=zeros(DIM, dtype=float64),
        eta=0.1,
        eta_sum=0.1 * (round - 1),
    )
    (content,) = pack_broadcasts([told])
    question = number(Message(content, 7, MessageType.TRAIN), "message")
    context = Context(
        run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config=dict(SETTINGS)
    )
    kept, form = folder / "context", type(flowers.context_to_proto(context))
    if round > 1:
        context = flowers.context_from_proto(form.FromString(kept.read_bytes()))
    began = time.process_time()
    reply = app(question, context)
    answered = time.process_time() - began
    if (why := failure_in(reply.content)) is not None:
        raise RuntimeError(why)
    with replacing(kept) as file:
        file.write(flowers.context_to_proto(context).SerializeToString())
    torch, flower, ours = (later - earlier for earlier, later in pairwise(spent))
    return {"torch": torch, "flower": flower, "imports": ours, "answer": answered}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))))
