"""The keys of a run configuration: type, default, and the meaning that ``README.md`` repeats."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.attacks.knowledge import Knowledge
from pfl_flower.attacks.poisoning.table import POISONINGS
from pfl_flower.attacks.table import ATTACKS
from pfl_flower.data.table import DATASETS, PARTITIONS
from pfl_flower.objective.table import MODELS, REGULARIZERS
from pfl_flower.run.personalization import DESCRIBED, Personalization
from pfl_flower.run.tracking.table import TRACKERS
from pfl_flower.support.extensions import Table
from pfl_flower.support.options import EXAMPLE

Scalar = bool | int | float | str
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
IMAGE = r"^[1-9]\d{0,5}x[1-9]\d{0,5}x[1-9]\d{0,5}$"
"""Channels, height and width of an image."""
Empty = Literal[""]
"""Where 0 is a value like any other, nothing stands for the default."""


def kebab(name: str) -> str:
    """Return a field's name as Flower's run config spells it.

    >>> kebab("points_per_user")
    'points-per-user'
    """
    return name.replace("_", "-")


def options_of(table: Table[Any]) -> Any:
    """Return the field of a table's ``POINT-options``."""
    return Field("", description=f"options of {table.point}, JSON such as {EXAMPLE}")


def read_by(table: Table[Any], key: str) -> str:
    """Return the names of the members for which a key has a meaning."""
    return ", ".join(table.readers(key))


