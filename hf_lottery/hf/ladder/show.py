"""Show the results of ladders again: a table each, or one number of all side by side.

    python -m hf_lottery.hf.ladder.show docs/ladder/mnist1d-mlp.json
    python -m hf_lottery.hf.ladder.show docs/ladder/*.json --compare minus_naive --rows lth permuted_weight

Reads the ``ladder.json`` that transfer_ladder.py wrote.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ...report import markdown_table
from .table import COMPARED, comparison, label, obtained, plot, table


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("ladders", nargs="+", type=Path, help="Results of ladders.")
    parser.add_argument("--compare", choices=COMPARED, help="The number to show side by side.")
    parser.add_argument("--rows", nargs="+", help="Rows to compare and to draw. Default: all.")
    parser.add_argument("--picture", type=Path, help="PNG to write: differences to naive with their intervals.")
    args = parser.parse_args()
    ladders = [json.loads(path.read_text()) for path in args.ladders]
    if args.compare:
        print(markdown_table(*comparison(ladders, args.compare, args.rows)))
    else:
        for found in ladders:
            print(f"### {label(found)}\n\n{obtained(found)}\n\n{markdown_table(*table(found))}\n")
    if args.picture:
        plot(args.picture, ladders, args.rows)


if __name__ == "__main__":
    main()
