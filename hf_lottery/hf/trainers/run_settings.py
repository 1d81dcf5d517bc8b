"""Settings that must be the same when a run is resumed, and the seeds of its levels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np
from transformers import TrainingArguments

# A resumed run may change arguments that begin with these names, because they change no weight.
_FREE = (
    "output_dir", "logging", "log_", "save_", "eval_on", "eval_do", "report_to", "run_name", "project", "trackio",
    "disable_tqdm", "dataloader_num", "dataloader_pin", "dataloader_pers", "dataloader_pref", "hub_", "push_to",
    "resume", "debug", "skip_memory", "include_", "do_", "per_device_eval", "prediction_loss", "ddp_", "use_cpu",
    "local_rank", "accelerator_config", "restore_callback", "torch_empty", "enable_jit", "fsdp", "rewind_by_reference",
    # Only the product of these with the number of processes matters, which is stored on its own.
    "per_device_train_batch_size", "train_batch_size", "gradient_accumulation_steps",
)  # fmt: skip
# How batches are made of the data set, which can change weights; the rest of accelerator_config does not.
_BATCHES = ("split_batches", "dispatch_batches", "even_batches", "use_seedable_sampler")


def run_settings(args: TrainingArguments, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that must be the same when a run is resumed, as JSON values.

    Args:
        args: Every setting that can change a weight is included; batch size, accumulation and processes only as their
            product.
        own: Further settings to include.
    """
    settings = {name: value for name, value in args.to_dict().items() if not name.startswith(_FREE)}
    if not getattr(args, "structured", False):  # which runs of older versions do not know
        settings = {name: value for name, value in settings.items() if not name.startswith("structured")}
    if args.load_best_model_at_end:  # only a model that was saved can be the best
        settings |= {name: getattr(args, name) for name in ("save_strategy", "save_steps")}
    settings["accelerator_config"] = {name: args.to_dict()["accelerator_config"].get(name) for name in _BATCHES}
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return plain({**settings, **own, "global_train_batch_size": batch})


def name_of(value: Any) -> str:
    """Return a name for a function, a class or an object, with what it was given, that is the same in every process."""
    if isinstance(value, partial):
        given = [*map(_shown, value.args), *(f"{name}={_shown(item)}" for name, item in sorted(value.keywords.items()))]
        return f"{name_of(value.func)}({', '.join(given)})"
    if isinstance(name := getattr(value, "__name__", None), str):
        return name
    held = [(field.name, getattr(value, field.name)) for field in fields(value)] if is_dataclass(value) else []
    plain_ones = (f"{name}={item!r}" for name, item in held if isinstance(item, bool | int | float | str))
    return f"{type(value).__name__}({', '.join(plain_ones)})"


def _shown(value: Any) -> str:
    return name_of(value) if callable(value) else repr(value)


def level_seed(seed: int, level: int, purpose: int = 0, *more: int) -> int:
    """Return a seed for a level and purpose that no other run shares; runs would share some of ``seed + level``."""
    return int(np.random.SeedSequence([seed, level, purpose, *more]).generate_state(1)[0])


def plain(value: Any) -> Any:
    """Return the value as JSON values; enumerations become text."""
    return json.loads(json.dumps(value, default=lambda item: item.item() if hasattr(item, "item") else str(item)))
