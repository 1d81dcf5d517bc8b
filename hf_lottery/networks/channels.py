"""Channels: which axis of a layer's weight reads its input, and which writes its output."""

from __future__ import annotations

from torch import nn

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def read_channels(module: nn.Module) -> tuple[int, int] | None:
    """Return the axis of a layer's weight that reads the input's channels, and their dimension in the input."""
    if isinstance(module, _CONVOLUTIONS):
        spatial = module.weight.ndim - 2
        return None if module.groups > 1 else (0 if isinstance(module, _TRANSPOSED) else 1, -1 - spatial)
    if isinstance(module, nn.Linear):
        return 1, -1
    return (0, -1) if _is_gpt2_conv1d(module) else None


def written_channels(module: nn.Module) -> tuple[int, int] | None:
    """Return the axis of a layer's weight that makes the output's channels, and their dimension in the output."""
    if isinstance(module, _TRANSPOSED):
        return None if module.groups > 1 else (1, 1 - module.weight.ndim)
    if isinstance(module, _CONVOLUTIONS):
        return 0, 1 - module.weight.ndim
    if isinstance(module, nn.Linear):
        return 0, -1
    return (1, -1) if _is_gpt2_conv1d(module) or isinstance(module, nn.Embedding) else None


def norm_channels(module: nn.Module) -> tuple[int, int] | None:
    """Return the axis of a norm's weight that holds the channels, and their dimension in the output."""
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm):
        return 0, 1
    return (0, -1) if "Norm" in type(module).__name__ else None


def _is_gpt2_conv1d(module: nn.Module) -> bool:
    """Whether this is GPT-2's linear layer, ``[in, out]``. It is known by name, as only ``hf`` imports transformers."""
    return type(module).__name__ == "Conv1D" and getattr(getattr(module, "weight", None), "ndim", 0) == 2
