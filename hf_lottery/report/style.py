"""Style: how every picture looks, and the numbers beside it.

The colours are those of Okabe and Ito without yellow, which cannot be seen on white; curves differ in marker and line
style too, bars in hatching. The background is white, so that a picture reads the same on a light and on a dark page.

References:
    Okabe and Ito, 2008, "Color Universal Design", https://jfly.uni-koeln.de/color/.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def curve_style(number: int) -> dict[str, Any]:
    """Colour, marker and line style of a curve, different for the first 28."""
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
        "markersize": 5,
    }


def label(name: str) -> str:
    """A name as a legend shows it; matplotlib hides those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


@contextmanager
def picture(path: str | Path, width: float, height: float) -> Iterator[Any]:
    """The axes of a picture in inches, written to ``path`` at the end of the block.

    The settings of matplotlib are the default ones, whatever the user's are, and its backend is left alone.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib import style
    from matplotlib.figure import Figure  # without pyplot, which would choose a backend for the whole process

    with style.context(["default", _SETTINGS]):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        yield figure.subplots()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write the numbers of the picture ``path`` beside it, under the same stem."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    write_atomically(Path(path).with_suffix(".csv"), text.getvalue().encode(errors="replace"))


def check_filled(what: str, things: Mapping[Any, Any]) -> None:
    """Raise ValueError if there is nothing to draw."""
    if not things or any(value == {} for value in things.values()):
        raise ValueError(f"{what} must not be empty; received {things!r}. Leave the picture out.")
