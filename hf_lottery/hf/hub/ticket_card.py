"""The card of a ticket, in the order in which a reader asks: what, how good, how to load, how it was found, limits."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedModel

from ...masks.mask import Mask
from ...report import Table, level_table, markdown_table
from ...report.tables import number_text
from ...storage.hub_mixin import REPO_ID
from ...structured import UnitMask
from ...training.snapshot import Snapshot
from .card import TAGS, code_block, loading_code, parameters, whole_card
from .difference import Difference
from .local_paths import LOCAL, is_local_path, without_local_paths
from .processing import loaders
from .reference import Reference
from .ticket_info import base_id

_PIPELINES = {"causal-lm": "text-generation"}  # the other tasks have the Hub's own names
LIMITS = (
    "The mask belongs to these weights: on another initialization it is no winning ticket by itself. It makes the "
    "network sparse, not faster: dense kernels multiply by zero at the same speed."
)
UNIT_LIMITS = (
    "Which units stay belongs to these weights: on another initialization it is no winning ticket by itself. The "
    "masked network is as large as the dense one; `hf-lottery shrink` cuts the units out, and what is left is smaller "
    "and faster."
)


def ticket_card(
    mask: Mask,
    start: Snapshot | Reference | Difference,
    info: Mapping[str, Any],
    source: str,
    *,
    builds: bool,
    stored: type[PreTrainedModel] | None,
    processing: Mapping[str, bytes],
    picture: str | None,
) -> str:
    """Write the README.md of a ticket, with the metadata that the Hub reads.

    Args:
        mask: Which weights stay.
        start: The weights that training starts from.
        info: What the ticket knows of itself; see :class:`~hf_lottery.Ticket`. Local paths in it are left out.
        source: The folder or repository to load the ticket from.
        builds: Whether the ticket can build its model.
        stored: The class of the model that lies beside the ticket, if one does.
        processing: The files of its tokenizer or image processor.
        picture: The file with the picture of accuracy against density, or None.
    """
    info = without_local_paths(info)
    source = "." if is_local_path(source) else source
    loading = _how_to_load(start, info, source, builds=builds, stored=stored, processing=processing)
    parts = [
        _what(mask, start, info),
        f"## How good it is\n\n{_how_good(info, picture)}",
        f"## How to load it\n\n{loading}",
        f"## How it was found\n\n{_how_found(info)}",
        f"<details><summary>What stays, by parameter</summary>\n\n{parameters(mask)}\n\n</details>",
        f"## Limits\n\n{limits_of(mask)}",
    ]
    return whole_card(_metadata(info, source, loads=stored is not None), "\n\n".join(parts) + "\n")


def _metadata(info: Mapping[str, Any], source: str, *, loads: bool) -> ModelCardData:
    settings = info.get("settings") or {}
    base, task, data = base_id(info), settings.get("task"), settings.get("dataset_name")
    base = base if base and REPO_ID.fullmatch(base) else None
    return ModelCardData(
        library_name="hf_lottery",
        tags=TAGS,
        base_model=base,
        base_model_relation="adapter" if base else None,
        pipeline_tag=_PIPELINES.get(str(task), task) if loads and isinstance(task, str) else None,
        datasets=[data] if isinstance(data, str) and "/" in data and REPO_ID.fullmatch(data) else None,
        model_name="ticket" if source == "." else source.split('"')[0],  # without a subfolder
        eval_results=_results(info),
    )


def _results(info: Mapping[str, Any]) -> list[EvalResult] | None:
    """The accuracy of the last level as a result for the Hub; None if task or data set is not known."""
    settings, history = info.get("settings") or {}, info.get("history") or []
    accuracy = history[-1]["metrics"].get("eval_accuracy") if history else None
    name, task = _known(settings.get("dataset_name")), settings.get("task")
    if accuracy is None or not isinstance(name, str) or not isinstance(task, str):
        return None
    return [
        EvalResult(task_type=task, dataset_type=name, dataset_name=name, metric_type="accuracy", metric_value=accuracy)
    ]


def _what(mask: Mask, start: Snapshot | Reference | Difference, info: Mapping[str, Any]) -> str:
    settings = info.get("settings") or {}
    data, base = _known(settings.get("dataset_name")), base_id(info)
    of = f" of `{info['architecture']}`" if info.get("architecture") else ""
    found = f"found on `{data}`" if data else ""
    after = f"`{base}`" if base else ""
    origin = " ".join(part for part in (found, f"from {after}" if after else "") if part)
    if isinstance(start, Snapshot):
        when = f"after {start.step} optimizer steps" if start.step else "before the first step"
        held = f"weights that training starts from, those {when}"
    elif isinstance(start, Difference):
        held = f"weights that {start.step} optimizer steps of fine-tuning changed in the base model"
    elif start.repo_id is not None:
        held = f"name of the weights that training starts from, those of `{start.repo_id}` at `{start.revision}`"
    else:
        held = f"seed of the weights that training starts from, {start.seed}"
    return f"# A lottery ticket{of}\n\n{_stays(mask)}{f', {origin}' if origin else ''}. It is a mask, and the {held}."


def _stays(mask: Mask) -> str:
    if isinstance(mask, UnitMask):  # its sparsity is that of its search
        return (
            f"{mask.kept_units:,} of {mask.unit_count:,} units in {len(mask.units)} groups stay, and with them "
            f"{mask.kept:,} of {mask.weights:,} weights: sparsity **{mask.unit_sparsity:.2%}** of the units"
        )
    return f"{mask.kept:,} of {mask.weights:,} prunable weights stay: sparsity **{mask.sparsity:.2%}**"


def limits_of(mask: Mask) -> str:
    """Return what a ticket does not give, which depends on whether whole units go.

    Args:
        mask: Its mask.
    """
    return UNIT_LIMITS if isinstance(mask, UnitMask) else LIMITS


def _how_good(info: Mapping[str, Any], picture: str | None) -> str:
    """What was measured: the comparison with its controls, or the levels of the search alone."""
    table, text = measured(info)
    shown = f"![accuracy against the fraction of weights that stays]({picture})" if picture else ""
    return "\n\n".join(filter(None, [markdown_table(*table), text, shown]))


def name_of(architecture: str, info: Mapping[str, Any]) -> str:
    """Return the name of a network and of what it trains on, such as "LeNet on digits".

    Args:
        architecture: The class of the network; what it is for is left out.
        info: What is known of it, with its settings. A folder of data is not named.
    """
    network, data = re.sub(r"For[A-Z]\w*$", "", architecture), (info.get("settings") or {}).get("dataset_name")
    return f"{network} on {data}" if data and not is_local_path(str(data), names=True) else network


def measured(info: Mapping[str, Any]) -> tuple[Table, str]:
    """Return what a search measured, as a table, and the words that belong to it.

    Args:
        info: What the ticket knows of itself.
    """
    history, comparison = info.get("history") or [], info.get("comparison")
    seed = (info.get("settings") or {}).get("seed")
    one = f"one seed ({seed})" if seed is not None else "one seed"
    if comparison:
        text = f"{comparison['text']}\nThe ticket itself comes from one search with {one}."
        return Table(comparison["header"], comparison["rows"]), text
    names = [m for m in ("eval_accuracy", "eval_loss") if history and m in history[-1]["metrics"]]
    if not names:
        return Table([], []), "This was not measured."
    first, last = history[0], history[-1]
    rows = [
        [what, f"{record['sparsity']:.2%}", *(number_text(record["metrics"].get(name)) for name in names)]
        for what, record in (("dense, level 0", first), (f"this ticket, level {last['level']}", last))
    ]
    header = ["trained network", "sparsity", *(name.removeprefix("eval_") for name in names)]
    text = (
        f"Measured in the search alone: {one}, one training of each. This table has no random mask and no new "
        "initialization; `--compare 5` of the search adds them."
    )
    return Table(header, rows if len(history) > 1 else rows[1:]), text


def _how_to_load(
    start: Snapshot | Reference | Difference,
    info: Mapping[str, Any],
    source: str,
    *,
    builds: bool,
    stored: type[PreTrainedModel] | None,
    processing: Mapping[str, bytes],
) -> str:
    parts = ["The code runs in the folder of this card."] if source == "." else []
    if stored is not None:
        code = loading_code(source, stored, loaders(processing))
        parts.append(f"With transformers alone: the network where training starts, pruned weights at zero.\n\n{code}")
    elif isinstance(start, Reference):
        does = "draws them again from the seed" if start.repo_id is None else "downloads them from the Hub"
        parts.append(
            f"The weights are not stored: `build_model()` {does}, and proves them by their hash. "
            "`AutoModel.from_pretrained` cannot load them from here."
        )
    elif isinstance(start, Difference):
        parts.append(
            "Only what differs from the base model is stored: `ticket.apply_(base)` turns the base into the fine-tuned "
            "model, and proves the base by its hash. `AutoModel.from_pretrained` cannot load it from here."
        )
    parts.append(f"To train it:\n\n{_training_code(source, builds)}")
    parts.append(
        "With a Trainer of transformers or trl, pass `callbacks=[SparsityCallback(ticket.mask)]`; `SparseTrainer(..., "
        "mask=ticket.mask, first_step=ticket.start.step)` also goes on with the schedule where the ticket starts."
    )
    settings = info.get("settings") or {}
    if builds and _known(settings.get("dataset_name")) and settings.get("task") and '"' not in source:
        command = f"hf-lottery train --ticket {source} --init seed:7 --output_dir seed-7"
        parts.append(f"Its mask on another seed:\n\n```bash\n{command}\n```")
    return "\n\n".join(parts)


def _training_code(source: str, builds: bool) -> str:
    lines = [f'ticket = Ticket.from_pretrained("{source}")']
    if not builds:
        code = code_block("from hf_lottery import Ticket", [*lines, "print(ticket)"])
        return f"{code}\n\nBuild the network yourself, and call `ticket.apply_(model)`."
    lines += [
        "model = ticket.build_model()  # where training starts, pruned weights at zero",
        "with keep_sparse(model, ticket.mask):  # they stay at zero",
        "    ...  # train the model",
    ]
    return code_block("from hf_lottery import Ticket, keep_sparse", lines)


def _how_found(info: Mapping[str, Any]) -> str:
    """The levels of the search and what was set for it; or that nothing is known."""
    library = ("history", "settings", "architecture", "defined_in", "base_model", "comparison", "about")
    others = {key: value for key, value in info.items() if key not in library and value not in (None, "", [], {})}
    parts = [
        _facts("search", search_facts(info)),
        level_table(info.get("history") or []),
        _facts("changed setting", changed_facts(info)),
        _facts("known", others),
    ]
    return "\n\n".join(filter(None, parts)) or "This was not recorded when the ticket was saved."


def search_facts(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return how something was found: task, data set, base model, seed, command, versions, date and hardware.

    Args:
        info: What the ticket knows of itself, without local paths.
    """
    settings, about = info.get("settings") or {}, info.get("about") or {}
    facts = {
        "task": settings.get("task"),
        "data set": _known(settings.get("dataset_name")),
        "base model": base_id(info),
        "seed": settings.get("seed"),
        "command": shlex.join(map(str, about["command"])) if about.get("command") else None,
        "versions": ", ".join(f"{name} {version}" for name, version in (about.get("versions") or {}).items()),
        "date": about.get("date"),
        "hardware": about.get("hardware"),
    }
    return {key: value for key, value in facts.items() if value not in (None, "")}


def changed_facts(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that were changed, by name.

    Args:
        info: What the ticket knows of itself, without local paths.
    """
    settings, about = info.get("settings") or {}, info.get("about") or {}
    changed = about.get("changed", [key for key, value in settings.items() if value not in (None, False)])
    return {key: settings[key] for key in changed if key in settings and _known(settings[key]) is not None}


def _facts(header: str, facts: Mapping[str, Any]) -> str:
    rows = [[str(key), f"`{value!s:.400}`".replace("\n", " ").replace("|", "\\|")] for key, value in facts.items()]
    return markdown_table([header, "value"], rows)


def _known(value: Any) -> Any:
    """A value, unless it was a path of some machine."""
    return None if value == LOCAL else value
