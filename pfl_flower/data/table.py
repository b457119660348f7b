"""The data sets and the partitions by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from pfl_flower.support.extensions import Extension, Refusal, Table
from pfl_flower.support.options import Options
from pfl_flower.support.run_settings import RunSettings

CATALOGUE = "pfl_flower.data.catalogue"
OWN = "pfl_flower.data.own"
PARTITION = "pfl_flower.data.partitions"
FILES = ("data-dir",)
EMBEDDED = ("data-dir", "embedding-weights")


class RegressionOptions(Options):
    """Of users who answer by a linear model of their own."""

    spread: float = Field(0.3, ge=0, description="deviation of the users' models around one")
    tests: int = Field(0, ge=0, description="points of a user's own test set")
    noise: float = Field(0.1, ge=0, description="deviation of the noise of answers")


class LogisticOptions(Options):
    """Of users who answer 1 or -1 with the probabilities of a model of their own."""

    spread: float = Field(0.3, ge=0, description="deviation of the users' models around one")
    tests: int = Field(0, ge=0, description="points of a user's own test set")


TOLD = "columns"
"""The key by which a machine without the points knows what they are."""
OWN_KEYS = ("task", "holdout", "standardise", TOLD, "classes")
TABLE_KEYS = ("label-column", "user-column", *OWN_KEYS)


class CsvOptions(Options):
    """Of a CSV file."""

    delimiter: str = Field(",", min_length=1, max_length=1, description="between two cells")


class HubOptions(Options):
    """Of a data set that comes in several."""

    config: str = Field("", description="which of the data set's configurations")


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
    path : {"data", "file", "name"}
        What a PATH is: a place in the data folder; a file or folder of one's own, which may be in
        the current folder too; or a name elsewhere, unless a folder has it.
    """

    loss: str = "softmax"
    synthetic: bool = False
    embedded: bool = False
    path: Literal["data", "file", "name"] = "data"


def admits_owners(settings: RunSettings) -> Refusal | None:
    """Refuse a column of users in a run that does not ask whose a point is."""
    if settings.user_column and settings.partition != "natural":
        return Refusal("user-column", "empty, unless partition = natural, which reads it")
    return None


def _own(
    place: str,
    text: str,
    *,
    keys: tuple[str, ...] = TABLE_KEYS,
    path: Literal["data", "file", "name"] = "file",
    **more: Any,
) -> DataExtension:
    return DataExtension(
        factory=f"{OWN}.{place}",
        text=text,
        loss="",
        reads=(*keys, "test-data", *FILES),
        admits=admits_owners,
        path=path,
        **more,
    )


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
            reads=FILES,
        ),
        "fashion-mnist": DataExtension(
            factory=f"{CATALOGUE}:fashion_mnist",
            text="60,000 pieces of clothing of 28 x 28",
            source="Xiao et al. 2017",
            reads=FILES,
        ),
        "cifar10": DataExtension(
            factory="pfl_flower.data.embeddings:pixels",
            text="50,000 colour images of 32 x 32, their pixels",
            source="Krizhevsky 2009",
            reads=FILES,
        ),
        "cifar10-embeddings": DataExtension(
            factory="pfl_flower.data.embeddings:embedded",
            text="the same, as the last layer but one of embedding-weights sees them",
            source="Appendix J",
            embedded=True,
            reads=EMBEDDED,
        ),
        "imagefolder:PATH": DataExtension(
            factory="pfl_flower.data.embeddings:pixels",
            text="images in folders by class, a folder or a tar; PATH may be relative to data-dir",
            reads=FILES,
        ),
        "imagefolder-embeddings:PATH": DataExtension(
            factory="pfl_flower.data.embeddings:embedded",
            text="the same, as the last layer but one of embedding-weights sees them",
            embedded=True,
            reads=EMBEDDED,
        ),
        "csv:PATH": _own(
            "tables:csv",
            "a table of one's own, columns named in its first line",
            options=CsvOptions,
        ),
        "parquet:PATH": _own("tables:parquet", "the same in a Parquet file, or a folder of them"),
        "json:PATH": _own("tables:json", "the same as a list of objects, or one a line (.jsonl)"),
        "npz:PATH": _own(
            "arrays:npz",
            "arrays features and labels, perhaps users, test_features and test_labels",
            keys=OWN_KEYS,
        ),
        "leaf:PATH": _own(
            "leaf:leaf",
            "users with their points in LEAF's JSON, a file or a folder",
            keys=OWN_KEYS,
            source="Caldas et al. 2018",
        ),
        "hf:PATH": _own(
            "hub:hugging_face",
            "a data set of Hugging Face by its name, or in a folder that it was saved to",
            path="name",
            options=HubOptions,
        ),
        "synthetic-linear": DataExtension(
            factory=f"{CATALOGUE}:synthetic_linear",
            text="normal queries of features entries, answered by a linear model of each user's",
            source="Theorem 2",
            options=RegressionOptions,
            loss="least-squares",
            synthetic=True,
            reads=("features",),
        ),
        "synthetic-logistic": DataExtension(
            factory=f"{CATALOGUE}:synthetic_logistic",
            text="the same queries, answered 1 or -1 with a logistic model's probabilities",
            source="Theorem 3",
            options=LogisticOptions,
            loss="logistic",
            synthetic=True,
            reads=("features",),
        ),
    },
    own=DataExtension(
        text="a class or function as package.module:Name",
        loss="",
        reads=(*TABLE_KEYS, "features", *EMBEDDED),
    ),
    passed=("spec",),
)
"""From a ``DataSpec`` to a ``Source``."""


