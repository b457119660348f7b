"""The run configuration: every key with its unit, default and meaning, validated first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pfl_flower.aggregation import AGGREGATIONS
from pfl_flower.regularizers import REGULARIZERS
from pfl_flower.rules import rules

Scalar = bool | int | float | str

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]

ATTACK_NAMES = ("cga", "model", "data")
POISONING_NAMES = ("auto", "single-point", "sampling", "indifference", "matching", "repeated")
DATASET = re.compile(
    r"digits|mnist|fashion-mnist|synthetic-(linear|logistic)|cifar10(-embeddings)?"
    r"|imagefolder(-embeddings)?:.+"
)
SYNTHETIC_LOSSES = {"synthetic-linear": "least-squares", "synthetic-logistic": "logistic"}
PLUGIN = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


class ConfigError(ValueError):
    """A configuration that cannot be run: one line with the key, the value and what is right."""


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class RunConfig(BaseModel):
    """One run of personalised federated learning, as Flower's run config carries it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=_kebab, populate_by_name=True, strict=True
    )

    name: str = Field("digits-squared-l2", description="name of the run, and of its folder")
    output_dir: str = Field("", description="absolute folder of the results; empty: ~/pfl-flower")
    seed: int = Field(1, description="seed of every random draw")
    rounds: Count = Field(60, description="rounds of federated gradient descent")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA if there is one")
    dtype: Literal["float32", "float64"] = Field("float64", description="precision of the run")
    save_trajectory: bool = Field(False, description="keep rho of every round in trajectory.npy")

    dataset: str = Field(
        "digits",
        description="digits, mnist, fashion-mnist, cifar10, cifar10-embeddings, "
        "imagefolder:PATH, imagefolder-embeddings:PATH, synthetic-linear or synthetic-logistic",
    )
    data_dir: str = Field("", description="folder of downloaded sets; empty: PFL_DATA_DIR")
    embedding_weights: str = Field(
        "",
        description="weights of the network that embeds images; empty: those of train-vgg",
    )
    features: Count = Field(20, description="dimension of the synthetic sets")
    label_noise: Fraction = Field(0.0, description="fraction of training labels redrawn at random")
    users: Count = Field(11, description="number N of users; their ids are 0 .. N-1")
    points_per_user: str = Field(
        "500", description="points a user draws; a list such as 60000,10 repeats its last entry"
    )

    model: Literal["linear", "two-layer"] = Field("linear", description="model of every user")
    hidden: Count = Field(784, description="hidden units of the two-layer model")
    reduction: Literal["sum", "mean", "scaled-sum"] = Field(
        "sum",
        description="of the losses of a user's points; scaled-sum is the sum divided by the mean "
        "number of points per user (Appendix C)",
    )
    nu: NonNegative = Field(0.001, description="local regularisation nu ||theta||^2")
    regularizer: str = Field(
        "squared-l2", description="squared-l2, l2, smooth-l2, or a class as package.module:Name"
    )
    lam: Positive = Field(1.0, description="strength of the regulariser")

    local_solver: Literal["exact", "adam", "sgd"] = Field(
        "exact", description="exact local optimum, or one optimiser step a round"
    )
    solver_tolerance: Positive = Field(1e-10, description="first-order residual of an exact solve")
    solver_iterations: Count = Field(100, description="most linear systems of one exact solve")
    local_lr: Positive = Field(0.02, description="learning rate of the local step in round 1")
    local_lr_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        0.99, description="factor on the local learning rate each round"
    )
    local_lr_floor: NonNegative = Field(0.005, description="least local learning rate")
    batch_size: Annotated[int, Field(ge=0)] = Field(
        0, description="points of a local step, drawn with replacement; 0: all"
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
    server_lr_floor: NonNegative = Field(0.0, description="least numeric server-lr")
    aggregation: str = Field("sum", description="sum, or a function as package.module:name")
    gradient_rtol: NonNegative = Field(
        1e-6, description="tolerance of GRAD(rho), relative to its radius"
    )
    max_gradient_norm: NonNegative = Field(0.0, description="limit on a report's norm; 0: none")

    strategic_users: str = Field("10", description="ids of strategic users: 3,7-9, all, or none")
    attack: str = Field("cga", description="cga, model, data, or a class as package.module:Name")
    estimator: Literal["inferred", "oracle"] = Field(
        "inferred", description="CGA's estimate: from rho alone (Eq. 5), or given by the server"
    )
    coalition: Annotated[int, Field(ge=0)] = Field(
        0, description="strategic users who share CGA's correction; 0: all of strategic-users"
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
        "auto",
        description="single-point, sampling, indifference, matching, repeated, or a function as "
        "package.module:name; auto: single-point for regression, else matching",
    )
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
    reply_timeout: Positive = Field(600.0, description="seconds to wait for a round's replies")
    evaluate_every: Annotated[int, Field(ge=0)] = Field(
        10, description="rounds between evaluations of the local models; 0: never"
    )
    equilibrium: bool = Field(
        False, description="find the exact minimiser of LOSS after the run (linear models)"
    )

    @field_validator("points_per_user", "strategic_users", "target_shift", mode="before")
    @classmethod
    def _number_as_text(cls, value: object) -> object:
        """Accept a bare number, which is how Flower's command line reads ``strategic-users=3``."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("server_lr", mode="before")
    @classmethod
    def _number_in_text(cls, value: object) -> object:
        if isinstance(value, str) and re.fullmatch(r"[0-9.eE+-]+", value):
            return float(value)
        return value

    @field_validator("dataset")
    @classmethod
    def _known_dataset(cls, value: str) -> str:
        if not DATASET.fullmatch(value):
            raise ValueError(f"expected {cls.model_fields['dataset'].description}")
        return value

    @field_validator("name")
    @classmethod
    def _one_folder(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError("expected letters, digits, '.', '_' and '-' (it names a folder)")
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.points(), self.strategic(), self.shifts()
        _known("regularizer", self.regularizer, tuple(REGULARIZERS))
        _known("aggregation", self.aggregation, tuple(AGGREGATIONS))
        _known("attack", self.attack, ATTACK_NAMES)
        _known("poisoning", self.poisoning, POISONING_NAMES)
        for key, wrong, right in rules(self):
            if wrong:
                raise ValueError(f"{key} = {self.flat()[key]}: expected {right}")
        return self

    @property
    def synthetic(self) -> bool:
        """Whether the data are made, by models that are known."""
        return self.dataset in SYNTHETIC_LOSSES

    @property
    def embedded(self) -> bool:
        """Whether images are seen through a network's last layer but one."""
        return self.dataset.split(":")[0].endswith("-embeddings")

    @property
    def simultaneous(self) -> bool:
        """Whether users report from the model before its update (the paper's experiments)."""
        return self.update_order == "simultaneous"

    @property
    def inverts_adam(self) -> bool:
        """Whether CGA is asked to infer gradients that Adam's step does not reveal."""
        attacked = self.attack == "cga" and bool(self.strategic())
        return attacked and self.estimator == "inferred" and self.server_optimizer == "adam"

    @property
    def loss(self) -> str:
        """The loss that the dataset's labels are made for."""
        return SYNTHETIC_LOSSES.get(self.dataset, "softmax")

    def points(self) -> tuple[int, ...]:
        """Return the number of points of each user, in the order of their ids."""
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", self.points_per_user):
            raise ValueError(
                f"points-per-user = {self.points_per_user}: expected sizes such as 60000,10"
            )
        given = [int(size) for size in self.points_per_user.split(",")][: self.users]
        return tuple(given + given[-1:] * (self.users - len(given)))

    def strategic(self) -> frozenset[int]:
        """Return the ids of the users that the run makes strategic."""
        text = self.strategic_users.replace(" ", "")
        if text in ("", "none"):
            return frozenset()
        if text == "all":
            return frozenset(range(self.users))
        if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
            raise ValueError(f"strategic-users = {text}: expected ids such as 3,7-9, all, or none")
        chosen: set[int] = set()
        for part in text.split(","):
            first, _, last = part.partition("-")
            chosen.update(range(int(first), int(last or first) + 1))
        if max(chosen, default=0) >= self.users:
            raise ValueError(f"strategic-users = {text}: expected ids 0 to {self.users - 1}")
        return frozenset(chosen)

    def shifts(self) -> tuple[int, ...]:
        """Return what each strategic user's target adds to a class, in the order of their ids."""
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", self.target_shift):
            raise ValueError(f"target-shift = {self.target_shift}: expected shifts such as 1,2")
        given = [int(shift) for shift in self.target_shift.split(",")]
        count = max(1, len(self.strategic()))
        return tuple(given[:count] + given[-1:] * (count - len(given)))

    def shift(self, user: int) -> int:
        """Return the shift of a strategic user's target; the first for one the run knows not."""
        chosen = sorted(self.strategic())
        return self.shifts()[chosen.index(user) if user in chosen else 0]

    def allies(self, user: int) -> int:
        """Return how many strategic users share this one's target, itself included."""
        same = [other for other in self.strategic() if self.shift(other) == self.shift(user)]
        return max(1, len(same))

    def folder(self) -> Path:
        """Return the absolute folder of the run's results."""
        base = Path(self.output_dir).expanduser() if self.output_dir else Path.home() / "pfl-flower"
        return base.absolute() / self.name

    def flat(self) -> dict[str, Scalar]:
        """Return all keys and values as Flower's run config spells them."""
        return self.model_dump(by_alias=True)


def _known(key: str, value: str, names: tuple[str, ...]) -> None:
    if value not in names and not PLUGIN.match(value):
        raise ValueError(f"{key} = {value}: expected {', '.join(names)} or package.module:Name")


def parse_config(values: Mapping[str, Any]) -> RunConfig:
    """Return the validated configuration of keys spelled as in Flower's run config.

    Raises
    ------
    ConfigError
        One line for the first fault: an unknown key, an ill-typed value, an impossible combination.
    """
    try:
        return RunConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_one_line(error, values)) from None


def _one_line(error: ValidationError, values: Mapping[str, Any]) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return str(first["ctx"]["error"])
    key = _kebab(str(first["loc"][0]))
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(_kebab(name) for name in RunConfig.model_fields))
        return f"{key} = {values.get(key)!r}: unknown key; the keys are {known}"
    if key == "server-lr":
        return f"{key} = {values.get(key)!r}: expected auto or a positive number"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{key} = {values.get(key)!r}: expected {message.removeprefix('expected ')}"