class Keys(BaseModel):
    """Every key; what combinations mean and which are wrong is ``config.RunConfig``'s matter."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=kebab, populate_by_name=True, strict=True
    )

    name: str = Field("digits-squared-l2", description="name of the run, and of its folder")
    output_dir: str = Field("", description="absolute folder of the results; empty: ~/pfl-flower")
    seed: int = Field(1, description="seed of every random draw")
    rounds: Count = Field(60, description="rounds of federated gradient descent")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA if there is one")
    dtype: Literal["float32", "float64"] = Field("float64", description="precision of the run")
    save_trajectory: bool = Field(False, description="keep rho of every round in trajectory.npy")
    checkpoint_every: Annotated[int, Field(ge=0)] = Field(
        0, description="rounds between checkpoints of the server; clients keep every round; 0: none"
    )
    resume: str = Field(
        "",
        description="go on from a checkpoint: its file, its run's folder, or auto, this run's own "
        "if there is one; empty: start afresh",
    )
    state_dir: str = Field(
        "",
        description="folder of the clients' memory, which a node's own state-dir overrules; "
        "empty: in the folder of the run",
    )

    dataset: str = Field("digits", description=DATASETS.described)
    dataset_options: str = options_of(DATASETS)
    data_dir: str = Field("", description="folder of downloaded sets; empty: PFL_DATA_DIR")
    embedding_weights: str = Field(
        "",
        description="weights of the network that embeds images; empty: those of train-vgg",
    )
    features: Count = Field(20, description="dimension of the synthetic sets")
    label_column: str = Field("label", description="column of a table's labels")
    user_column: str = Field(
        "", description="column that says whose a row of a table is, for partition = natural"
    )
    task: Literal["auto", "classification", "regression"] = Field(
        "auto",
        description="what labels of one's own data are; auto: whole numbers and text are classes",
    )
    standardise: str = Field(
        "off",
        description="columns of one's own data: off; training, by mean and deviation of all "
        'training points; or a JSON file {"mean": [...], "scale": [...]}, relative to data-dir',
    )
    holdout: Literal["auto"] | Annotated[float, Field(ge=0, lt=1)] = Field(
        "auto",
        description="fraction of one's own points that becomes the common test set, where they "
        "come without one; auto: 0 for whole and with test-data, else 0.2",
    )
    test_data: str = Field(
        "",
        description="PATH of the common test set, a file of dataset's kind, which at a site the "
        "server alone reads; empty: theirs, or by holdout",
    )
    columns: Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=IMAGE)] = Field(
        0,
        description="features of one's own data, or an image's shape such as 3x32x32, for machines "
        "without them; 0: as found",
    )
    classes: Annotated[int, Field(ge=0)] = Field(
        0, description="classes of one's own data, for machines without them; 0: as found"
    )
    label_noise: Fraction = Field(0.0, description="fraction of training labels redrawn at random")
    users: Count = Field(11, description="number N of users; their ids are 0 .. N-1")
    points_per_user: str = Field(
        "",
        description="training points of a user; a list such as 60000,10 repeats its last entry; "
        "empty: 500 draws, or all that a partition gives, of which a number is a subsample",
    )
    partition: str = Field("draws", description=f"who holds which points: {PARTITIONS.described}")
    partition_options: str = options_of(PARTITIONS)
    partition_alpha: Positive = Field(
        0.5, description="concentration of dirichlet: users are alike where it is large"
    )
    partition_min_points: Count = Field(
        2, description="points that dirichlet leaves every user, in 11 tries at most"
    )
    partition_classes: Count = Field(2, description="classes of a user, in partition = classes")
    partition_shards: Count = Field(2, description="shards of a user, in partition = shards")
    partition_similarity: Fraction = Field(
        0.5, description="fraction that partition = similarity deals evenly"
    )
    test_share: Literal["auto"] | Annotated[float, Field(ge=0, lt=1)] = Field(
        "auto",
        description="fraction of a user's points that is kept for a test set of its own; "
        "auto: 0 for draws, else 0.2",
    )

    participation: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="fraction of the users asked in a round, to a whole number of them, drawn "
        "anew each round",
    )
    participation_rescale: bool = Field(
        False, description="multiply the sum of a sample's reports by N / users asked"
    )
    chunk_users: Annotated[int, Field(ge=0)] = Field(
        0,
        description="honest users whose data a node holds at a time, drawn anew each round; "
        "0: all, drawn once",
    )

    model: str = Field("linear", description=f"model of every user: {MODELS.described}")
    model_options: str = options_of(MODELS)
    model_frozen: str = Field(
        "",
        description="parameters or layers of a torch module, such as 0,features, that stay as they "
        "start and are not shared (Section 4.2)",
    )
    model_weights: str = Field(
        "", description="file of a torch module's state_dict at which all models start"
    )
    hidden: Count = Field(784, description=f"hidden units, of model {read_by(MODELS, 'hidden')}")
    reduction: Literal["sum", "mean", "scaled-sum"] = Field(
        "sum",
        description="of the losses of a user's points; scaled-sum is the sum divided by the mean "
        "number of points per user (Appendix C)",
    )
    nu: NonNegative = Field(0.001, description="local regularisation nu ||theta||^2")
    regularizer: str = Field("squared-l2", description=REGULARIZERS.described)
    regularizer_options: str = options_of(REGULARIZERS)
    lam: Positive = Field(1.0, description="strength of the regulariser")
    personalization: Personalization = Field("joint", description=DESCRIBED)

    local_solver: Literal["exact", "adam", "sgd"] = Field(
        "exact", description="exact local optimum, or local-steps optimiser steps a round"
    )
    local_steps: Count = Field(1, description="optimiser steps of a user in a round")
    solver_tolerance: Positive = Field(1e-10, description="first-order residual of an exact solve")
    solver_iterations: Count = Field(100, description="most linear systems of one exact solve")
    local_lr: Positive = Field(0.02, description="learning rate of the local steps in round 1")
    local_lr_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        0.99, description="factor on the local learning rate each round"
    )
    local_lr_floor: Empty | NonNegative = Field(
        "",
        description="what the decay stops at, at most local-lr; empty: 0.005, or local-lr where "
        "that is less",
    )
    batch_size: Annotated[int, Field(ge=0)] = Field(
        0, description="points of a local step, drawn anew with replacement; 0: all"
    )
    update_order: Literal["local-first", "simultaneous"] = Field(
        "local-first", description="report after the local update, or from the model before it"
    )

    server_optimizer: Literal["sgd", "adam"] = Field("sgd", description="what moves rho")
    server_lr: Literal["auto"] | Positive = Field(
        "auto", description="eta in round 1; auto: 1/(3L), decaying for l2 (Theorem 4)"
    )
    server_lr_factor: Positive = Field(1.0, description="factor on server-lr")
    server_lr_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="factor on a numeric server-lr each round"
    )
    server_lr_floor: NonNegative = Field(
        0.0, description="what the decay stops at, at most server-lr times its factor"
    )
    aggregation: str = Field("sum", description=AGGREGATIONS.described)
    aggregation_options: str = options_of(AGGREGATIONS)
    aggregation_mixing: bool = Field(
        False, description="mix each report with its nearest neighbours before the aggregation"
    )
    aggregation_tolerance: Empty | Annotated[int, Field(ge=0)] = Field(
        "",
        description="f, the number of strategic users that an aggregation withstands among those "
        "asked in a round; empty: as many as the run has, at least 1",
    )
    krum_selected: Annotated[int, Field(ge=0)] = Field(
        0,
        description=f"reports averaged by {read_by(AGGREGATIONS, 'krum-selected')}; 0: all but f",
    )
    clipping_radius: Empty | NonNegative = Field(
        "",
        description=f"radius of {read_by(AGGREGATIONS, 'clipping-radius')}; empty: the median "
        "distance to the middle report",
    )
    gradient_rtol: NonNegative = Field(
        1e-6,
        description="tolerance of GRAD(rho), relative to its radius; what rounding takes is "
        "allowed besides",
    )
    max_gradient_norm: NonNegative = Field(
        0.0,
        description="limit on a report's norm, all that there is where reports are gradients of "
        "L_n; 0: none",
    )

    strategic_users: str = Field("10", description="ids of strategic users: 3,7-9, all, or none")
    attack: str = Field("cga", description=ATTACKS.described)
    attack_options: str = options_of(ATTACKS)
    attack_strength: Empty | Number = Field(
        "",
        description=f"factor of {read_by(ATTACKS, 'attack-strength')}, of either sign; empty: the "
        "attack's own",
    )
    attack_draws: Annotated[int, Field(ge=2)] = Field(
        5,
        description=f"datasets that {read_by(ATTACKS, 'attack-draws')} draw to guess the honest "
        "reports",
    )
    attack_knowledge: Empty | Knowledge = Field(
        "",
        description="what the attacker is given: own (rho and its data), surrogates (draws of its "
        "own), rule (the server's as well), omniscient (this round's honest reports as well; not "
        "at a site); empty: the attack's own",
    )
    estimator: Literal["inferred", "oracle"] = Field(
        "inferred", description="CGA's estimate: from rho alone (Eq. 5), or given by the server"
    )
    coalition: Annotated[int, Field(ge=0)] = Field(
        0,
        description="strategic users who share CGA's correction, at most all; 0: all of "
        "strategic-users",
    )
    target: Literal["auto", "relabel", "negate"] = Field(
        "auto",
        description="theta_dagger: relabel learns it on labels + 1 (images), "
        "negate is minus the users' common model (synthetic)",
    )
    target_shift: str = Field(
        "1",
        description="what relabel adds to a class; a list such as 1,2 gives the strategic users "
        "competing targets and repeats its last entry",
    )
    attack_model: str = Field(
        "exact",
        description="theta_spade of model and data attacks: exact, from the honest users' exact "
        "responses, or the folder of a CGA run, from its last gradient",
    )
    poisoning: str = Field(
        "auto", description=f"{POISONINGS.described}; auto: {POISONINGS['auto'].text}"
    )
    poisoning_options: str = options_of(POISONINGS)
    poisoning_points: Count = Field(2000, description="queries of sampling and indifference")
    poisoning_queries: Literal["gaussian", "uniform", "images"] = Field(
        "gaussian", description="what is asked: random queries, in [0, 1], or training images"
    )
    poisoning_noise: NonNegative = Field(
        0.01, description="deviation of indifference's noise, and of regression's answers"
    )
    poisoning_labels: Literal["soft", "drawn"] = Field(
        "soft", description="indifference's labels: probabilities, or drawn from them"
    )
    poisoning_draws: Count = Field(1, description="labels drawn for each query")
    poisoning_weight: Positive = Field(1.0, description="alpha, weight of indifference's labels")
    poisoning_box: bool = Field(False, description="keep designed features within [0, 1]")
    poisoning_integer: bool = Field(False, description="whole numbers of labels in matching")
    initialization: Literal["global", "attack-model"] = Field(
        "global", description="poisoned users' local models start at rho_0, or at theta_spade"
    )
    initialization_noise: NonNegative = Field(
        0.0, description="deviation of the noise on all local models' starts (Appendix I.3)"
    )

    min_nodes: Count = Field(1, description="nodes to wait for before the first round")
    node_timeout: Positive = Field(60.0, description="seconds to wait for the nodes")
    introduction_timeout: Positive = Field(
        120.0,
        description="seconds for nodes to say who they are, once min-nodes have; who takes longer "
        "is asked again between rounds",
    )
    reply_timeout: Positive = Field(600.0, description="seconds to wait for a round's replies")
    site: bool = Field(
        False,
        description="set by the deployment's scripts: nodes belong to strangers, and what they say "
        "of themselves decides no check",
    )
    tracker: str = Field(
        "none", description=f"who is told of every round, besides rounds.csv: {TRACKERS.described}"
    )
    tracker_options: str = options_of(TRACKERS)
    evaluate_every: Annotated[int, Field(ge=0)] = Field(
        10, description="rounds between evaluations of the local models; 0: never"
    )
    honest_distance: bool = Field(
        False, description="measure rho's distance to a classifier of the true labels (images)"
    )
    equilibrium: bool = Field(
        False,
        description="find where the run leads in the end: the exact minimiser of LOSS (linear "
        "models under the plain sum; what else moves the limit is refused)",
    )
