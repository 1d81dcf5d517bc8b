"""The transfer ladder: every way of reusing a ticket, on the same networks, budget and sparsity, with intervals.

    accelerate launch recipes/transfer_ladder.py --config recipes/mnist1d/ladder_mlp.yaml
    accelerate launch recipes/transfer_ladder.py --config recipes/mnist1d/ladder_mlp.yaml --plan
    accelerate launch recipes/transfer_ladder.py --config recipes/mnist1d/ladder_conv.yaml --widths 1 2 4

The networks (``--seeds``) form a ring. Each is the target once, with the ticket of the network before it as source, and
all rows train the target from its own weights at the rewind step on, on its own data order:

- ``dense``; ``lth``, under its own ticket's mask; ``random``, the source's mask shuffled within each layer;
- ``naive``, the source's mask as it is; ``permuted_weight``, ``permuted_activation``, aligned by weights or activations
  of the trained dense networks; ``permuted_early``, of the networks at the rewind step; ``permuted_residual``, with the
  residual stream matched too;
- ``lrr_signs``, ``aws_signs``, mask and signs of the source's LRR and AWS; ``aws_mask``, without the signs;
  ``random_signs``; ``permuted_signs``, mask and signs of AWS aligned by activations;
- ``lrr``, ``aws``, the target's own subnetworks of these searches, trained from their weights.

``minus naive`` is paired by target. The gap that is closed is the mean gain over naive as a share of ``lth`` minus
``naive``. The barrier is between a row's solution and that of ``lth``; for rows of signs and of AWS's mask, that of the
source's ``lrr`` or ``aws``, permuted as the signs were. The overlap is with the target's own mask. As each network is
a source and a target, pairs that share one are not independent, which the intervals do not know.

``--sparsities``, ``--rewinds`` and ``--widths`` sweep: a ladder for every combination, and one table across all.

Interrupted, the same command goes on: a cell is named by a hash of all that defines it, and never computed twice.
"""

from __future__ import annotations

import sys
from concurrent.futures.process import BrokenProcessPool

from ...report import markdown_table, write_report
from ..commands.common import set_up
from .plan import plan
from .results import write_results
from .sweep import points
from .table import comparison, label, sections, table
from .workers import run_all


def main() -> None:
    """Run the recipe."""
    command = sys.argv[1:]
    asked = points(command)
    ladder = asked[0].ladder
    set_up(ladder.args)
    if ladder.args.world_size > 1:
        sys.exit("a ladder must be launched as one process, as it starts its own; received several. Use --workers.")
    if ladder.which.plan:
        print(plan(asked))
        return
    try:
        failed = run_all(asked, command, ladder.which.workers)
    except BrokenProcessPool:
        sys.exit("workers must live on; one was killed, perhaps for want of memory. The same command goes on.")
    if failed:
        sys.exit(f"cells failed or need one that did: {', '.join(failed)}. Run the command again to retry.")
    results = [write_results(point) for point in asked]
    for found in results:
        print(f"\n{label(found)}\n\n{markdown_table(*table(found))}")
    if len(results) > 1:
        for name in ("minus_naive", "gap_closed"):
            print(f"\n{markdown_table(*comparison(results, name))}")
    page = ladder.folder / "report.html"
    write_report(page, sections(results, ladder.folder), title="Transfer ladder")
    print(f"\nreport: {page}")
