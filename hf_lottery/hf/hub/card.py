"""Cards: the README.md of a saved object. It says what the object is, how it was found, how to load it, its limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from ...masks.mask import Mask
from ...report import level_table, markdown_table
from ...storage.hub_mixin import REPO_ID
from .local_paths import LOCAL, is_local_path, without_local_paths

_BEGIN, _END = "<!-- hf_lottery: written by the library from here -->", "<!-- hf_lottery: to here -->"
_OWN = re.compile(re.escape(_BEGIN) + ".*?" + re.escape(_END), re.DOTALL)
_METADATA = re.compile(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_TAGS = ["lottery-ticket", "pruning", "sparsity"]

_TICKET = """# A lottery ticket{of}

{kept:,} of {weights:,} prunable weights stay: sparsity **{sparsity:.2%}**.

## Load it

```python
from hf_lottery import Ticket, keep_sparse

ticket = Ticket.from_pretrained("{source}")
{apply}  # at the rewind weights, pruned ones at zero
with keep_sparse(model, ticket.mask):  # in a loop of your own; pruned weights stay at zero
    train(model)
```

With the Trainer of transformers, instead of the last two lines:

```python
from hf_lottery import SparseTrainer

SparseTrainer(model, args, mask=ticket.mask, first_step=ticket.start.step, train_dataset=...).train()
```

{start}

## How it was found

{found}

## What stays, by parameter

{layers}

## Limits

The mask belongs to these rewind weights: on another initialization it is no winning ticket by itself. It makes the
network sparse, not faster: dense kernels multiply by zero at the same speed.
"""

_OTHER = """# A {kind}

```text
{text}
```

## Load it

```python
from {room} import {kind}

{variable} = {kind}.from_pretrained("{source}"{spec})
```

{layers}
"""


def ticket_card(
    mask: Mask, info: Mapping[str, Any], source: str, start: str, picture: str | None, *, builds: bool = True
) -> str:
    """Write the README.md of a ticket, with the metadata that the Hub reads.

    Args:
        mask: Which weights stay.
        info: ``architecture``, ``settings``, ``history``, ``base_model``, as far as they are known, and keys of your
            own. Local paths in it are left out.
        source: The folder or repository to load the ticket from.
        start: A sentence about the weights that the ticket starts from.
        picture: The file with the picture of accuracy against density, or None.
        builds: Whether the ticket can build its model.
    """
    info = without_local_paths(info)
    source = "path/to/this/folder" if is_local_path(source) else source
    base = info.get("base_model")
    base = base.get("id") if isinstance(base, Mapping) else base
    base = base if isinstance(base, str) and REPO_ID.fullmatch(base) else None
    data = ModelCardData(
        library_name="hf_lottery",
        tags=_TAGS,
        base_model=base,
        model_name=source.split('"')[0],  # without a subfolder
        eval_results=_results(info),
        base_model_relation="adapter" if base else None,
    )
    text = _TICKET.format(
        of=f" of `{info['architecture']}`" if info.get("architecture") else "",
        kept=mask.kept,
        weights=mask.weights,
        sparsity=mask.sparsity,
        source=source,
        apply="model = ticket.build_model()" if builds else "ticket.apply_(model)",
        start=start,
        found=_how_found(info, picture),
        layers=_layers(mask),
    )
    return _card(data, text)


def other_card(thing: Any, source: str) -> str:
    """Write the README.md of a mask, signed mask, series, permutation or match."""
    kind = type(thing).__name__
    mask = thing if isinstance(thing, Mask) else getattr(thing, "mask", None)
    data = ModelCardData(library_name="hf_lottery", tags=_TAGS)
    layers = f"## What stays, by parameter\n\n{_layers(mask)}" if isinstance(mask, Mask) else ""
    room = "hf_lottery.alignment" if kind == "Match" else "hf_lottery"
    spec = ", spec=spec" if kind in ("Match", "Permutation") else ""
    text = _OTHER.format(kind=kind, text=thing, room=room, variable="loaded", source=source, spec=spec, layers=layers)
    return _card(data, text)


def merge_cards(old: str, new: str) -> str:
    """Replace the library's part of a card, and keep everything that a person wrote.

    Args:
        old: The card of the repository. The library's part lies between two comments. Without them, all text is kept.
        new: A card made by this module.

    Raises:
        ValueError: The metadata of the old card cannot be read.
    """
    theirs, text = _split(old)
    ours, _ = _split(new)
    metadata = {**ours, **theirs}
    tags = metadata.get("tags") or []
    metadata["tags"] = sorted({*map(str, [tags] if isinstance(tags, str) else tags), *_TAGS})
    metadata.update((key, value) for key, value in ours.items() if key in ("library_name", "model-index"))
    own = _OWN.search(new)
    return _front(metadata) + _OWN.sub(lambda _: own[0] if own else "", text, count=1)


def _split(card: str) -> tuple[dict[str, Any], str]:
    """The metadata at the beginning of a card, and the text after it."""
    found = _METADATA.match(card)
    if found is None:
        return {}, card
    try:
        metadata = yaml.safe_load(found[1]) or {}
    except yaml.YAMLError as error:
        received = " ".join(str(error).split())
        raise ValueError(f"the metadata of README.md must be YAML; received: {received}. Mend it there.") from error
    if not isinstance(metadata, dict):
        raise ValueError(
            f"the metadata of README.md must be names with values; received {metadata!r:.80}. Mend it there."
        )
    return metadata, card[found.end() :]


def _card(data: ModelCardData, text: str) -> str:
    return _front(data.to_dict()) + f"\n{_BEGIN}\n\n{text}\n{_END}\n"


def _front(metadata: Mapping[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)}---\n"


def _how_found(info: Mapping[str, Any], picture: str | None) -> str:
    """The levels and settings of the search, and what else is known; or that nothing is."""
    shown = f"![accuracy against the fraction of weights that stays]({picture})" if picture else ""
    others = {key: value for key, value in info.items() if key not in ("history", "settings", "architecture")}
    parts = [
        shown,
        level_table(info.get("history") or []),
        _facts("setting", info.get("settings") or {}),
        _facts("known", {key: value for key, value in others.items() if value not in (None, "", [], {})}),
    ]
    return "\n\n".join(filter(None, parts)) or "This was not recorded when the ticket was saved."


def _facts(header: str, facts: Mapping[str, Any]) -> str:
    rows = [[str(key), f"`{value!s:.200}`".replace("\n", " ").replace("|", "\\|")] for key, value in facts.items()]
    return markdown_table([header, "value"], rows)


def _layers(mask: Mask) -> str:
    rows = [
        [f"`{name}`", "x".join(map(str, mask[name].shape)), f"{sparsity:.2%}"]
        for name, sparsity in mask.layer_sparsities().items()
    ]
    return markdown_table(["parameter", "shape", "sparsity"], rows)


def _results(info: Mapping[str, Any]) -> list[EvalResult] | None:
    """The accuracy of the last level as a result for the Hub; None if task or data set is not known."""
    settings, history = info.get("settings") or {}, info.get("history") or []
    accuracy = history[-1]["metrics"].get("eval_accuracy") if history else None
    if accuracy is None or not {"task", "dataset_name"} <= settings.keys() or settings["dataset_name"] == LOCAL:
        return None
    name = str(settings["dataset_name"])
    task = settings["task"]
    return [
        EvalResult(task_type=task, dataset_type=name, dataset_name=name, metric_type="accuracy", metric_value=accuracy)
    ]
