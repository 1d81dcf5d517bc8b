"""Cards: the README.md of a saved object, with metadata for the Hub, and a part of its own beside a person's text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from transformers import PreTrainedModel

from ...masks.mask import Mask
from ...report import markdown_table
from .auto_classes import auto_class

_BEGIN, _END = "<!-- hf_lottery: written by the library from here -->", "<!-- hf_lottery: to here -->"
_OWN = re.compile(re.escape(_BEGIN) + ".*?" + re.escape(_END), re.DOTALL)
_METADATA = re.compile(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
TAGS = ["lottery-ticket", "pruning", "sparsity"]

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


def other_card(thing: Any, source: str) -> str:
    """Write the README.md of a mask, signed mask, series, permutation or match."""
    kind = type(thing).__name__
    mask = thing if isinstance(thing, Mask) else getattr(thing, "mask", None)
    data = ModelCardData(library_name="hf_lottery", tags=TAGS)
    layers = f"## What stays, by parameter\n\n{parameters(mask)}" if isinstance(mask, Mask) else ""
    room = "hf_lottery.alignment" if kind == "Match" else "hf_lottery"
    spec = ", spec=spec" if kind in ("Match", "Permutation") else ""
    text = _OTHER.format(kind=kind, text=thing, room=room, variable="loaded", source=source, spec=spec, layers=layers)
    return whole_card(data, text)


def merged_card(path: Path, new: str) -> str | None:
    """Return the text to write where a card may lie already; None if it is one that a person wrote."""
    if not path.exists():
        return new
    old = path.read_text(encoding="utf-8", errors="replace")  # no damaged letter may end a search
    return merge_cards(old, new) if _OWN.search(old) else None


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
    metadata["tags"] = sorted({*map(str, [tags] if isinstance(tags, str) else tags), *TAGS})
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


def whole_card(data: ModelCardData, text: str) -> str:
    """Make a card of metadata and text, which is marked as the library's part."""
    return _front(data.to_dict()) + f"\n{_BEGIN}\n\n{text}\n{_END}\n"


def _front(metadata: Mapping[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True)}---\n"


def parameters(mask: Mask) -> str:
    """Make the table of what stays of each parameter."""
    rows = [
        [f"`{name}`", "x".join(map(str, mask[name].shape)), f"{sparsity:.2%}"]
        for name, sparsity in mask.layer_sparsities().items()
    ]
    return markdown_table(["parameter", "shape", "sparsity"], rows)


def loading_code(source: str, stored: type[PreTrainedModel], read: Mapping[str, str]) -> str:
    """Make the code that loads a model with transformers alone.

    Args:
        source: The folder or repository.
        stored: The model's class.
        read: Auto class -> variable, for its tokenizer or image processor.
    """
    loader = auto_class(stored) or stored.__name__
    head = f"from transformers import {', '.join(sorted([loader, *read]))}"
    if not stored.__module__.startswith("transformers."):
        head = f"import {stored.__module__}  # registers the class\n{head}"
    named = {"model": loader, **{name: kind for kind, name in read.items()}}
    return code_block(head, [f'{name} = {kind}.from_pretrained("{source}")' for name, kind in named.items()])


def code_block(head: str, lines: list[str]) -> str:
    """Make a block of Python: imports, an empty line, and the other lines."""
    body = "\n".join(lines)
    return f"```python\n{head}\n\n{body}\n```"
