"""The command line ``hf-lottery``: inspect masks and tickets, compare them, verify them, and pack a sparse model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ...masks.config import CONFIG_NAME, read_config
from ...masks.file import MASK_NAME
from ...masks.mask import Mask
from ...report import level_table, markdown_table
from ...storage.hub_mixin import find_folder
from ...symmetry.permutation_file import CONFIG_NAME as PERMUTATION_CONFIG
from ...symmetry.permutation_file import read_permutation
from ..hub.checkpoint import load_model, mask_from_checkpoint
from ..hub.ticket import Ticket
from ..hub.ticket_files import check_info
from ..trainers.run_folder import REWIND_NAME
from .errors import one_line
from .launch import check_output


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``hf-lottery``.

    Args:
        arguments: The command line. Default: that of this process.

    Returns:
        The exit status: 0, or 1 if ``verify`` finds a difference or a pruned weight that is not zero, or if something
        is wrong, which one line on standard error says.
    """
    parser = argparse.ArgumentParser(
        prog="hf-lottery", description="Masks and lottery tickets, in folders and on the Hub."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    for command, help, *sources in (
        (_inspect, "show what a mask, signed mask, series, ticket or permutation holds", "source"),
        (_diff, "compare two masks, parameter by parameter", "a", "b"),
        (_verify, "check files, and that a model fits and is pruned; the exit status is 1 if not", "source"),
        (_pack, "save the zeros of a sparse model as a mask", "model"),
    ):
        sub = commands.add_parser(command.__name__[1:], help=help)
        for source in sources:
            sub.add_argument(source, help="a folder, or a repository on the Hub")
        sub.add_argument("--revision", help="branch, tag or commit on the Hub")
        sub.add_argument("--subfolder", default="", help="folder inside the repository or folder")
        sub.set_defaults(run=command)
        if command is _verify:
            sub.add_argument("--model", help="a saved transformers model (folder, or repository); without, only files")
            sub.add_argument(
                "--dense-base", action="store_true", help="the model is dense: pruned weights need not be zero"
            )
        if command is _pack:
            sub.add_argument("--output", required=True, help="folder to write the mask to")
            sub.add_argument("--include", action="append", help="regular expression: names of the weights to cover")
            sub.add_argument("--exclude", action="append", help="regular expression: names of the weights to leave out")
    parsed = parser.parse_args(arguments)
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what is wrong is said in one line
    try:
        return parsed.run(parsed)
    except Exception as error:
        if (message := one_line(error)) is None:
            raise
        print(f"hf-lottery: {message}", file=sys.stderr)
        return 1


def _inspect(args: argparse.Namespace) -> int:
    where = _where(args)
    try:
        folder = find_folder(args.source, (PERMUTATION_CONFIG,), **where)
        fingerprint, entries = read_permutation(folder)
    except FileNotFoundError:
        return _inspect_mask(args)
    moved = [[name, "x".join(map(str, entry.shape))] for name, entry in entries.items()]
    print(f"Permutation of spec {fingerprint[:12]}\n\n{markdown_table(['group', 'shape'], moved)}")
    return 0


def _inspect_mask(args: argparse.Namespace) -> int:
    folder = find_folder(args.source, Ticket.FILES, optional=Ticket.OPTIONAL_FILES, **_where(args))
    mask, config = Mask.from_pretrained(folder), read_config(folder / CONFIG_NAME)
    check_info(info := config.get("info", {}))
    facts = {
        "kind": f"ticket, {config['mask_type']} mask" if "rewind" in config else f"{config['mask_type']} mask",
        "masked parameters": len(mask),
        "weights": f"{mask.weights:,}",
        "kept": f"{mask.kept:,}",
        "sparsity": f"{mask.sparsity:.4f}",
        "bytes": f"{(folder / MASK_NAME).stat().st_size:,}",
        "sha256 of the mask": mask.sha256()[:12],
        **{
            key: info[key] for key in ("level", "architecture", "base_model", "parents", "permutation") if info.get(key)
        },
        **_facts(config),
    }
    print(markdown_table(["", str(args.source)], [[key, str(value)] for key, value in facts.items()]))
    if info.get("history"):
        print(f"\n{level_table(info['history'])}")
    rows = [[name, "x".join(map(str, mask[name].shape)), f"{s:.4f}"] for name, s in mask.layer_sparsities().items()]
    print(f"\n{markdown_table(['parameter', 'shape', 'sparsity'], rows)}")
    return 0


def _facts(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts that only tickets, series or signed masks have."""
    facts = {}
    if rewind := config.get("rewind"):
        how = rewind.get("repo_id") or (f"seed {rewind['seed']}" if "seed" in rewind else "by value")
        facts["starts from"] = f"step {rewind.get('step', 0)}, {how}, sha256 {str(rewind.get('sha256'))[:12]}"
    if config["mask_type"] == "series":
        facts["levels"] = str(config["levels"])
    if signs := config.get("signs"):
        facts["signed parameters"] = str(len(signs))
        facts["negative signs"] = f"{sum(spec['negative'] for spec in signs.values()):,}"
        facts["kept weights that are 0"] = f"{sum(spec['zeros'] for spec in signs.values()):,}"
    return facts


def _diff(args: argparse.Namespace) -> int:
    a, b = (Mask.from_pretrained(source, **_where(args)) for source in (args.a, args.b))
    rows = []
    for name in [*a, *(name for name in b if name not in a)]:
        if name in a and name in b and a[name].shape == b[name].shape:
            one, other = Mask({name: a[name]}), Mask({name: b[name]})
            overlap = one.overlap(other)
            same = "yes" if one == other else "no"
            rows.append(
                [
                    name,
                    f"{one.sparsity:.4f}",
                    f"{other.sparsity:.4f}",
                    f"{overlap.iou:.4f}",
                    f"{overlap.chance:.4f}",
                    same,
                ]
            )
        else:
            shapes = [str(list(mask[name].shape)) if name in mask else "-" for mask in (a, b)]
            rows.append([name, *shapes, "-", "-", "no"])
    if all(row[3] != "-" for row in rows):
        overlap, same = a.overlap(b), "yes" if a == b else "no"
        rows.append(
            ["all", f"{a.sparsity:.4f}", f"{b.sparsity:.4f}", f"{overlap.iou:.4f}", f"{overlap.chance:.4f}", same]
        )
    print(markdown_table(["parameter", str(args.a), str(args.b), "overlap", "chance", "equal"], rows))
    return 0


def _verify(args: argparse.Namespace) -> int:
    if args.dense_base and args.model is None:
        raise ValueError("--dense-base must come with --model; received no model. Name the dense model.")
    folder = find_folder(args.source, Ticket.FILES, optional=Ticket.OPTIONAL_FILES, **_where(args))
    mask = Mask.from_pretrained(folder)  # checks every count and checksum
    lines, wrong, ticket = [("files", "whole")], False, None
    if (folder / REWIND_NAME).is_file() or "rewind" in read_config(folder / CONFIG_NAME):
        ticket = Ticket.from_pretrained(folder)
        lines.append(("weights to start from", str(ticket.start)))
    if args.model is None:
        lines.append(("pruned weights", "not checked: name a model with --model"))
    else:
        model = load_model(args.model)
        mask.check_fits(model)
        lines.append(("mask", "fits"))
        weights = {name: model.get_parameter(name) for name in mask}
        alive = sum(int((weights[name].detach()[~entry] != 0).sum()) for name, entry in mask.items())
        lines.append(("pruned weights in the model", f"{alive:,} are not zero" if alive else "all zero"))
        differences = [] if ticket is None else ticket.differences(model)
        if ticket is not None:
            lines.append(("model and ticket", "; ".join(differences) or "the same structure, class and configuration"))
        wrong = bool(differences) or (alive > 0 and not args.dense_base)
    print(markdown_table(["check", "result"], [list(line) for line in lines]))
    return int(wrong)


def _pack(args: argparse.Namespace) -> int:
    check_output(args.output)
    mask = mask_from_checkpoint(args.model, include=args.include, exclude=args.exclude, **_where(args))
    mask.save_pretrained(args.output)
    size = (Path(args.output) / MASK_NAME).stat().st_size
    print(f"{mask}\n{size:,} bytes in {args.output}")
    return 0


def _where(args: argparse.Namespace) -> Any:
    return {key: value for key in ("revision", "subfolder") if (value := getattr(args, key))}


if __name__ == "__main__":
    sys.exit(main())
