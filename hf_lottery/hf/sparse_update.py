"""keep_update_sparse: train a LoRA adapter whose update stays within the mask of its sparse base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..masks.mask import Mask
from ..networks.names import named_weights, unwrap


def keep_update_sparse(model: nn.Module, mask: Mask) -> None:
    """Let the active LoRA adapters of a PEFT model add ``mask * update`` to its weights, from now on.

    A plain LoRA adapter also adds to pruned weights, and training relies on that part. ``merge_adapter`` must drop it:
    at 90 % sparsity, this was most of what the adapter had learned. With this call, the adapter trains as it will be
    merged, so nothing is lost. Each forward pass multiplies the two factors of every adapted layer, which takes memory
    and time for one more matrix of its shape.

    Call it after ``get_peft_model``, and again after an adapter is loaded; it is not stored with the adapter. It ends
    when the adapter is merged or unloaded.

    Args:
        model: A PEFT model with LoRA or rsLoRA adapters on linear layers, without dropout.
        mask: The mask of the base model, with its parameter names without adapters.

    Raises:
        TypeError: ``model`` is not a PEFT model.
        ValueError: The base is not zero where the mask prunes, or the mask covers no adapted layer, or one whose update
            cannot be masked in a forward pass, such as one of DoRA or with dropout. Nothing was changed. A forward pass
            raises it where such an adapter is activated later.
        MaskMismatchError: The mask is for another base model. Nothing was changed.

    Example:
        >>> model = get_peft_model(sparse_base, LoraConfig(r=8))  # doctest: +SKIP
        >>> keep_update_sparse(model, mask)  # doctest: +SKIP
    """
    peft = cast(Any, unwrap(model))
    if not hasattr(peft, "get_base_model"):
        raise TypeError(f"the model must be a PEFT model; received {type(peft).__name__}. Call get_peft_model before.")
    mask.check_fits(peft)
    check_sparse_base(mask, named_weights(peft), biases=False)
    layers = {f"{name}.weight": layer for name, layer in tuner_layers(peft.get_base_model()).items()}
    covered = {name: layer for name, layer in layers.items() if name in mask}
    if not covered:
        raise ValueError(
            f"the mask must cover an adapted layer; received adapters for {', '.join(sorted(layers)[:3]) or 'none'}. "
            "Nothing would be lost in a merge: leave the call out."
        )
    for name, layer in covered.items():
        if reason := _unmaskable(layer):
            raise ValueError(
                f"the update of every adapted layer must be one matrix that is added; received {name!r}, which "
                f"{reason}. Use LoraConfig without it, for linear layers."
            )
    for name, layer in covered.items():
        if (hook := _hook_of(layer)) is not None:  # of an earlier call
            hook.keep = mask[name]
        else:
            layer.register_forward_hook(_PrunedUpdate(mask[name]), with_kwargs=True)


def check_sparse_base(mask: Mask, base: Mapping[str, Tensor], *, biases: bool) -> None:
    """Check that a base model is zero where a mask prunes.

    Args:
        mask: The mask.
        base: The weights of the base model by plain name.
        biases: Whether the adapter trains biases of the base itself.

    Raises:
        ValueError: A pruned weight is not zero.
    """
    for name, entry in mask.items():
        if alive := int((base[name].detach()[~entry.to(base[name].device)] != 0).sum()):
            way_out = "Call mask.apply_ on the base model before you train an adapter on it."
            if biases and name.endswith("bias"):
                way_out = "The adapter's setting `bias` trains the biases of the base itself: call mask.apply_ on it."
            raise ValueError(
                f"the base model must be zero where the mask prunes; received {alive} other weights in {name!r}. "
                f"{way_out}"
            )


def tuner_layers(base: nn.Module) -> dict[str, Any]:
    """Return the layers of a model that PEFT put adapters around, by their names in it."""
    wanted = ("get_base_layer", "merge", "merged_adapters")
    return {name: module for name, module in base.named_modules() if all(hasattr(module, part) for part in wanted)}


def trained_within(layers: Mapping[str, nn.Module], mask: Mask) -> set[str]:
    """Return the weights whose update was kept within this mask, so that a merge drops nothing of them."""
    hooks = {f"{name}.weight": _hook_of(layer) for name, layer in layers.items()}
    return {name for name, hook in hooks.items() if hook and name in mask and torch.equal(hook.keep, mask[name])}


class _PrunedUpdate:
    """A forward hook that takes the pruned part of the update out of the result of a layer."""

    def __init__(self, keep: Tensor):
        self.keep = keep

    def __call__(self, layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor) -> Tensor:
        if kwargs.get("adapter_names") is not None:
            raise NotImplementedError(
                "a batch must use the same adapters throughout under keep_update_sparse; received adapter_names. Merge "
                "each adapter into a model of its own."
            )
        active = [name for name in layer.active_adapters if name in layer.lora_A]
        if layer.disable_adapters or layer.merged or not active:
            return result
        if reason := _unmaskable(layer):  # an adapter that came after the call
            raise ValueError(
                f"the update of an active adapter must be one matrix that is added; received a layer that {reason}. "
                "Train this adapter on a base without keep_update_sparse."
            )
        update = torch.stack([layer.get_delta_weight(name) for name in active]).sum(0)
        self.keep = self.keep.to(update.device)  # where it stays, until the model moves again
        x, pruned = args[0], update.masked_fill(self.keep, 0).to(result.dtype)
        transposed = isinstance(layer.get_base_layer(), Conv1D)  # its weight is [inputs, outputs]
        return result - x.to(result.dtype) @ (pruned if transposed else pruned.T)


def _hook_of(layer: nn.Module) -> _PrunedUpdate | None:
    return next((hook for hook in layer._forward_hooks.values() if isinstance(hook, _PrunedUpdate)), None)


def _unmaskable(layer: Any) -> str:
    """Say why the active update of a layer is not masked in its forward pass; empty if it can be."""
    inner = layer.get_base_layer()
    if not hasattr(layer, "lora_A") or not hasattr(layer, "get_delta_weight"):
        return f"has an adapter of the kind {type(layer).__name__}"
    if not isinstance(inner, nn.Linear | Conv1D):
        return f"is around a {type(inner).__name__}"
    for name in layer.active_adapters:
        if name in layer.lora_variant:
            return f"is a LoRA of the kind {type(layer.lora_variant[name]).__name__.removesuffix('Variant')}"
        if name in layer.lora_dropout and getattr(layer.lora_dropout[name], "p", 0):
            return "has a dropout"
    return ""
