"""Check the files of a mask or ticket, and that a model fits the mask and is pruned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...masks.config import CONFIG_NAME, read_config
from ...masks.mask import Mask
from ...report import markdown_table
from ..hub.checkpoint import load_model
from ..hub.ticket import Ticket
from ..tasks import paper_networks  # noqa: F401  # registers the networks that find trains
from ..trainers.run_folder import REWIND_NAME
from .outcome import Outcome
from .plain_parser import PlainParser
from .sources import find_source


def main(arguments: Sequence[str]) -> Outcome:
    """Run the command.

    Args:
        arguments: The command line.
    """
    parser = PlainParser("verify")
    parser.add_source("source")
    parser.add_argument("--model", help="A saved transformers model (folder, or repository); without, only files.")
    parser.add_argument(
        "--dense-base", action="store_true", help="The model is dense: pruned weights need not be zero."
    )
    parser.add_json()
    args = parser.parse(arguments)
    if args.dense_base and args.model is None:
        parser.error("--dense-base must come with --model; received no model. Name the dense model.")
    folder = find_source(args.source, args, Ticket.FILES, Ticket.OPTIONAL_FILES)
    mask = Mask.from_pretrained(folder)  # checks every count and checksum
    lines, ticket = [("files", "whole")], None
    facts: dict[str, Any] = {"files": "whole"}
    if (folder / REWIND_NAME).is_file() or "rewind" in read_config(folder / CONFIG_NAME):
        ticket = Ticket.from_pretrained(folder)
        facts["start"] = str(ticket.start)
        lines.append(("weights to start from", facts["start"]))
    if args.model is None:
        lines.append(("pruned weights", "not checked: name a model with --model"))
    else:
        facts |= _check_model(args.model, mask, ticket)
        alive, differences = facts["pruned_weights_not_zero"], facts["differences"]
        lines.append(("mask", "fits"))
        lines.append(("pruned weights in the model", f"{alive:,} are not zero" if alive else "all zero"))
        if ticket is not None:
            lines.append(("model and ticket", "; ".join(differences) or "the same structure, class and configuration"))
    wrong = bool(facts.get("differences")) or (facts.get("pruned_weights_not_zero", 0) > 0 and not args.dense_base)
    table = markdown_table(["check", "result"], [list(line) for line in lines])
    return Outcome({"right": not wrong, **facts}, text=table, status=int(wrong))


def _check_model(source: str, mask: Mask, ticket: Ticket | None) -> dict[str, Any]:
    model = load_model(source)
    mask.check_fits(model)
    weights = {name: model.get_parameter(name) for name in mask}
    alive = sum(int((weights[name].detach()[~entry] != 0).sum()) for name, entry in mask.items())
    return {"pruned_weights_not_zero": alive, "differences": [] if ticket is None else ticket.differences(model)}
