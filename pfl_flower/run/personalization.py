"""What is learned, and what users report: ``personalization``.

============= ========================================= ================================= =========
value         what is minimised                         user n's model                    its report
============= ========================================= ================================= =========
``joint``     ``sum_n L_n(theta_n) + R(rho, theta_n)``  ``argmin L_n + R(rho_t, .)``      grad_rho R
``classical`` ``sum_n L_n(rho)``                        rho itself                        grad L_n
``ditto``     ``sum_n L_n(rho)``, and at this rho each  ``argmin L_n + R(rho_t, .)``      grad L_n
              ``L_n(theta_n) + R(rho, theta_n)``
``local``     ``L_n(theta_n)``, each by itself          ``argmin L_n``                    0
============= ========================================= ================================= =========

``joint`` is the paper's (Equation 3). ``classical`` is what it becomes for large lam (Section 2;
McMahan et al. 2017 with one step of all points). ``ditto`` is the objective of Li, Hu, Beirami and
Smith, *Ditto: fair and robust federated learning through personalization*, 2021,

    min over v_n of F_n(v_n) + lam/2 ||v_n - w*||^2   with   w* in argmin_w G(F_1(w), ..., F_N(w)),

where G is the sum here, the coupling is the run's R (squared l2 with half of their lam is theirs),
and theta_n follows rho_t round by round, as in their Algorithm 1: rho learns nothing of theta_n, so
that ``ditto`` and ``classical`` have one trajectory of rho, to the bit. In ``local`` rho has no
part: it stays where it starts, whatever anybody sends.

Where reports are no gradients of a regulariser there is no GRAD(rho) to hold them against: every
vector is the gradient of some L_n. What the server can have is a limit on their length,
``max-gradient-norm``; without one nothing bounds what a single user does to rho.

Attacks mean the same on all four. CGA's wish ``(rho_t - target)/eta_t - ghat`` (Equation 6) is one
about sums of reports, and does not ask whose gradients they are; it is projected on what the server
takes. Fabricated data are to have the gradient wished for at the target, instead of at theta_spade.
A fixed model theta_spade has no R to show itself by: it is taken for the loss ``L_s(rho) = lam
||rho - theta_spade||^2`` of a user who wants rho to be theta_spade.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Personalization = Literal["joint", "classical", "ditto", "local"]


@dataclass(frozen=True, kw_only=True)
class Way:
    """What a value of the key means.

    Attributes
    ----------
    text : str
        What is learned.
    coupled : bool
        Whether reports are gradients of R, in GRAD(rho).
    moves : bool
        Whether rho moves by them.
    tied : bool
        Whether theta_n is tied to rho by R.
    """

    text: str
    coupled: bool = False
    moves: bool = True
    tied: bool = False


WAYS: Mapping[Personalization, Way] = {
    "joint": Way(text="rho and theta_n together, tied by R (the paper)", coupled=True, tied=True),
    "classical": Way(text="rho alone, from gradients of L_n at rho"),
    "ditto": Way(text="rho as in classical, and theta_n tied to it on the side", tied=True),
    "local": Way(text="theta_n alone: rho stays at its start", moves=False),
}

DESCRIBED = "; ".join(f"{name}: {way.text}" for name, way in WAYS.items())
"""The values for a line of help."""


def checked(personalization: Personalization, regularizer: str, radius: float, limit: float) -> str:
    """Return what the server holds reports against, in words.

    >>> checked("classical", "squared-l2", float("inf"), 0.0)
    'nothing but that they are finite: max-gradient-norm is not set'
    >>> checked("joint", "l2", 2.0, 0.5)
    'GRAD(rho) of l2, the ball of radius 2; max-gradient-norm = 0.5'
    """
    way = WAYS[personalization]
    if not way.moves:
        return "0: no report moves rho, which stays at its start"
    limited = f"max-gradient-norm = {limit:g}" if limit else ""
    if not way.coupled:
        return limited or "nothing but that they are finite: max-gradient-norm is not set"
    ball = "all vectors" if radius == float("inf") else f"the ball of radius {radius:g}"
    return "; ".join(one for one in (f"GRAD(rho) of {regularizer}, {ball}", limited) if one)
