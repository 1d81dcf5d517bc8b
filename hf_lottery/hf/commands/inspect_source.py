"""Show what a mask, signed mask, series, ticket or permutation holds."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...masks.config import CONFIG_NAME, read_config
from ...masks.file import MASK_NAME
from ...masks.mask import Mask
from ...report import level_table, markdown_table
from ...structured.unit_file import read_units
from ..hub.ticket_info import check_info
from .outcome import Outcome
from .plain_parser import PlainParser
from .sources import find_source

# As in symmetry.permutation_file, which takes a while to import.
_PERMUTATION = ("permutation_config.json", "permutation_spec.json", "permutation.safetensors")
_KEYS = ("level", "architecture", "base_model", "parents", "permutation")


def main(arguments: Sequence[str]) -> Outcome:
    """Run the command.

    Args:
        arguments: The command line.
    """
    parser = PlainParser("inspect")
    parser.add_source("source")
    parser.add_json()
    args = parser.parse(arguments)
    try:
        folder = find_source(args.source, args, _PERMUTATION)
        if not (folder / _PERMUTATION[0]).is_file():
            return _inspect_mask(args)
    except FileNotFoundError:
        return _inspect_mask(args)
    return _inspect_permutation(folder)


def _inspect_permutation(folder: Path) -> Outcome:
    from ...symmetry.permutation_file import read_permutation

    fingerprint, entries = read_permutation(folder)
    groups = {name: list(entry.shape) for name, entry in entries.items()}
    table = markdown_table(["group", "shape"], [[name, _shape(shape)] for name, shape in groups.items()])
    return Outcome(
        {"kind": "permutation", "spec": fingerprint, "groups": groups},
        text=f"Permutation of spec {fingerprint[:12]}\n\n{table}",
    )


def _inspect_mask(args: argparse.Namespace) -> Outcome:
    folder = find_source(args.source, args, (CONFIG_NAME, MASK_NAME))
    mask, config = Mask.from_pretrained(folder), read_config(folder / CONFIG_NAME)
    if "units" in config:
        read_units(config["units"], folder / CONFIG_NAME)  # which checks them
    check_info(info := config.get("info", {}))
    facts: dict[str, Any] = {
        "kind": f"ticket, {config['mask_type']} mask" if "rewind" in config else f"{config['mask_type']} mask",
        "masked parameters": len(mask),
        "weights": mask.weights,
        "kept": mask.kept,
        "sparsity": mask.sparsity,
        "bytes": (folder / MASK_NAME).stat().st_size,
        "sha256 of the mask": mask.sha256(),
        **{key: info[key] for key in _KEYS if info.get(key)},
        **_facts(config),
    }
    layers = mask.layer_sparsities()
    shapes = {name: list(mask[name].shape) for name in layers}
    tables = [markdown_table(["", str(args.source)], [[key, _shown(key, value)] for key, value in facts.items()])]
    if info.get("history"):
        tables.append(level_table(info["history"]))
    rows = [[name, _shape(shapes[name]), f"{sparsity:.4f}"] for name, sparsity in layers.items()]
    tables.append(markdown_table(["parameter", "shape", "sparsity"], rows))
    found = {key.replace(" ", "_"): value for key, value in facts.items()}
    found["parameters"] = {name: {"shape": shapes[name], "sparsity": layers[name]} for name in layers}
    return Outcome({**found, "history": info.get("history") or []}, text="\n\n".join(tables))


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that only tickets, series or signed masks have."""
    facts: dict[str, Any] = {}
    if rewind := config.get("rewind"):
        how = rewind.get("repo_id") or (f"seed {rewind['seed']}" if "seed" in rewind else "by value")
        facts["starts from"] = f"step {rewind.get('step', 0)}, {how}, sha256 {str(rewind.get('sha256'))[:12]}"
    if units := config.get("units"):
        groups = units["groups"].values()
        kept, count = sum(group["kept"] for group in groups), sum(math.prod(group["shape"]) for group in groups)
        facts["units"] = f"{kept:,} of {count:,} kept, in {len(groups)} groups"
    if config["mask_type"] == "series":
        facts["levels"] = config["levels"]
    if signs := config.get("signs"):
        facts["signed parameters"] = len(signs)
        facts["negative signs"] = sum(spec["negative"] for spec in signs.values())
        facts["kept weights that are 0"] = sum(spec["zeros"] for spec in signs.values())
    return facts


def _shown(key: str, value: Any) -> str:
    if key == "sparsity":
        return f"{value:.4f}"
    if key == "sha256 of the mask":
        return value[:12]
    return f"{value:,}" if isinstance(value, int) else str(value)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
