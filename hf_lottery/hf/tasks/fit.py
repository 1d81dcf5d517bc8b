"""A trial of a network on its data, before anything is written."""

from __future__ import annotations

import torch
from accelerate.utils import parse_flag_from_env
from transformers import PreTrainedModel, TrainingArguments

from ...networks.forward import run
from ...networks.generators import kept_generators
from ...networks.modes import evaluating
from .data import Data


def check_fit(model: PreTrainedModel, data: Data, args: TrainingArguments) -> None:
    """Run a network on one sample, such as an image of another size than its configuration says.

    The network goes to the device where the Trainer would put it. Nothing is tried where parameters will be sharded.

    Args:
        model: The network.
        data: What it will train on.
        args: The settings of the Trainer, which know the device.

    Raises:
        ValueError: It does not take the sample.
    """
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return
    model.to(args.device)  # type: ignore[arg-type]
    with kept_generators(), evaluating(model):
        sample = data.data_collator([data.train[0]])
        try:
            run(model, sample)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # what a forward pass can do wrong has no end
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in sample.items())
            cause = " ".join(f"{type(error).__name__}: {error!s:.300}".split()).rstrip(".")
            raise ValueError(
                f"the network must take the data; received {type(model).__name__} and one sample of {shapes}, which "
                f"fails with {cause}. Correct its configuration, or choose another network."
            ) from error
