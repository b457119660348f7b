"""Pictures as the page carries them: whole, inside it."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

SCREEN_DPI = 96


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG, or why it cannot be shown.

    Attributes
    ----------
    name : str
        The file's, without its ending.
    source : str
        The file as a ``data:`` address; empty if it cannot be read.
    width, height : int
        As large as it was drawn, in a screen's pixels.
    """

    name: str
    source: str = ""
    width: int = 0
    height: int = 0


def read_pictures(folder: Path) -> list[Picture]:
    """Return every PNG of a folder, by name; hidden files are half written ones."""
    return [_read(path) for path in sorted(folder.glob("*.png")) if path.name[0] != "."]


def _read(path: Path) -> Picture:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.load()
            size, dpi = image.size, image.info.get("dpi", (SCREEN_DPI, SCREEN_DPI))[0]
        data = base64.b64encode(path.read_bytes()).decode()
    except (OSError, SyntaxError, ValueError):
        return Picture(name=path.stem)
    width, height = (round(side * SCREEN_DPI / (dpi or SCREEN_DPI)) for side in size)
    source = f"data:image/png;base64,{data}"
    return Picture(name=path.stem, source=source, width=width, height=height)
