"""The server: averages, and looks at held out tumours after every round."""

import json
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from sklearn.metrics import accuracy_score, recall_score

from sgd_tabular.task import MALIGNANT, classifier, parameters, set_parameters, test_points

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds and print, or write, how well tumours are told apart."""
    config = context.run_config
    seed = int(config["seed"])
    model = classifier(float(config["learning-rate"]), seed)
    features, labels = test_points(seed)
    seen: dict[str, list[float]] = {"accuracy": [], "malignant found": []}

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        set_parameters(model, arrays.to_numpy_ndarrays())
        said = model.predict(features)
        seen["accuracy"].append(accuracy_score(labels, said))
        seen["malignant found"].append(recall_score(labels, said, pos_label=MALIGNANT))
        return MetricRecord({name: float(values[-1]) for name, values in seen.items()})

    strategy = FedAvg(fraction_evaluate=0.0)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(parameters(model)),
        num_rounds=int(config["num-server-rounds"]),
        evaluate_fn=evaluate,
    )
    for name, values in seen.items():
        print(f"{name} by round:", " ".join(f"{one:.3f}" for one in values))
    if config["output"]:
        metrics = [dict(one) for one in result.train_metrics_clientapp.values()]
        last = {name: array.numpy().tolist() for name, array in result.arrays.items()}
        written = {**seen, "metrics": metrics, "model": last}
        Path(str(config["output"])).write_text(json.dumps(written))
