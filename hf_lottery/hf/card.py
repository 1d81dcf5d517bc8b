"""The card of a ticket: what it is, how it was found, how to load it, and what it is not."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCardData

from ..mask import Mask
from ..report import level_table, markdown_table

_TEXT = """# A lottery ticket{of}

{kept:,} of {weights:,} prunable weights stay: sparsity **{sparsity:.2%}**.

## Load it

```python
from hf_lottery import SparseTrainer, Ticket

ticket = Ticket.from_pretrained("path/to/this/folder")
ticket.apply_(model)  # the rewind weights, pruned ones at zero
SparseTrainer(model, args, mask=ticket.mask, first_step=ticket.rewind.step, train_dataset=...).train()
```

## How it was found

{settings}

{levels}

## What stays, by parameter

{layers}

## Limits

The mask belongs to these rewind weights: on another initialization it is no winning ticket by itself. It makes the
network sparse, not faster: dense kernels multiply by zero at the same speed.
"""


def ticket_card(mask: Mask, info: dict[str, Any]) -> str:
    """The README.md of a ticket, with the metadata that the Hub reads."""
    data = ModelCardData(library_name="hf_lottery", tags=["lottery-ticket", "pruning", "sparsity"])
    architecture = info.get("architecture")
    settings = info.get("settings", {})
    layers = [
        [f"`{name}`", "x".join(map(str, mask[name].shape)), f"{sparsity:.2%}"]
        for name, sparsity in mask.layer_sparsities().items()
    ]
    text = _TEXT.format(
        of=f" of `{architecture}`" if architecture else "",
        kept=mask.kept,
        weights=mask.weights,
        sparsity=mask.sparsity,
        settings=markdown_table(["setting", "value"], [[key, f"`{value}`"] for key, value in settings.items()]),
        levels=level_table(info.get("history", [])),
        layers=markdown_table(["parameter", "shape", "sparsity"], layers),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"
