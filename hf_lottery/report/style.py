"""Style: how every picture looks, and the numbers beside it.

The colours are those of Okabe and Ito without yellow, which cannot be seen on white. Curves also differ in marker and
line style, and bars in hatching. The background is white, so that a picture reads the same on a light and a dark page.

References:
    Okabe and Ito, 2008, "Color Universal Design", https://jfly.uni-koeln.de/color/.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ..storage.atomic import write_atomically

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
HATCHES = ("", "///")
PICTURE_BYTES = 50_000  # roughly, as a PNG of these settings: 28 to 69 kB for curves and layers

_SETTINGS = {
    "text.parse_math": False,  # a name may hold a dollar sign
    "savefig.dpi": 150,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "hatch.linewidth": 0.6,
}


class Picture(NamedTuple):
    """A PNG, and a description for those who cannot see it."""

    path: str | Path
    alt: str


def described(path: str | Path, what: str, title: str) -> Picture:
    """A picture that was written, described by what it shows and by its title."""
    return Picture(path, f"{what}: {title}" if title else what)


def curve_style(number: int) -> dict[str, Any]:
    """Return colour, marker and line style of a curve; the first 28 curves differ."""
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
        "markersize": 5,
    }


def label(name: str) -> str:
    """Return a name that a legend shows; matplotlib hides names that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def check_drawing() -> None:
    """Raise ImportError if matplotlib, which draws the pictures, is not installed. It is not imported for that."""
    if find_spec("matplotlib") is None:
        raise ImportError(
            "matplotlib must be installed to draw pictures; received an environment without it. "
            'Run pip install matplotlib, or pip install "hf-lottery[recipes]".'
        )


@contextmanager
def figure(path: str | Path, width: float, height: float) -> Iterator[Any]:
    """Give an empty figure, which is written to ``path`` at the end of the block.

    The settings of matplotlib are its default ones, whatever the user has set. Its backend is left alone.

    Args:
        path: The PNG to write.
        width: Width in inches.
        height: Height in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    check_drawing()
    from matplotlib import style
    from matplotlib.figure import Figure  # without pyplot, which would choose a backend for the whole process

    with style.context(["default", _SETTINGS]):
        drawn = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        yield drawn
        buffer = io.BytesIO()
        drawn.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


@contextmanager
def picture(path: str | Path, width: float, height: float) -> Iterator[Any]:
    """Give the axes of a picture with one panel; see :func:`figure`."""
    with figure(path, width, height) as drawn:
        yield drawn.subplots()


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write the numbers of the picture ``path`` beside it, under the same stem."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    write_atomically(Path(path).with_suffix(".csv"), text.getvalue().encode(errors="replace"))


def check_filled(what: str, things: Mapping[Any, Any]) -> None:
    """Raise ValueError if there is nothing to draw."""
    if not things:
        raise ValueError(f"{what} must not be empty; received nothing to draw. Leave the picture out.")
    if empty := [name for name, value in things.items() if isinstance(value, Mapping) and not value]:
        raise ValueError(f"{what} must not be empty; received nothing to draw for {empty[0]!r}. Leave it out.")
