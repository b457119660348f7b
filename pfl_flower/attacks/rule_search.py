"""How far a public rule lets k coordinated reports carry the direction that the server takes.

With H the rows of m others ``(m, d)``, F the rule and W the direction that is wished for, k users
who all report ``a`` make the direction ``D(a) = F(H, a, ..., a)``. What is nearest to W maximises

    gain(a) = <w, D(a)> - ||D(a)||^2 / (2 ||W||),      w = W/||W||,

which is ``(||W||^2 - ||W - D||^2)/(2 ||W||)`` without the digits that a long W would cost. The
search is over length along some directions, then along the gradient, where the rule has one, then
over the coordinates of the span of w and H: a rule that looks at lengths and distances alone gives
what lies outside that span no part in its choice.

Where H is a guess the gain is the least over several guesses, since many rules drop altogether what
lies a little too far out; and coordinates are left alone, which would fit the guesses.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pfl_flower.objective.vectors import length

Rule = Callable[[Tensor], Tensor]
SHORTEST, LONGEST = -4, 12
"""Powers of two of the lengths that are tried, in units of the rows' spread: a sixteenth of it is
within what any rule keeps, and four thousand times is beyond what any reacts to."""
STEPS = 24
"""Most steps along the gradient; each that does not gain is halved: 2^-24 of the first is none."""
SPANNED = 16
"""Rows whose differences span the search, those that lie farthest along w: the rest of thousands
would take thousands of trials each pass."""
PASSES = 4
"""Over the coordinates, each with steps half as long: from a spread down to an eighth of it."""


@dataclass(kw_only=True)
class RuleSearch:
    """The best report found so far, and the ways to a better one.

    Parameters
    ----------
    rule : callable
        F, from rows ``(n, d)`` to a direction ``(d,)``.
    others : Tensor
        H, ``(g, m, d)``, m >= 1: as they are, g = 1, or g guesses at them.
    copies : int
        k.
    wish : Tensor
        W, ``(d,)``.
    plausible : callable
        From any vector ``(d,)`` to the nearest one that the server does not refuse.
    trials : int
        How often the rule may be worked out.
    """

    rule: Rule
    others: Tensor
    copies: int
    wish: Tensor
    plausible: Callable[[Tensor], Tensor]
    trials: int
    best: Tensor = field(init=False)
    gained: float = field(init=False)

    def __post_init__(self) -> None:
        """Begin at the mean of the others, which no rule leaves out."""
        size = length(self.wish)
        self._along = self.wish / size.clamp(min=torch.finfo(self.wish.dtype).tiny)
        self._size = float(size)
        self._rows = self.others.flatten(0, 1)
        self._centre = self._rows.mean(dim=0)
        away = length(self._rows - self._centre).median()
        # Of rows that are one row, their own length; of rows that are 0, one.
        self._spread = next((x for x in (float(away), float(length(self._centre))) if x > 0), 1.0)
        self.best, self.gained = self.plausible(self._centre), -torch.inf
        self.try_out(self._centre)

    @torch.no_grad()
    def run(self) -> Tensor:
        """Return the report ``(d,)`` with the largest gain that was found."""
        for base, direction in self.lines():
            self.along_line(base, direction)
        self.along_gradient()
        if len(self.others) == 1:
            self.over_coordinates()
        return self.best

    def gain(self, report: Tensor) -> Tensor:
        """Return the least ``gain(a)`` over the guesses, a scalar."""
        return torch.stack([self.gain_with(rows, report) for rows in self.others]).min()

    def gain_with(self, others: Tensor, report: Tensor) -> Tensor:
        """Return ``gain(a)``; with no wish, minus the square of what is moved at all."""
        direction = self.rule(torch.cat([others, report.expand(self.copies, -1)]))
        square = direction @ direction
        return self._along @ direction - square / (2 * self._size) if self._size else -square

    def try_out(self, report: Tensor) -> bool:
        """Keep the plausible report nearest to this one if it gains; False as well if none may be.

        What makes the rule return something that is not a number is no report.
        """
        if self.trials <= 0:
            return False
        self.trials -= 1
        allowed = self.plausible(report)
        found = float(self.gain(allowed))
        if not found > self.gained:
            return False
        self.best, self.gained = allowed, found
        return True

    def lines(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield where lines begin, and unit vectors along them."""
        sent = self.others.shape[1] * self._centre
        whole = (self.wish - sent) / self.copies - self._centre
        # What the plain sum would take, to the last digit; then each coordinate its own way, for
        # rules that look at coordinates.
        for direction in (whole, self.wish.sign()):
            size = length(direction)
            if float(size) > 0:
                yield self._centre, direction / size
        self.try_out(whole + self._centre)
        yield self._rows[(self._rows @ self._along).argmax()], self._along

    def along_line(self, base: Tensor, direction: Tensor) -> None:
        """Try lengths by powers of two, then narrow in on the best."""
        chosen = 0.0
        for power in range(SHORTEST, LONGEST + 1):
            reach = self._spread * 2.0**power
            if self.try_out(base + reach * direction):
                chosen = reach
        factor = 1.5
        while chosen and factor > 1.01:
            for reach in (chosen * factor, chosen / factor):
                if self.try_out(base + reach * direction):
                    chosen = reach
                    break
            else:
                factor = factor**0.5

    def along_gradient(self) -> None:
        """Climb the gain by the rule's gradient, if torch can follow the rule."""
        step = float(length(self.best - self._centre)) or self._spread
        slope = self.slope()
        for _ in range(STEPS):
            if slope is None or self.trials <= 0:
                return
            if self.try_out(self.best + step * slope):
                step, slope = 1.5 * step, self.slope()
            else:
                step /= 2

    def slope(self) -> Tensor | None:
        """Return the gain's gradient where the best report is, of length 1; None without one."""
        report = self.best.detach().clone().requires_grad_()
        try:
            # Rules read numbers off tensors that carry gradients: what is read is a constant.
            with torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                (found,) = torch.autograd.grad(self.gain(report), report, allow_unused=True)
        except (RuntimeError, TypeError):
            return None
        if found is None or not bool(found.isfinite().all()) or not bool(found.any()):
            return None
        return found / length(found)

    def over_coordinates(self) -> None:
        """Move along w and along the others' differences, back and forth, in ever shorter steps."""
        order = (self._rows @ self._along).argsort(descending=True)
        differences = self._rows[order[:SPANNED]] - self._centre
        axes = torch.cat([self._along[None], (self._centre - self.best)[None], differences])
        sizes = length(axes)
        axes = (axes / sizes.clamp(min=torch.finfo(axes.dtype).tiny))[sizes[:, 0] > 0]
        step = self._spread
        for _ in range(PASSES):
            for axis in axes:
                for sign in (1.0, -1.0):
                    while self.try_out(self.best + sign * step * axis):
                        pass
            step /= 2