@dataclass(frozen=True, kw_only=True)
class PartitionExtension(Extension):
    """A partition.

    Attributes
    ----------
    by_class : bool
        Whether it deals points by their classes, which regression has none of.
    apart : bool
        Whether a machine can tell what its users have without the others' points.
    shared : bool
        Whether a point may be several users'.
    by_owner : bool
        Whether user n is the n-th of those whom the data name.
    """

    by_class: bool = False
    apart: bool = False
    shared: bool = False
    by_owner: bool = False


def admits_stored(settings: RunSettings) -> Refusal | None:
    """Refuse data that are made for whoever asks: there is nothing to be dealt."""
    if settings.synthetic:
        apart = 'for synthetic data, whose users differ by dataset-options such as {"spread": 1.0}'
        return Refusal("partition", apart)
    return None


def _dealt(
    factory: str, text: str, source: str, *reads: str, by_class: bool = True, by_owner: bool = False
) -> PartitionExtension:
    return PartitionExtension(
        factory=f"{PARTITION}:{factory}",
        text=text,
        source=source,
        reads=(*reads, "test-share"),
        admits=admits_stored,
        by_class=by_class,
        by_owner=by_owner,
    )


PARTITIONS: Table[PartitionExtension] = Table(
    "partition",
    {
        "draws": PartitionExtension(
            factory=f"{PARTITION}:draws",
            text="every user draws from all points, independently of the others",
            source="the paper",
            apart=True,
        ),
        "dirichlet": _dealt(
            "dirichlet",
            "users' shares of each class are drawn from Dirichlet(partition-alpha)",
            "Yurochkin et al. 2019",
            "partition-alpha",
            "partition-min-points",
        ),
        "classes": _dealt(
            "classes",
            "a user has points of partition-classes classes, the first of which is id mod classes",
            "Li et al. 2022",
            "partition-classes",
        ),
        "shards": _dealt(
            "shards",
            "sorted by class, cut in equal shards, and partition-shards of them to a user",
            "McMahan et al. 2017",
            "partition-shards",
        ),
        "natural": _dealt(
            "natural",
            "the data say whose a point is: user n is the n-th",
            "",
            by_class=False,
            by_owner=True,
        ),
        "similarity": _dealt(
            "similarity",
            "a fraction partition-similarity is dealt evenly, the rest sorted by class",
            "Karimireddy et al. 2020",
            "partition-similarity",
        ),
        "whole": PartitionExtension(
            factory=f"{PARTITION}:whole",
            text="a user has all points that its machine reads, which may have a file of its own",
            reads=("test-share",),
            admits=admits_stored,
            apart=True,
            shared=True,
        ),
    },
    own=PartitionExtension(
        text="a function as package.module:name", reads=("test-share",), admits=admits_stored
    ),
    passed=("pool",),
)
"""From a ``Pool`` of points to the numbers of those that fall to each user."""
