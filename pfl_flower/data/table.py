"""The data sets by name."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from pfl_flower.support.extensions import Extension, Table
from pfl_flower.support.options import Options

CATALOGUE = "pfl_flower.data.catalogue"


class RegressionOptions(Options):
    """Of users who answer by a linear model of their own."""

    spread: float = Field(0.3, ge=0, description="deviation of the users' models around one")
    noise: float = Field(0.1, ge=0, description="deviation of the noise of answers")


class LogisticOptions(Options):
    """Of users who answer 1 or -1 with the probabilities of a model of their own."""

    spread: float = Field(0.3, ge=0, description="deviation of the users' models around one")


@dataclass(frozen=True, kw_only=True)
class DataExtension(Extension):
    """A data set.

    Attributes
    ----------
    loss : str
        The loss that its labels are made for; empty where only the data tell.
    synthetic : bool
        Whether the data are made, by models that are known.
    embedded : bool
        Whether images are seen through a network's last layer but one.
    """

    loss: str = "softmax"
    synthetic: bool = False
    embedded: bool = False


DATASETS: Table[DataExtension] = Table(
    "dataset",
    {
        "digits": DataExtension(
            factory=f"{CATALOGUE}:digits",
            text="1,797 handwritten digits of 8 x 8, which scikit-learn holds",
            source="Alpaydin, Kaynak 1998",
        ),
        "mnist": DataExtension(
            factory=f"{CATALOGUE}:mnist",
            text="60,000 handwritten digits of 28 x 28",
            source="LeCun et al. 1998",
        ),
        "fashion-mnist": DataExtension(
            factory=f"{CATALOGUE}:fashion_mnist",
            text="60,000 pieces of clothing of 28 x 28",
            source="Xiao et al. 2017",
        ),
        "cifar10": DataExtension(
            factory="pfl_flower.data.embeddings:pixels",
            text="50,000 colour images of 32 x 32, their pixels",
            source="Krizhevsky 2009",
        ),
        "cifar10-embeddings": DataExtension(
            factory="pfl_flower.data.embeddings:embedded",
            text="the same, as the last layer but one of embedding-weights sees them",
            source="Appendix J",
            embedded=True,
        ),
        "imagefolder:PATH": DataExtension(
            factory="pfl_flower.data.embeddings:pixels",
            text="images in folders by class, a folder or a tar; PATH may be relative to data-dir",
        ),
        "imagefolder-embeddings:PATH": DataExtension(
            factory="pfl_flower.data.embeddings:embedded",
            text="the same, as the last layer but one of embedding-weights sees them",
            embedded=True,
        ),
        "synthetic-linear": DataExtension(
            factory=f"{CATALOGUE}:synthetic_linear",
            text="normal queries of features entries, answered by a linear model of each user's",
            source="Theorem 2",
            options=RegressionOptions,
            loss="least-squares",
            synthetic=True,
        ),
        "synthetic-logistic": DataExtension(
            factory=f"{CATALOGUE}:synthetic_logistic",
            text="the same queries, answered 1 or -1 with a logistic model's probabilities",
            source="Theorem 3",
            options=LogisticOptions,
            loss="logistic",
            synthetic=True,
        ),
    },
    own=DataExtension(text="a class or function as package.module:Name", loss=""),
    passed=("spec",),
)
"""From a ``DataSpec`` to a ``Source``."""
