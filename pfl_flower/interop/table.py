"""The attacks of ``attack_mod`` by name: what a client of somebody's app sends back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pfl_flower.attacks.table import ATTACKS

HERE = "pfl_flower.interop"


@dataclass(frozen=True, kw_only=True)
class ModAttack:
    """An attack of ``attack_mod``.

    Attributes
    ----------
    factory : str
        What makes it of a ``ModSetup``, as ``package.module:name``.
    text, source : str
        What it is, in one line, and where it comes from.
    reads : tuple of str
        The arguments of ``attack_mod`` that mean something to it, beside those that say who
        attacks.
    needs : tuple of str
        Those of them that must be given.
    """

    factory: str
    text: str
    source: str = ""
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


def _known(
    name: str, factory: str, text: str, *, reads: tuple[str, ...], needs: tuple[str, ...] = ()
) -> ModAttack:
    source = ATTACKS[name].source
    return ModAttack(factory=factory, text=text, source=source, reads=reads, needs=needs)


MAKERS = f"{HERE}.makers"

MOD_ATTACKS: Mapping[str, ModAttack] = {
    "sign-flip": _known(
        "sign-flip",
        f"{MAKERS}:sign_flip",
        "goes the opposite way, strength (1) times as far as the client's own training went",
        reads=("strength",),
    ),
    "gaussian": _known(
        "gaussian",
        f"{MAKERS}:gaussian",
        "noise, strength (10) times as long as the way of the client's own training",
        reads=("strength",),
    ),
    "cga": _known(
        "cga",
        f"{MAKERS}:counter_gradient",
        "cancels the others' pull and puts the mean on target",
        reads=("target", "weight", "coalition"),
        needs=("target",),
    ),
    "model-replacement": ModAttack(
        factory=f"{MAKERS}:model_replacement",
        text="the way to target times 1/weight, so that the mean lands there",
        source="Bagdasaryan et al. 2020",
        reads=("target", "weight", "coalition"),
        needs=("target", "weight"),
    ),
    "inner-product": _known(
        "inner-product",
        f"{MAKERS}:inner_product",
        "minus the surrogates' mean way, strength times (twice what turns the mean around)",
        reads=("strength", "surrogates", "coalition"),
    ),
    "little-is-enough": _known(
        "little-is-enough",
        f"{MAKERS}:little_is_enough",
        "the surrogates' mean way - z deviations, z = strength (theirs)",
        reads=("strength", "surrogates", "coalition"),
    ),
    "min-max": _known(
        "min-max",
        f"{MAKERS}:min_max",
        "as little-is-enough, z the largest that is no outlier among the surrogates",
        reads=("surrogates",),
    ),
    "free-rider": ModAttack(
        factory=f"{MAKERS}:free_rider",
        text="sends back the model that it got",
        source="Fraboni et al. 2021",
    ),
    "stale": ModAttack(
        factory=f"{MAKERS}:stale",
        text="sends the honest model of delay (1) rounds before",
        source="Xie et al. 2019",
        reads=("delay",),
    ),
    "nan": ModAttack(
        factory=f"{MAKERS}:not_a_number",
        text="sends NaN in every layer of floating numbers",
    ),
    "wrong-shape": ModAttack(
        factory=f"{MAKERS}:wrong_shape",
        text="sends the first layer with one row more",
    ),
    "honest": ModAttack(
        factory=f"{MAKERS}:honest",
        text="sends the honest model: for num_examples, the client's word on its weight",
        needs=("num_examples",),
    ),
}
"""From a ``ModSetup`` to an ``Attack`` on the report ``rho - theta``, or to a ``Forgery``."""


def markdown() -> str:
    """Return the table as the README of this folder shows it."""
    rows = []
    for name, row in MOD_ATTACKS.items():
        reads = ", ".join(f"`{one}`" for one in dict.fromkeys((*row.reads, *row.needs)))
        rows.append(f"| `{name}` | {row.text} | {reads or '-'} | {row.source or '-'} |\n")
    return "".join(rows)
