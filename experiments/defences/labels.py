"""Where the numbers of points are written, so that none lies on another or on a point."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

Place = tuple[float, float]
"""Across and up, in points of 1/72 inch."""
WIDTH, HEIGHT, DOT = 6.0, 9.0, 6.0
"""Of a digit, of a line, and of the mark of a point."""
RADII, DIRECTIONS = range(9, 120, 6), 16
"""How far from its point a number is tried, and in how many directions."""


def offsets(points: Sequence[Place], texts: Sequence[str], size: Place) -> list[Place]:
    """Return for each point where the middle of its text goes, as seen from the point.

    Places near by come first, to the right before elsewhere. A text for which there is no free one
    lies on its point.

    Parameters
    ----------
    points : sequence of Place
        In a frame with a corner at 0, 0.
    texts : sequence of str
        What is written at each.
    size : Place
        Width and height of the frame, which no text leaves.

    >>> offsets([(50.0, 50.0), (52.0, 50.0)], ["1", "2"], (100.0, 100.0))[0]
    (9.0, 0.0)
    """
    taken = [_Box(point, (DOT, DOT)) for point in points]
    found = []
    for (x, y), text in zip(points, texts, strict=True):
        chosen = (0.0, 0.0)
        for dx, dy in _around():
            box = _Box((x + dx, y + dy), (WIDTH * len(text), HEIGHT))
            if box.within(size) and not any(map(box.meets, taken)):
                taken.append(box)
                chosen = (dx, dy)
                break
        found.append(chosen)
    return found


def _around() -> Iterator[Place]:
    for radius, step in itertools.product(RADII, range(DIRECTIONS)):
        angle = 2 * math.pi * step / DIRECTIONS
        yield round(radius * math.cos(angle), 6), round(radius * math.sin(angle), 6)


class _Box:
    """A rectangle by its middle and its size."""

    def __init__(self, middle: Place, size: Place) -> None:
        self.middle, self.size = middle, size

    def meets(self, other: _Box) -> bool:
        """Return whether two of them share more than an edge."""
        return all(
            abs(mine - theirs) < (one + two) / 2
            for mine, theirs, one, two in zip(
                self.middle, other.middle, self.size, other.size, strict=True
            )
        )

    def within(self, size: Place) -> bool:
        """Return whether it lies in a frame with a corner at 0, 0."""
        return all(
            own / 2 <= mine <= whole - own / 2
            for mine, own, whole in zip(self.middle, self.size, size, strict=True)
        )
