"""How all benchmarks here measure, mostly CPU time of the process of ways that take turns, and how most print it."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from hf_lottery.report import markdown_table

T = TypeVar("T")


def timed(action: Callable[[], T]) -> tuple[float, T]:
    """Return the CPU seconds of the process for one call, which other processes disturb little, and its result."""
    start = time.process_time()
    result = action()
    return time.process_time() - start, result


def cpu_seconds(action: Callable[[], Any]) -> float:
    """Return the CPU seconds of the process for one call."""
    return timed(action)[0]


def wall_seconds(action: Callable[[], Any]) -> float:
    """Return the seconds on the clock for one call, with all its threads and what it put on an accelerator."""
    wait = torch.accelerator.synchronize if torch.accelerator.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - start


def take_turns(
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    warm_up: int = 1,
    clock: Callable[[Callable[[], Any]], float] = cpu_seconds,
) -> dict[str, list[float]]:
    """Call some ways in turn, and return the seconds of each in every round after the warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(warm_up + rounds):
        for name, way in ways.items():
            seconds[name].append(clock(way))
    return {name: spent[warm_up:] for name, spent in seconds.items()}


def ratios(seconds: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return the ratio in every round."""
    return [mine / theirs for mine, theirs in zip(seconds, base, strict=True)]


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return least / first quartile / median / largest as text."""
    lower, middle, _ = statistics.quantiles(values, n=4, method="inclusive")
    return " / ".join(f"{value:.{digits}f}" for value in (min(values), lower, middle, max(values)))


def show(doc: str | None, header: list[str], rows: Callable[..., list[list[str]]], *, quick: str) -> None:
    """Run a benchmark from the command line: print its table.

    Args:
        doc: What the script says of itself.
        header: The names of the columns.
        rows: Measures the rows of the table; it is given ``quick``.
        quick: What ``--quick`` does, for the help.
    """
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=quick)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(markdown_table(header, rows(quick=args.quick)))


def processor() -> str:
    """Return number and name of the processors."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else "unknown processor"
