"""The server: averages, and reads held out digits after every round."""

from __future__ import annotations

import json
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from fedavg_digits.choices import strategy
from fedavg_digits.task import accuracy, network, test_points

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds and print, or write, the accuracies."""
    config = context.run_config
    model = network(int(config["seed"]))
    images, labels = test_points()
    accuracies: list[float] = []
    misread: list[float] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        accuracies.append(accuracy(model, images, labels))
        misread.append(accuracy(model, images, (labels + 1) % 10))
        return MetricRecord({"accuracy": accuracies[-1]})

    # With one strategy: pfl.Checked(FedAvg(...), max_norm=10.0), or pfl.RobustFedAvg("median").
    result = strategy(config).start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=int(config["num-server-rounds"]),
        evaluate_fn=evaluate,
    )
    print("accuracy by round:", " ".join(f"{one:.3f}" for one in accuracies))
    print("read as the next digit:", " ".join(f"{one:.3f}" for one in misread))
    if config["output"]:
        taken_out = [
            int(one.get("taken-out", 0)) for one in result.train_metrics_clientapp.values()
        ]
        written = {"accuracy": accuracies, "read as the next": misread, "taken out": taken_out}
        Path(str(config["output"])).write_text(json.dumps(written))
