"""What the recipes share: the model for a task, the launch check, a Trainer's arguments, a spread as text."""

from __future__ import annotations

import atexit
import logging
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch.distributed as dist
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)

from ..metrics import classification_metrics, predicted_classes
from ..tasks import models  # noqa: F401  # registers the papers' networks with the Auto classes
from ..tasks.built_in import BUILT_IN
from ..tasks.data import Data, DataArguments, load_data
from .launch import check_launch

AUTO_MODELS: dict[str, Any] = {
    "image-classification": AutoModelForImageClassification,
    "text-classification": AutoModelForSequenceClassification,
    "causal-lm": AutoModelForCausalLM,
}


@dataclass
class ModelArguments:
    """Which model, and what it is for."""

    task: str = field(default="image-classification", metadata={"help": f"One of {', '.join(AUTO_MODELS)}."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A pretrained model: Hub id or local folder. Or give config_name."}
    )
    config_name: str | None = field(
        default=None, metadata={"help": "A model without weights: Hub id, local folder or config.json."}
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "With config_name: other values of it, as in width=4,num_hidden_layers=2."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the Hub."})

    def __post_init__(self) -> None:
        if self.task not in AUTO_MODELS:
            raise ValueError(f"task must be one of {', '.join(AUTO_MODELS)}; received {self.task!r}.")
        if self.config_overrides is not None and self.model_name_or_path is not None:
            raise ValueError(
                "config_overrides must go with config_name; received model_name_or_path, whose weights fit its own."
            )

    def load_config(self, **overrides: Any) -> PreTrainedConfig:
        """The configuration that the arguments name."""
        name = self.config_name or self.model_name_or_path
        if name is None:
            raise ValueError("model_name_or_path or config_name must be given; received neither.")
        config = AutoConfig.from_pretrained(name, revision=self.model_revision, **overrides)
        if self.config_overrides is not None:
            config.update_from_string(self.config_overrides)
        return config


def set_up(args: TrainingArguments) -> None:
    """Check the launch, and set logging and seed.

    Raises:
        SystemExit: See :func:`launch.check_launch`.
    """
    check_launch(args.world_size)
    atexit.register(_leave)
    logging.basicConfig(format="%(message)s", level=logging.INFO if args.process_index == 0 else logging.WARNING)
    transformers.utils.logging.set_verbosity(args.get_process_log_level())
    transformers.utils.logging.disable_progress_bar()  # those of loading and saving; the training has its own
    set_seed(args.seed)


def _leave() -> None:
    """Leave the other processes in order, or an interpreter may die of its threads at exit."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def load_task_data(model_args: ModelArguments, data_args: DataArguments, config: PreTrainedConfig) -> Data:
    """The data of the task, as the model wants them.

    A built-in data set decides the image size of a network without weights; everywhere else the model decides.
    """
    model_decides = model_args.model_name_or_path is not None or data_args.dataset_name not in BUILT_IN
    tokenizer = None if model_args.task == "image-classification" else model_args.config_name
    return load_data(
        data_args,
        model_args.task,
        seed=data_args.split_seed,
        model_name_or_path=model_args.model_name_or_path or tokenizer,
        from_pretrained={"revision": model_args.model_revision},
        image_size=getattr(config, "image_size", None) if model_decides else None,
        num_channels=getattr(config, "num_channels", None) if model_decides else None,
    )


def build_model(model_args: ModelArguments, data: Data, seed: int, *, fresh: bool = False) -> PreTrainedModel:
    """The pretrained model, or one initialized from the configuration with ``seed``: always that if ``fresh``."""
    set_seed(seed)
    config = model_args.load_config(**data.config_kwargs)
    auto = AUTO_MODELS[model_args.task]
    if fresh or model_args.model_name_or_path is None:
        return auto.from_config(config)
    return auto.from_pretrained(
        model_args.model_name_or_path,
        config=config,
        revision=model_args.model_revision,
        ignore_mismatched_sizes=True,  # the head of another label set
    )


def trainer_arguments(task: str, data: Data) -> dict[str, Any]:
    """The arguments of any Trainer that follow from task and data."""
    arguments: dict[str, Any] = {
        "train_dataset": data.train,
        "eval_dataset": data.eval,
        "data_collator": data.data_collator,
        "processing_class": data.processing_class,
    }
    if task != "causal-lm":
        arguments |= {
            "compute_metrics": classification_metrics("accuracy"),
            "preprocess_logits_for_metrics": predicted_classes,
        }
    return arguments


def mean_and_std(values: np.ndarray, digits: int = 2) -> str:
    """Mean and standard deviation (n - 1) over the seeds, as text; of one value the deviation is 0."""
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():.{digits}f} ± {deviation:.{digits}f}"
