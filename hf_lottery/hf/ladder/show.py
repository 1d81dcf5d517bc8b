"""Show the results of ladders again: a table of each, or one number of all side by side.

    hf-lottery show docs/ladder/mnist1d-mlp.json
    hf-lottery show docs/ladder/*.json --compare minus_naive --rows lth permuted_weight
    hf-lottery show docs/ladder/*.json --rank permuted_weight permuted_activation
    hf-lottery show docs/ladder/mnist1d-mlp.json --pairs aws_signs-aws_mask

The files are what ``hf-lottery ladder`` writes as ``ladder.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...report import markdown_table
from ..commands.plain_parser import PlainParser
from ..hub.errors import first_line
from .picture import plot_ladders
from .ranking import ranking
from .table import COMPARED, comparison, conclusions, difference_table, label, ladder_table, obtained

_MUST = "a ladder must be a file that hf-lottery ladder wrote, such as ladder.json"


def main(arguments: Sequence[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line.
    """
    parser = PlainParser("show")
    parser.add_argument("ladders", nargs="+", type=Path, help="Files with the results of ladders.")
    parser.add_argument("--compare", choices=COMPARED, help="The number to show side by side.")
    parser.add_argument("--rank", nargs="+", help="Rows to rank by their gain over naive, over all ladders.")
    parser.add_argument("--rows", nargs="+", help="Rows to compare and to draw. Default: all.")
    parser.add_argument(
        "--pairs", nargs="+", help="Pairs of rows whose paired difference is shown. Default: those of the ladder."
    )
    parser.add_argument("--picture", type=Path, help="PNG to write: gains over naive, a panel a ladder.")
    args = parser.parse(arguments)
    ladders = [read_ladder(path) for path in args.ladders]
    known = dict.fromkeys(row for results in ladders for row in results["rows"])
    if unknown := {*(args.rows or ()), *(args.rank or ())} - set(known):
        raise ValueError(
            f"rows must name rows of these ladders; received {min(unknown)}. There are: {', '.join(known)}."
        )
    if args.rank:
        print(markdown_table(*ranking(ladders, args.rank)))
    elif args.compare:
        print(markdown_table(*comparison(ladders, args.compare, args.rows)))
    else:
        for found in ladders:
            tables = [ladder_table(found), difference_table(found, args.pairs)]
            texts = [markdown_table(*table) for table in tables if table.rows]
            print("\n\n".join([f"### {label(found)}", obtained(found), *texts, *conclusions(found)]) + "\n")
    if args.picture:
        plot_ladders(args.picture, ladders, args.rows)


def read_ladder(path: Path) -> Mapping[str, Any]:
    """Read the results of a ladder.

    Args:
        path: The file.

    Raises:
        ValueError: The file is not one that a ladder wrote.
    """
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{_MUST}; received {path}: {first_line(error)}. Check the path.") from error
    if not isinstance(results, dict) or not {"title", "about", "measure", "rows"} <= results.keys():
        raise ValueError(f"{_MUST}; received {path}, which holds something else. Check the path.")
    return results
