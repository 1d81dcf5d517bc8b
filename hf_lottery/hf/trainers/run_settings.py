"""What defines a run: the settings that must be the same for it to be resumed, and its seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import TrainingArguments

# What a resumed run may do otherwise than the run it resumes, by the beginning of its name: it changes no weight.
_FREE = (
    "output_dir", "logging", "log_", "save_", "eval_on", "eval_do", "report_to", "run_name", "project", "trackio",
    "disable_tqdm", "dataloader_num", "dataloader_pin", "dataloader_pers", "dataloader_pref", "hub_", "push_to",
    "resume", "debug", "skip_memory", "include_", "do_", "per_device_eval", "prediction_loss", "ddp_", "use_cpu",
    "local_rank", "accelerator_config", "restore_callback", "torch_empty", "enable_jit", "fsdp",
    # Of these three only the product with the number of processes counts.
    "per_device_train_batch_size", "train_batch_size", "gradient_accumulation_steps",
)  # fmt: skip


def run_settings(args: TrainingArguments, own: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for a run to be resumed, in JSON terms.

    Args:
        args: Of which all counts that can change a weight; of batch size, accumulation and processes their product.
        own: What counts besides.
    """
    settings = {name: value for name, value in args.to_dict().items() if not name.startswith(_FREE)}
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return plain({**settings, **own, "global_train_batch_size": batch})


def level_seed(seed: int, level: int, purpose: int = 0) -> int:
    """A seed for each level and purpose that no other run shares, as seed + level would be with seed + 1."""
    return int(np.random.SeedSequence([seed, level, purpose]).generate_state(1)[0])


def plain(value: Any) -> Any:
    """The value in JSON terms; enumerations become their text."""
    return json.loads(json.dumps(value, default=lambda item: item.item() if hasattr(item, "item") else str(item)))
