"""Inputs that a model of transformers runs on, made of its configuration alone, to trace the model and to prove it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

_BATCH, _LENGTH = 2, 16
_SIDE = 64  # of images, where the network takes any size
_KINDS = ("input_ids", "pixel_values", "input_values", "input_features")


def example_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Make two random inputs for a model of texts, images or sounds; the same ones every time.

    Args:
        model: The model, which is not run. Its configuration says how large its vocabulary or its images are.

    Raises:
        ValueError: The model takes something else.
    """
    name = model.main_input_name
    generator = torch.Generator().manual_seed(0)
    if name == "input_ids":
        inputs = {name: _tokens(model, generator)}
    elif name in _KINDS:
        inputs = {name: torch.randn(_shape(model, name), generator=generator, dtype=torch.float32)}
    else:
        raise ValueError(
            f"the model must take one of {', '.join(_KINDS)}; received a {type(model).__name__}, which takes {name!r}. "
            "Pass inputs of your own to hf_lottery.structured.shrink."
        )
    if model.config.is_encoder_decoder and "decoder_input_ids" in inspect.signature(model.forward).parameters:
        inputs["decoder_input_ids"] = _tokens(model, generator)
    return {key: value.to(model.device) for key, value in inputs.items()}


def _tokens(model: PreTrainedModel, generator: torch.Generator) -> Tensor:
    vocabulary: Any = model.get_input_embeddings()
    # The last token is not the one that ends or pads a text in most vocabularies.
    return torch.randint(vocabulary.num_embeddings, (_BATCH, _LENGTH), generator=generator)


def _shape(model: PreTrainedModel, name: str) -> tuple[int, ...]:
    config: Any = getattr(model.config, "vision_config", model.config)
    if name == "pixel_values":
        side = getattr(config, "image_size", None) or _SIDE
        height, width = (side, side) if isinstance(side, int) else _pair(side)
        return _BATCH, getattr(config, "num_channels", None) or 3, height, width
    if name == "input_features":  # spectra, whose length a model may ask for
        length = 2 * (getattr(config, "max_source_positions", None) or 50)
        return _BATCH, getattr(config, "num_mel_bins", None) or 80, length
    return _BATCH, 4000


def _pair(side: Sequence[int]) -> tuple[int, int]:
    height, width = side
    return height, width
