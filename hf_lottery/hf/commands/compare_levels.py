"""Compare a ticket with its controls over several seeds: a table with mean and standard deviation, and a picture.

    hf-lottery levels outputs/fashion-mnist/seed-* --picture docs/fashion_mnist.png

It reads ``lottery_state.json`` and ``controls.json``, which ``hf-lottery find`` left in the folder of every run.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from ...report import markdown_table, plot_against_density
from ..ladder.paired import interval
from .launch import check_launch
from .outcome import Outcome
from .plain_parser import PlainParser

Series = dict[str, dict[float, list[float]]]


def read_runs(runs: list[Path], measure: str) -> Series:
    """Read a metric of every level of every run.

    Args:
        runs: Output folders of searches.
        measure: The metric, such as "eval_accuracy".

    Returns:
        Label -> {sparsity: one value a run}. The label ``ticket`` comes first, then those of the controls.

    Raises:
        FileNotFoundError: A folder is not that of a search.
        ValueError: A level has no such metric.
    """
    series: Series = defaultdict(lambda: defaultdict(list))
    for run in runs:
        file = run / "lottery_state.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"a run must be a folder with {file.name}, as find leaves it; received {run}. Check the path."
            )
        for record in json.loads(file.read_text())["finished"]:
            if measure not in record["metrics"]:
                known = ", ".join(record["metrics"])
                raise ValueError(f"measure must be a metric of every level; received {measure!r}. There are: {known}.")
            series["ticket"][record["sparsity"]].append(record["metrics"][measure])
        controls = run / "controls.json"
        if controls.exists():
            for key, metrics in json.loads(controls.read_text()).items():
                series[key.split(":")[1]][metrics["sparsity"]].append(metrics[measure])
    return series


def table(series: Series, *, intervals: bool = False) -> str:
    """Make a table with a row for every level: what stays, and mean and standard deviation in percent.

    The value of a single run stands alone.

    Args:
        series: What :func:`read_runs` returned.
        intervals: Whether to show 95 % intervals instead of standard deviations, and those of the paired differences to
            the ticket.
    """
    if intervals:
        return _interval_table(series)
    rows = []
    for sparsity in series["ticket"]:
        cells = [f"{100 * (1 - sparsity):.2f} %"]
        for points in series.values():
            values = 100 * np.array(points.get(sparsity, []))
            spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.2f}{spread}" if len(values) else "-")
        rows.append(cells)
    return markdown_table(["kept", *series], rows)


def _interval_table(series: Series) -> str:
    rows = []
    for sparsity, ticket in series["ticket"].items():
        cells = [f"{100 * (1 - sparsity):.2f} %", _interval(ticket)]
        for points in (points for name, points in series.items() if name != "ticket"):
            values = points.get(sparsity, [])
            paired = [ours - theirs for ours, theirs in zip(ticket, values, strict=bool(values))]
            cells += [_interval(values), _interval(paired, sign="+")]
        rows.append(cells)
    controls = [column for name in series if name != "ticket" for column in (name, "ticket minus it")]
    return markdown_table(["kept", "ticket", *controls], rows)


def _interval(values: Sequence[float], *, sign: str = "") -> str:
    if len(values) < 2:
        return f"{100 * values[0]:{sign}.1f}" if values else "-"
    mean, half = interval(100 * np.array(values))
    return f"{mean:{sign}.1f} ± {half:.1f}"


def main(arguments: Sequence[str]) -> Outcome | None:
    """Run the command.

    Args:
        arguments: The command line.
    """
    parser = PlainParser("levels")
    parser.add_argument("runs", nargs="+", type=Path, help="Output folders of hf-lottery find, one for each seed.")
    parser.add_argument("--measure", default="eval_accuracy", help="Metric to compare, which must be a fraction.")
    parser.add_argument(
        "--intervals", action="store_true", help="Show 95 %% intervals, also of the paired differences to the ticket."
    )
    parser.add_argument("--picture", type=Path, help="PNG to write.")
    parser.add_argument("--title", default="", help="Title of the picture.")
    parser.add_json()
    args = parser.parse(arguments)
    state = Accelerator()
    check_launch(state.num_processes)
    if not state.is_main_process:
        return None
    series = read_runs(args.runs, args.measure)
    if args.picture:
        label = args.measure.removeprefix("eval_")
        plot_against_density(args.picture, series, ylabel=label, title=args.title)
    facts = {"measure": args.measure, "series": series, "picture": args.picture}
    return Outcome(facts, text=table(series, intervals=args.intervals))
