"""Cut units out of a network: those that its ticket removed, those that are dead, or those with small weights.

The source is a ticket, a sparse model with its mask beside it, or a plain model with ``--sparsity``. What is saved is a
smaller network with proven outputs, which trains, exports and serves as any other. ``hf-lottery shrink`` runs it.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ...masks.mask import Mask
from ...pruning.scores import magnitude, score_weights
from ...report import markdown_table
from ...structured import Shrunk, UnitMask, prune_units
from ...structured.shrinking import shrunk
from ...structured.small_network import SHRUNK_NAME
from ...symmetry.discovery import discover
from ...symmetry.spec import PermutationSpec
from ..hub.checkpoint import load_model
from ..hub.processing import saved_processing
from ..hub.shrunk import check_no_model, save_shrunk
from ..hub.sparse_model import SparseModel
from ..hub.ticket import Ticket
from ..hub.transfer import model_folder
from ..prunable_weights import prunable
from ..tasks import paper_networks  # noqa: F401  # registers the networks that find trains
from ..tasks.example_inputs import example_inputs
from ..trainers.unit_pruning import chosen_groups
from .launch import check_output
from .outcome import Outcome
from .plain_parser import PlainParser
from .sources import where


def main(arguments: Sequence[str]) -> Outcome:
    """Run the command.

    Args:
        arguments: The command line.
    """
    parser = PlainParser("shrink")
    parser.add_source("source")
    parser.add_argument("--output", required=True, help="Folder to write the small network to.")
    parser.add_argument("--sparsity", type=float, help="Fraction of units to remove, those with the smallest weights.")
    parser.add_argument("--groups", action="append", help="Regular expression: with --sparsity, groups to prune.")
    parser.add_argument("--multiple", type=int, default=1, help="With --sparsity: keep multiples of this, such as 8.")
    parser.add_json()
    args = parser.parse(arguments)
    for name, default in (("groups", None), ("multiple", 1)):
        if args.sparsity is None and getattr(args, name) != default:
            parser.error(f"--{name} must come with --sparsity; received {getattr(args, name)}. Say how many units go.")
    check_output(args.output, fresh=True)
    check_no_model(args.output)
    model, mask, processing = load_source(args.source, where(args))
    inputs = example_inputs(model)
    spec = discover(model, inputs)
    found = shrunk(model, spec, units_to_cut(args, model, spec, mask), inputs=inputs)
    save_shrunk(found, args.output, large=model, processing=processing)
    return show_shrunk(found, model, Path(args.output), plain=found.config_fits)


def load_source(source: str, place: Any) -> tuple[PreTrainedModel, Mask | None, Mapping[str, bytes]]:
    """Load a ticket at its start, a sparse model with its mask, or a plain model without one.

    Args:
        source: A folder, or a repository on the Hub.
        place: Where in it, as ``from_pretrained`` takes it.

    Returns:
        The network, its mask, and the files of its tokenizer or image processor.
    """
    try:
        ticket = Ticket.from_pretrained(source, **place)
        return ticket.build_model(), ticket.mask, ticket.processing
    except FileNotFoundError:  # it holds no mask, or no weights to start from
        pass
    try:
        sparse = SparseModel.from_pretrained(source, **place)
        return sparse.model.eval(), sparse.mask, sparse.processing
    except FileNotFoundError:
        pass
    folder = model_folder(source, **place)
    if (folder / SHRUNK_NAME).exists():
        raise ValueError(
            f"the source must be a network as its config.json describes it; received {source}, which was cut before. "
            "Cut the large network again."
        )
    return load_model(source, **place).eval(), None, saved_processing(folder)


def units_to_cut(args: argparse.Namespace, model: nn.Module, spec: PermutationSpec, mask: Mask | None) -> Mask:
    """Choose the units to cut: those of small weights, those of the mask, or those that the zeros leave dead.

    Args:
        args: The command line.
        model: The network.
        spec: Its symmetries.
        mask: Its mask, if it has one.

    Raises:
        ValueError: There is nothing that says which units go.
    """
    if args.sparsity is not None:
        if isinstance(mask, UnitMask):
            raise ValueError(
                "sparsity must be left out for a structured ticket, which says itself which units go; received "
                f"{args.sparsity}. Leave it out."
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a weight that is computed from others is left out
            scores = score_weights(dict(model.named_parameters()), magnitude)
        return prune_units(
            model,
            spec,
            scores,
            sparsity=args.sparsity,
            include=chosen_groups(spec, args.groups),
            multiple=args.multiple,
        )
    if mask is not None:
        return mask
    zeros = Mask.from_model(prunable(model))
    if not zeros.sparsity:
        raise ValueError(
            f"the source must be a ticket or a sparse model, or come with --sparsity; received {args.source}, which is "
            "dense. Pass --sparsity 0.5 to remove half of its units."
        )
    return zeros


def show_shrunk(found: Shrunk, large: nn.Module, folder: Path, *, plain: bool) -> Outcome:
    """Return a table of what was cut, what was kept whole and why, and how much smaller the network is.

    Args:
        found: What was cut.
        large: The network before.
        folder: Where the small network was saved.
        plain: Whether transformers loads it by itself.
    """
    rows = [
        [row.name, str(row.size), str(row.kept), row.reason or ""]
        for row in sorted(found.report, key=lambda row: row.reason is not None)
    ]
    sizes = {"parameters": found.parameters, "bytes": (_bytes(large), _bytes(found.model))}
    table = [[name, f"{old:,}", f"{new:,}", f"{new / old:.1%}"] for name, (old, new) in sizes.items()]
    call = f'AutoModel.from_pretrained("{folder}")' if plain else f'load_shrunk("{folder}")'
    texts = [
        markdown_table(["group", "units", "kept", "kept whole because"], rows),
        markdown_table(["", "before", "after", "left"], table),
        f"largest change of an output: {found.error[0]:.1e} in float64, {found.error[1]:.1e} in its own precision\n"
        f"small network: {folder}, loaded by {call}",
    ]
    facts = {
        "model": folder,
        "loaded_by": "transformers" if plain else "load_shrunk",
        "groups": {row.name: {"units": row.size, "kept": row.kept, "reason": row.reason} for row in found.report},
        **{name: {"before": old, "after": new} for name, (old, new) in sizes.items()},
        "error": {"float64": found.error[0], "own": found.error[1]},
    }
    return Outcome(facts, text="\n\n".join(texts))


def _bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])
