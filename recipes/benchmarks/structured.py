"""Measure small networks beside dense ones: latency, throughput, parameters, bytes and FLOPs.

    OMP_NUM_THREADS=1 python recipes/benchmarks/structured.py --peer               # eager, on the CPU
    OMP_NUM_THREADS=1 python recipes/benchmarks/structured.py --models bert-base   # one network
    python recipes/benchmarks/structured.py --device cuda --dtype float16 --compile bert-base --limit 170
    python recipes/benchmarks/structured.py --device cuda --only n_of_m            # 2:4 alone

Networks have random weights and their real sizes: 128 tokens, images of 224 x 224. Half of the channels of ResNet-18,
and half of the heads and of the feed-forward units of BERT-base and ViT-B, are cut by magnitude. Four ways take turns:
dense; "mask", with as many weights set to zero wherever they are smallest; "small", by our ``shrink``; and, with
``--peer``, the network that Torch-Pruning makes of the same units' number (``pip install torch-pruning``).

Time is CPU time of the process on one thread of a CPU, which is the latency on an idle core; otherwise it is the time
of a synchronised call. Numbers are least / first quartile / median / largest over rounds. "as fast" is over the dense
call of the same round. FLOPs are those of one input. "made in" is the time from the dense network to the small one;
ours includes all proofs. Every table is printed as soon as it is measured. What fails, or is not reached within
``--limit``, says so in its row.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from device import device_name, free
from small_networks import NETWORKS, Inputs, masked, ours, torch_pruning, writers
from timing import cpu_seconds, processor, ratios, spread, take_turns, wall_seconds
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hf_lottery import magnitude, n_of_m, prunable, prune, score_weights
from hf_lottery.report import markdown_table
from hf_lottery.structured import to_semi_structured_

HEADER = ["network", "way", "M parameters", "MB", "GFLOP", "made in, s", "mode", "batch", "ms", "as fast", "a second"]
CPU = torch.device("cpu")
FEWEST, MOST = 5, 50  # measured calls of a way


@dataclass(frozen=True)
class Options:
    """What is measured, and how; the command line explains each."""

    models: Sequence[str] = tuple(NETWORKS)
    sparsity: float = 0.5
    batch_sizes: Sequence[int] = (1, 32)
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    threads: int = 1
    compile: Sequence[str] = ()
    peer: bool = True
    seconds: float = 20
    until: float = math.inf
    quick: bool = False

    def clock(self, action: Callable[[], Any]) -> float:
        """Return the seconds of one call."""
        return (cpu_seconds if self.device.type == "cpu" and self.threads == 1 else wall_seconds)(action)

    def left(self) -> float:
        """Return the seconds that are left of the limit."""
        return self.until - time.perf_counter()


@dataclass
class Way:
    """A network in one of its forms, or the reason why there is none."""

    model: nn.Module | None = None
    made: float = 0
    parameters: int = 0
    bytes: int = 0
    flops: int = 0
    failure: str = ""


@dataclass
class Row:
    """One measurement; ``base`` are the dense network's seconds in the same rounds."""

    network: str
    name: str
    way: Way
    mode: str
    batch: int
    failure: str = ""
    seconds: list[float] = field(default_factory=list)
    base: list[float] = field(default_factory=list)

    def cells(self) -> list[str]:
        """Return the row of the table."""
        sizes = ["-"] * 3
        if self.way.parameters:
            sizes = [
                f"{value:.1f}" for value in (self.way.parameters / 1e6, self.way.bytes / 1e6, self.way.flops / 1e9)
            ]
        made = f"{self.way.made:.1f}" if self.way.made else "-"
        figures = [self.failure, "-", "-"]
        if self.seconds:
            milliseconds, faster = [1e3 * s for s in self.seconds], ratios(self.base, self.seconds) if self.base else []
            rate = f"{self.batch / statistics.median(self.seconds):.1f}"
            figures = [spread(milliseconds, 2), spread(faster, 2) if faster else "-", rate]
        return [self.network, self.name, *sizes, made, self.mode, str(self.batch), *figures]

    def record(self) -> dict[str, Any]:
        """Return what the row holds, in JSON terms."""
        way = {name: value for name, value in vars(self.way).items() if name not in ("model", "failure")}
        return {name: way if name == "way" else value for name, value in vars(self).items()}


