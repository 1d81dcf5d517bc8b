"""Save the zeros of a sparse model as a mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...masks.file import MASK_NAME
from ..hub.checkpoint import mask_from_checkpoint
from ..tasks import paper_networks  # noqa: F401  # registers the networks that find trains
from .launch import check_output
from .outcome import Outcome
from .plain_parser import PlainParser
from .sources import where


def main(arguments: Sequence[str]) -> Outcome:
    """Run the command.

    Args:
        arguments: The command line.
    """
    parser = PlainParser("pack")
    parser.add_source("model")
    parser.add_argument("--output", required=True, help="Folder to write the mask to.")
    parser.add_argument("--include", action="append", help="Regular expression: names of the weights to cover.")
    parser.add_argument("--exclude", action="append", help="Regular expression: names of the weights to leave out.")
    parser.add_json()
    args = parser.parse(arguments)
    check_output(args.output, fresh=True)
    mask = mask_from_checkpoint(args.model, include=args.include, exclude=args.exclude, **where(args))
    mask.save_pretrained(args.output)
    size = (Path(args.output) / MASK_NAME).stat().st_size
    facts = {"mask": args.output, "weights": mask.weights, "kept": mask.kept, "sparsity": mask.sparsity, "bytes": size}
    return Outcome(facts, text=f"{mask}\n{size:,} bytes in {args.output}")
