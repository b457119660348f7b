"""What extensions may read of a run's configuration, whose class belongs to a room above."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol


class RunSettings(Protocol):
    """A run's settings: keys of its configuration, with ``_`` for ``-``, and what they come to."""

    @property
    def personalization(self) -> Literal["joint", "classical", "ditto", "local"]:
        """What is learned, and whose gradients reports are."""
        ...

    @property
    def seed(self) -> int:
        """Seed of every random draw."""
        ...

    @property
    def users(self) -> int:
        """Number N of users."""
        ...

    @property
    def loss(self) -> str:
        """Name of the loss that the data set's labels are made for; empty if it is not known."""
        ...

    @property
    def synthetic(self) -> bool:
        """Whether the data are made, by models that are known."""
        ...

    @property
    def partition(self) -> str:
        """Who holds which points."""
        ...

    @property
    def partition_options(self) -> str:
        """Options of the partition, JSON."""
        ...

    @property
    def partition_alpha(self) -> float:
        """Concentration of users' shares of a class."""
        ...

    @property
    def partition_min_points(self) -> int:
        """Points that every user is left."""
        ...

    @property
    def partition_classes(self) -> int:
        """Classes of a user."""
        ...

    @property
    def partition_shards(self) -> int:
        """Shards of a user."""
        ...

    @property
    def partition_similarity(self) -> float:
        """Fraction that is dealt evenly."""
        ...

    @property
    def embedded(self) -> bool:
        """Whether images are seen through a network's last layer but one."""
        ...

    @property
    def linear(self) -> bool:
        """Whether the model is linear in its parameters."""
        ...

    @property
    def local_solver(self) -> Literal["exact", "adam", "sgd"]:
        """What a user does in a round."""
        ...

    @property
    def nu(self) -> float:
        """Local regularisation."""
        ...

    @property
    def reduction(self) -> Literal["sum", "mean", "scaled-sum"]:
        """Of the losses of a user's points."""
        ...

    @property
    def equilibrium(self) -> bool:
        """Whether the exact minimiser of LOSS is asked for."""
        ...

    @property
    def attack_model(self) -> str:
        """Where theta_spade comes from: ``exact``, or the folder of a CGA run."""
        ...

    @property
    def attack(self) -> str:
        """What strategic users do."""
        ...

    @property
    def attack_knowledge(self) -> Literal["", "own", "surrogates", "rule", "omniscient"]:
        """What the attacker is given; empty: the attack's own."""
        ...

    @property
    def max_gradient_norm(self) -> float:
        """Limit on a report's norm, 0 for none."""
        ...

    @property
    def estimator(self) -> Literal["inferred", "oracle"]:
        """How CGA knows what the others send."""
        ...

    @property
    def server_optimizer(self) -> Literal["sgd", "adam"]:
        """What moves rho."""
        ...

    @property
    def initialization(self) -> Literal["global", "attack-model"]:
        """Where poisoned users' local models start."""
        ...

    @property
    def poisoning_points(self) -> int:
        """Number of queries."""
        ...

    @property
    def poisoning_queries(self) -> Literal["gaussian", "uniform", "images"]:
        """What is asked."""
        ...

    @property
    def poisoning_noise(self) -> float:
        """Deviation of the noise of queries or answers."""
        ...

    @property
    def poisoning_labels(self) -> Literal["soft", "drawn"]:
        """What labels of indifferent queries are."""
        ...

    @property
    def poisoning_draws(self) -> int:
        """Labels drawn for each query."""
        ...

    @property
    def poisoning_weight(self) -> float:
        """Weight of indifferent queries' labels."""
        ...

    @property
    def poisoning_box(self) -> bool:
        """Whether designed features stay in [0, 1]."""
        ...

    @property
    def poisoning_integer(self) -> bool:
        """Whether labels are whole numbers."""
        ...

    @property
    def poisoning(self) -> str:
        """How data are fabricated."""
        ...

    @property
    def aggregation(self) -> str:
        """The rule."""
        ...

    @property
    def aggregation_options(self) -> str:
        """Options of the rule, JSON."""
        ...

    @property
    def aggregation_mixing(self) -> bool:
        """Whether rows are mixed before the rule."""
        ...

    @property
    def krum_selected(self) -> int:
        """Reports that multi-krum averages; 0: all but f."""
        ...

    @property
    def clipping_radius(self) -> Literal[""] | float:
        """Radius of centred-clipping; empty: its own."""
        ...

    @property
    def aggregation_tolerance(self) -> Literal[""] | int:
        """What f is to be; empty: as many as the run has."""
        ...

    def sample_size(self) -> int:
        """Return the number of users asked in a round."""
        ...

    @property
    def user_column(self) -> str:
        """Column that says whose a row of a table is."""
        ...

    @property
    def test_share(self) -> Literal["auto"] | float:
        """Fraction of a user's points that is kept for its own test set."""
        ...

    def points_asked(self) -> tuple[int, ...]:
        """Return the number of points that each user is to have; empty for all that it has."""
        ...

    def tested_share(self) -> float:
        """Return the fraction of a user's points that is kept for its own test set."""
        ...

    def tolerance(self) -> int:
        """Return f, the number of strategic users to withstand."""
        ...

    def strategic(self) -> frozenset[int]:
        """Return the ids of the strategic users."""
        ...

    def folder(self) -> Path:
        """Return the absolute folder of the run's results."""
        ...
