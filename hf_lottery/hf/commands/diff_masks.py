"""Compare two masks, parameter by parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...masks.config import CONFIG_NAME
from ...masks.file import MASK_NAME
from ...masks.mask import Mask
from ...report import markdown_table
from .outcome import Outcome
from .plain_parser import PlainParser
from .sources import find_source

_NUMBERS = ("sparsity_a", "sparsity_b", "overlap", "chance")


def main(arguments: Sequence[str]) -> Outcome:
    """Run the command.

    Args:
        arguments: The command line.
    """
    parser = PlainParser("diff")
    parser.add_source("a", "b")
    parser.add_json()
    args = parser.parse(arguments)
    a, b = (Mask.from_pretrained(find_source(source, args, (CONFIG_NAME, MASK_NAME))) for source in (args.a, args.b))
    found = {name: _compare(name, a, b) for name in [*a, *(name for name in b if name not in a)]}
    rows = [_row(name, facts) for name, facts in found.items()]
    facts: dict[str, Any] = {"equal": a == b, "parameters": found}
    if all("overlap" in one for one in found.values()):
        facts["all"] = _overlap(a, b)
        rows.append(_row("all", facts["all"]))
    header = ["parameter", str(args.a), str(args.b), "overlap", "chance", "equal"]
    return Outcome(facts, text=markdown_table(header, rows), status=int(not facts["equal"]))


def _compare(name: str, a: Mask, b: Mask) -> dict[str, Any]:
    if name in a and name in b and a[name].shape == b[name].shape:
        return _overlap(Mask({name: a[name]}), Mask({name: b[name]}))
    shapes = [list(mask[name].shape) if name in mask else None for mask in (a, b)]
    return {"equal": False, "shape_a": shapes[0], "shape_b": shapes[1]}


def _overlap(a: Mask, b: Mask) -> dict[str, Any]:
    overlap = a.overlap(b)
    return {
        "equal": a == b, "sparsity_a": a.sparsity, "sparsity_b": b.sparsity,
        "overlap": overlap.iou, "chance": overlap.chance,
    }  # fmt: skip


def _row(name: str, facts: dict[str, Any]) -> list[str]:
    equal = "yes" if facts["equal"] else "no"
    if "overlap" in facts:
        return [name, *(f"{facts[key]:.4f}" for key in _NUMBERS), equal]
    return [name, *(str(facts[key] or "-") for key in ("shape_a", "shape_b")), "-", "-", equal]