def reason(error: Exception) -> str:
    """Return what went wrong, for a cell of the table."""
    text = f"{type(error).__name__}: {error}".split("\n")[0].replace("|", "/")
    return text if len(text) < 200 else f"{text[:200]}..."


def made(make: Callable[[], nn.Module], inputs: Inputs, options: Options) -> Way:
    """Make a network in one form, and measure its size; a failure is part of the answer."""
    way = Way()
    if options.left() <= 0:
        return Way(failure="not made within the limit of time")

    def action() -> None:
        way.model = make().eval()

    try:
        way.made = options.clock(action)
        model: Any = way.model
        way.parameters = sum(weight.numel() for weight in model.parameters())
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(**inputs)
        way.flops = counter.get_total_flops()
        model.to(options.device, options.dtype)
        way.bytes = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    except Exception as error:  # whatever it is, the other ways go on
        way.model, way.failure = None, reason(error)
    return way


def ways_of(name: str, options: Options) -> dict[str, Way]:
    """Make all forms of a network on the CPU, and put them on the device."""
    torch.manual_seed(0)
    network = NETWORKS[name]
    model, inputs = network.make(options.quick).eval(), network.inputs(1, options.quick)
    cut = (network, model, inputs, options.sparsity)
    ways = {"small": made(lambda: ours(*cut), inputs, options)}
    if options.peer:
        writes = writers(network, model, inputs)
        ways["Torch-Pruning"] = made(lambda: torch_pruning(*cut, writes), inputs, options)
    small = next((way.model for way in ways.values() if way.model is not None), None)
    mask = Way(failure="no small network to take the number of weights from")
    if small is not None:
        mask = made(lambda: masked(model, small), inputs, options)
    return {"dense": made(lambda: model, inputs, options), "mask": mask, **ways}


