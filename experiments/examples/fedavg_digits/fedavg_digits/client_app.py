"""The client: trains on its own digits."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedavg_digits.choices import attack
from fedavg_digits.task import network, partition, train

# With one attack: mods=[pfl.attack_mod("sign-flip", strength=2.0, partitions=[3])].
app = ClientApp(mods=[attack])


@app.train()
def train_on_own_digits(message: Message, context: Context) -> Message:
    """Return the model after some epochs on the client's own digits."""
    config, node = context.run_config, context.node_config
    number, count = int(node["partition-id"]), int(node["num-partitions"])
    seed = int(config["seed"])
    model = network(seed)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    points = partition(number, count, float(config["alpha"]), seed)
    loss = train(
        model,
        points,
        epochs=int(config["local-epochs"]),
        rate=float(config["learning-rate"]),
        seed=hash((seed, number, int(message.content["config"]["server-round"]))),
    )
    metrics = MetricRecord({"num-examples": len(points), "train-loss": loss})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)
