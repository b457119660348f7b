"""What cannot be had where the users' points lie on nodes alone, each of which has its own."""

from __future__ import annotations

from collections.abc import Iterator

from pfl_flower.aggregation.table import AGGREGATIONS
from pfl_flower.attacks.table import ATTACKS
from pfl_flower.data.table import DATASETS, PARTITIONS, TOLD
from pfl_flower.run.settings import Settings
from pfl_flower.support.extensions import Refusal


def site_refusals(config: Settings) -> Iterator[Refusal]:
    """Yield the keys that ask for what no machine has, or leave open what all must agree on."""
    yield from _sizes(config)
    if PARTITIONS.row(config.partition).shared or config.away:
        yield from _together(config)
    trained = config.standardise == "training"
    if trained and (config.site or PARTITIONS.row(config.partition).shared):
        yield Refusal(
            "standardise",
            "off, or a file of means and scales, where nodes read files of their own: each would "
            "scale by other points",
        )


def _sizes(config: Settings) -> Iterator[Refusal]:
    """Yield what of features and classes is not told, or told twice."""
    regression = config.task == "regression"
    if config.classes and regression:
        yield Refusal("classes", "0, for task = regression")
    if config.classes == 1:
        yield Refusal("classes", "at least 2; 0: as found")
    if not config.site or TOLD not in DATASETS.row(config.dataset).reads:
        return
    row = PARTITIONS.row(config.partition)
    if row.shared and not config.columns:
        yield Refusal(
            TOLD, f"the number of features, at a site with partition = {config.partition}"
        )
    if config.away and not config.classes and not regression:
        yield Refusal(
            "classes",
            "their number, or task = regression, at a site whose server reads no user's points",
        )


def _together(config: Settings) -> Iterator[Refusal]:
    """Yield what takes all users' points on one machine."""
    where = "where no machine has all users' points"
    if config.equilibrium:
        yield Refusal("equilibrium", f"false, {where}")
    if config.reduction == "scaled-sum" and PARTITIONS.row(config.partition).shared:
        yield Refusal("reduction", f"sum or mean, {where}")
    if config.honest_distance:
        yield Refusal("honest-distance", f"false, {where}")
    if AGGREGATIONS.row(config.aggregation).root:
        yield Refusal("aggregation", f"a rule without points of the server's, {where}")
    reads = "attack-model" in ATTACKS.row(config.attack).reads
    if reads and config.attack_model == "exact" and (config.strategic() or config.site):
        yield Refusal("attack-model", f"the folder of a CGA run, {where}")
