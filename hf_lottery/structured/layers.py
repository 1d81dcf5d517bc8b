"""Layers: the attributes of torch's own layers that say the sizes of their tensors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import nn

from .attributes import Change
from .slicing import Slices

# Attribute -> the tensor and the axis whose length it is.
_LENGTHS: dict[type[nn.Module], dict[str, tuple[str, int]]] = {
    nn.Linear: {"in_features": ("weight", 1), "out_features": ("weight", 0)},
    nn.Bilinear: {"in1_features": ("weight", 1), "in2_features": ("weight", 2), "out_features": ("weight", 0)},
    nn.Embedding: {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)},
    nn.EmbeddingBag: {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)},
    nn.modules.batchnorm._NormBase: {"num_features": ("weight", 0)},
    nn.GroupNorm: {"num_channels": ("weight", 0)},
    nn.PReLU: {"num_parameters": ("weight", 0)},
    nn.RNNBase: {"input_size": ("weight_ih_l0", 1)},
    nn.RNNCellBase: {"input_size": ("weight_ih", 1), "hidden_size": ("weight_hh", 1)},
}
_TRANSPOSED = nn.modules.conv._ConvTransposeNd


def layer_changes(name: str, module: nn.Module, before: Slices, after: Slices) -> Iterator[Change]:
    """Yield the attributes of a layer of torch that follow from what is kept of its tensors.

    Args:
        name: The module's name.
        module: The module, with the attributes that it had before.
        before: What was kept before.
        after: What is kept now.
    """

    def shape(own: str) -> tuple[int, ...]:
        full = f"{name}.{own}" if name else own
        return after.shape(full) if full in after.spec.tensors else ()

    for kind, lengths in _LENGTHS.items():
        for attribute, (own, axis) in lengths.items() if isinstance(module, kind) else ():
            if shape(own) and hasattr(module, attribute):
                yield Change(name, (attribute,), shape(own)[axis])
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and shape("weight"):
        yield Change(name, ("normalized_shape",), shape("weight"))
    if isinstance(module, nn.RNNBase):
        inner = shape("weight_hh_l0")
        gates = before.shape(f"{name}.weight_hh_l0".lstrip("."))[0] // module.hidden_size
        yield Change(name, ("hidden_size",), inner[0] // gates)
        yield Change(name, ("proj_size",), inner[1] if module.proj_size else 0)
    if isinstance(module, nn.GroupNorm) and shape("weight"):
        yield Change(name, ("num_groups",), _kept(f"{name}.weight", module.num_groups, before, after))
    if isinstance(module, nn.modules.conv._ConvNd) and shape("weight"):
        parts = _kept(f"{name}.weight", module.groups, before, after) if module.groups > 1 else 1
        first, second = shape("weight")[:2]
        outer, inner = ("in_channels", "out_channels") if isinstance(module, _TRANSPOSED) else (
            "out_channels", "in_channels")  # fmt: skip
        yield from (Change(name, (key,), value) for key, value in (
            ("groups", parts), (outer, first), (inner, second * parts)))  # fmt: skip


def _kept(tensor: str, number: int, before: Slices, after: Slices) -> int:
    """Return how many parts of the first axis of a tensor stay, of so many parts that it has."""
    tensor = tensor.removeprefix(".")
    blocks = {block.axes[0].positions.tobytes(): block.axes[0] for block in before.spec.tensors[tensor]}
    depth = max(len(axis.leaves) for axis in blocks.values())
    for outer in range(1, depth + 1):
        old, new = (
            sum(int(np.prod([slices.size(leaf) for leaf in axis.leaves[:outer]])) for axis in blocks.values())
            for slices in (before, after)
        )
        if old == number:
            return new
    return number
