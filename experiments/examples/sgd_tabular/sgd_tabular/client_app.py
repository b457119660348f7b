"""The client: trains on its own hospital's tumours."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.metrics import log_loss

from sgd_tabular.task import classifier, parameters, partition, set_parameters

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Return the classifier after some epochs on the hospital's own tumours."""
    config, node = context.run_config, context.node_config
    number, count = int(node["partition-id"]), int(node["num-partitions"])
    features, labels = partition(number, count, int(config["seed"]))
    server_round = int(message.content["config"]["server-round"])
    model = classifier(float(config["learning-rate"]), 1000 * server_round + number)
    set_parameters(model, message.content["arrays"].to_numpy_ndarrays())
    for _ in range(int(config["local-epochs"])):
        model.partial_fit(features, labels)
    loss = log_loss(labels, model.predict_proba(features), labels=model.classes_)
    metrics = MetricRecord({"num-examples": len(labels), "train-loss": float(loss)})
    content = RecordDict({"arrays": ArrayRecord(parameters(model)), "metrics": metrics})
    return Message(content, reply_to=message)
