"""What can be typed after ``train-vgg``."""

from __future__ import annotations

from typing import Any

EPOCHS = {"cuda": 60, "cpu": 5}
"""Without ``--epochs``: a full schedule, and a reduced one where a full one would take a day."""


def add_train_vgg(commands: Any) -> None:
    """Add ``train-vgg`` to the command line's subparsers."""
    command = commands.add_parser("train-vgg", help="train the network of Appendix J's embeddings")
    command.add_argument("--dataset", default="cifar10", help="cifar10 or imagefolder:PATH")
    command.add_argument("--data-dir", default="", metavar="DIR", help="default: PFL_DATA_DIR")
    command.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help=f"default: {EPOCHS['cuda']}, on a CPU {EPOCHS['cpu']}",
    )
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--output", metavar="FILE", help="the weights; default: in the cache")
    command.add_argument("--batch-size", type=int, default=128, metavar="N")
    command.add_argument("--lr", type=float, default=0.05, help="peak step size")
    command.add_argument("--label-smoothing", type=float, default=0.0, metavar="S")
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--images", type=int, default=0, metavar="N", help="use only N images")
    command.add_argument("--fresh", action="store_true", help="start over, replace what is there")
