"""Run all benchmarks and write their tables into docs/results.md.

    OMP_NUM_THREADS=1 python recipes/benchmarks/all.py               # half an hour of CPU time or more
    OMP_NUM_THREADS=1 python recipes/benchmarks/all.py --only peers  # one of them; the others stay as they are

Every benchmark runs in a process of its own, with one thread. One that fails is reported, the others go on, and the
exit code is 1; its table in the page stays as it was. ``--quick`` shows in a minute or two whether all of them run; its
numbers mean nothing and go to the screen alone, unless ``--output`` names a file.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import transformers
from timing import processor

from hf_lottery.report import markdown_table

PAGE = Path(__file__).parents[2] / "docs/results.md"
# Script -> its title. A script has HEADER and rows(quick=...), which returns the rows of a table.
PARTS = {
    "global_prune": "Pruning scores, beside numpy and torch",
    "peers": "Beside other packages",
    "evidence": "Evidence, over a forward pass",
    "proof": "Proofs of symmetries, over forward passes",
    "without_weights": "Symmetries of models without their weights",
    "weights": "Weight matching, beside the plain way",
    "activations": "Activation matching, over forward passes of both networks",
    "matching": "Matching layer after layer, and the assignment",
    "trainer": "SparseTrainer and LotteryTrainer, over a bare loop",
    "ladder_step": "Training steps of the ladder, over a loop written by hand",
    "masked_step": "Training steps with a mask, over dense ones",
    "aws_step": "Training steps with interpolated norms, over masked ones",
    "barrier": "Barriers, over bare evaluations",
    "mask_file": "Mask files",
    "sharded_prune": "Pruning scores over several processes",
    "structured": "Small networks, beside dense ones",
    "device": "Each part on the fastest device that is here",
}


def measure(name: str, quick: bool) -> tuple[str, float]:
    """Run one benchmark; return its section of the page, and the CPU seconds of this process."""
    torch.set_num_threads(1)
    script = importlib.import_module(name)
    table = markdown_table(script.HEADER, script.rows(quick=quick))
    where = f"`python recipes/benchmarks/{name}.py`, {processor()}, one thread; torch {torch.__version__}, "
    versions = f"transformers {transformers.__version__}, Python {platform.python_version()}."
    return f"### {PARTS[name]}\n\n{where}{versions}\n\n{table}", time.process_time()


def replaced(page: str, name: str, section: str) -> str:
    """Return the page with a benchmark's section in it, in place of the one that it had or after all others."""
    begin, end = f"<!-- benchmark {name} -->", f"<!-- end of benchmark {name} -->"
    block = f"{begin}\n{section}\n\n{end}"  # the end of a table needs an empty line
    if begin in page:
        return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: block, page, flags=re.DOTALL)
    return f"{page.rstrip()}\n\n{block}\n"


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds, to see that all run")
    parser.add_argument("--output", type=Path, help=f"the page to write into; {PAGE.name} unless --quick is given")
    args = parser.parse_args()
    output = args.output or (None if args.quick else PAGE)
    failed = []
    for name in args.only:
        try:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                section, seconds = process.submit(measure, name, args.quick).result()
        except Exception as error:  # whatever it is, the other benchmarks go on
            failed.append(name)
            print(f"{name} failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            continue
        print(f"{section}\n\n({name}: {seconds:.0f} s of CPU time)\n", flush=True)
        if output:
            page = output.read_text() if output.exists() else ""
            output.write_text(replaced(page, name, section))
    if failed:
        sys.exit(f"{len(failed)} of {len(args.only)} benchmarks failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
