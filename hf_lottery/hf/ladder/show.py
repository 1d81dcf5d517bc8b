"""Show the results of ladders again: a table of each, or one number of all side by side.

    python -m hf_lottery.hf.ladder.show docs/ladder/mnist1d-mlp.json
    python -m hf_lottery.hf.ladder.show docs/ladder/*.json --compare minus_naive --rows lth permuted_weight
    python -m hf_lottery.hf.ladder.show docs/ladder/mnist1d-mlp.json --pairs aws_signs-aws_mask

The files are what transfer_ladder.py writes as ``ladder.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ...report import markdown_table
from .table import COMPARED, comparison, difference_table, label, ladder_table, obtained, plot_ladders


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        arguments: The command line. Default: that of this process.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("ladders", nargs="+", type=Path, help="Files with the results of ladders.")
    parser.add_argument("--compare", choices=COMPARED, help="The number to show side by side.")
    parser.add_argument("--rows", nargs="+", help="Rows to compare and to draw. Default: all.")
    parser.add_argument(
        "--pairs", nargs="+", help="Pairs of rows whose paired difference is shown. Default: those of the ladder."
    )
    parser.add_argument("--picture", type=Path, help="PNG to write: differences to naive with their intervals.")
    args = parser.parse_args(arguments)
    ladders = [json.loads(path.read_text()) for path in args.ladders]
    if args.compare:
        print(markdown_table(*comparison(ladders, args.compare, args.rows)))
    else:
        for found in ladders:
            try:
                tables = [ladder_table(found), difference_table(found, args.pairs)]
            except ValueError as error:
                sys.exit(str(error))
            texts = [markdown_table(*table) for table in tables if table.rows]
            print("\n\n".join([f"### {label(found)}", obtained(found), *texts]) + "\n")
    if args.picture:
        plot_ladders(args.picture, ladders, args.rows)


if __name__ == "__main__":
    main()