def n_of_m_ways(options: Options) -> dict[str, Way]:
    """Make the feed-forward layers of BERT-base in float16: dense, 2:4, and with half of the units."""
    torch.manual_seed(0)
    width, units = (64, 256) if options.quick else (768, 3072)

    def layers(units: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, units), nn.GELU(), nn.Linear(units, width))

    def packed() -> nn.Module:
        model = layers(units).to(options.device, torch.float16)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls these tensors a prototype
            to_semi_structured_(model, prune(score_weights(prunable(model), magnitude), 0.5, scope=n_of_m(2, 4)))
        return model

    makes = {"dense": partial(layers, units), "2:4": packed, "half of the units": partial(layers, units // 2)}
    ways = {}
    for name, make in makes.items():
        try:
            ways[name] = Way(make().eval().to(options.device, torch.float16))
        except Exception as error:  # the refusal is the result
            ways[name] = Way(failure=reason(error))
    return ways


@torch.no_grad()
def call(run: Any, inputs: Inputs) -> None:
    run(**inputs)


def alive(ways: Mapping[str, Way], actions: Mapping[str, Callable[[], Any]], options: Options) -> dict[str, str]:
    """Call every way for the first time, which may compile it; return why it does not go on, or an empty text."""
    failures = {}
    for name, way in ways.items():
        failures[name] = way.failure or ("not reached within the limit of time" if options.left() <= 0 else "")
        if not failures[name]:
            try:
                actions[name]()
            except Exception as error:  # whatever it is, the other ways go on
                failures[name] = reason(error)
    return failures


def repeated(actions: Mapping[str, Callable[[], Any]], options: Options) -> dict[str, list[float]]:
    """Let ways that are warm take turns, for as long as there is time, and return the seconds of every call."""
    start = time.perf_counter()
    spent = take_turns(actions, FEWEST, warm_up=0, clock=options.clock)
    took = time.perf_counter() - start
    more = FEWEST * (min(options.seconds, options.left()) - took) / took
    again = take_turns(actions, int(min(max(more, 0), MOST - FEWEST)), warm_up=0, clock=options.clock)
    return {name: seconds + again[name] for name, seconds in spent.items()}


def measure(case: tuple[str, str, int], ways: Mapping[str, Way], inputs: Inputs, options: Options) -> list[Row]:
    """Measure all ways of one network, in one mode, on one batch; they take turns."""
    network, mode, batch = case
    inputs = {
        key: value.to(options.device, options.dtype if value.is_floating_point() else None)
        for key, value in inputs.items()
    }
    compiled = partial(torch.compile, dynamic=False) if mode == "compile" else lambda model: model
    actions = {name: partial(call, compiled(way.model), inputs) for name, way in ways.items() if not way.failure}
    rows = {name: Row(network, name, way, mode, batch) for name, way in ways.items()}
    for name, failure in alive(ways, actions, options).items():
        rows[name].failure = failure
    actions = {name: action for name, action in actions.items() if not rows[name].failure}
    if actions:
        for name, seconds in repeated(actions, options).items():
            rows[name].seconds = seconds
        for row in rows.values():
            row.base = rows["dense"].seconds if row.seconds else []
    free()
    return list(rows.values())


def cases(parts: Sequence[str], options: Options) -> Iterator[list[Row]]:
    """Yield the rows of one network, mode and batch after the other; what is compiled comes last."""
    made_of = {}
    for name in options.models if "networks" in parts else ():
        try:
            made_of[name] = ways_of(name, options)
        except Exception as error:  # whatever it is, the other networks go on
            made_of[name] = {"dense": Way(failure=reason(error))}
        for batch in options.batch_sizes:
            inputs = NETWORKS[name].inputs(batch, options.quick)
            yield measure((name, "eager", batch), made_of[name], inputs, options)
    if "n_of_m" in parts:
        ways, half = n_of_m_ways(options), replace(options, dtype=torch.float16)
        for mode, batch in itertools.product(["eager"] if options.quick else ["eager", "compile"], options.batch_sizes):
            inputs = {"input": torch.randn(batch, 16, 64) if options.quick else torch.randn(batch, 128, 768)}
            yield measure(("FFN of BERT-base, float16", mode, batch), ways, inputs, half)
    for name, batch in itertools.product([name for name in made_of if name in options.compile], options.batch_sizes):
        inputs = NETWORKS[name].inputs(batch, options.quick)
        yield measure((name, "compile", batch), made_of[name], inputs, options)


def rows(*, quick: bool = False) -> list[list[str]]:
    """Return the rows on the CPU, under ``HEADER``; BERT-base is compiled too. Quick ones are of small networks."""
    options = Options(quick=True, seconds=0) if quick else Options(compile=["bert-base"])
    parts = ["networks", "n_of_m"] if quick else ["networks"]
    return [row.cells() for found in cases(parts, options) for row in found]


def parsed() -> tuple[list[str], Options, Path | None]:
    """Read the command line: what is measured, how, and the file for the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--sparsity", type=float, default=0.5, help="share of units to cut; default: %(default)s")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--device", type=torch.device, default=CPU, help="default: %(default)s")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; default: %(default)s")
    parser.add_argument("--compile", nargs="*", choices=NETWORKS, help="compile too: these, or all of --models")
    parser.add_argument("--peer", action="store_true", help="beside Torch-Pruning, if it is installed")
    parser.add_argument("--only", choices=["networks", "n_of_m"], help="default: both on a GPU, networks on a CPU")
    parser.add_argument("--seconds", type=float, default=20, help="how long a case is repeated; default: %(default)s")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which nothing new is measured")
    parser.add_argument("--output", type=Path, help="a JSON file for all numbers")
    parser.add_argument("--quick", action="store_true", help="small networks and few rounds, to see that all run")
    args = parser.parse_args()
    parts = [args.only] if args.only else ["networks", *(["n_of_m"] if args.device.type == "cuda" else [])]
    options = {name: value for name, value in vars(args).items() if name not in ("only", "limit", "output")}
    options |= {"dtype": getattr(torch, args.dtype), "until": time.perf_counter() + args.limit}
    options["compile"] = args.models if args.compile == [] else args.compile or []
    options["seconds"] = 0 if args.quick else args.seconds
    return parts, Options(**options), args.output


def main() -> None:
    """Run the benchmark."""
    parts, options, output = parsed()
    torch.set_num_threads(options.threads)
    where = device_name(options.device) if options.device.type == "cuda" else processor()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(
        f"{where}, {options.threads} threads, {options.dtype}; {versions}; {options.sparsity:.0%} of the units cut.\n"
    )
    records = []
    for found in cases(parts, options):
        print(markdown_table(HEADER, [row.cells() for row in found]), end="\n\n", flush=True)
        records += [row.record() for row in found]
        if output:
            output.write_text(json.dumps({"where": where, "rows": records}, indent=1))


if __name__ == "__main__":
    main()
