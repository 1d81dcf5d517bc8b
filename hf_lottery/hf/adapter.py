"""PEFT adapters and masks: merge an adapter into a sparse base, and read which weights a sparse adapter trains.

PEFT is never imported, because a PEFT model has all the methods that are needed.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..masks.mask import Mask, MaskMismatchError
from ..networks.names import named_weights, unwrap
from ..training.sparsity import SparsityLeakError
from .sparse_update import check_sparse_base, trained_within, tuner_layers

PEFT_PREFIX = "base_model.model."
_PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_POSITIONS = (".shira_indices", ".supertuning_indices")
# Ways to initialize a LoRA that take a part out of the base weights, or round them, as the adapter is made.
_MOVES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga", "kasa")


def merge_adapter(model: nn.Module, mask: Mask) -> nn.Module:
    """Merge the active adapters of a PEFT model into its sparse base; pruned weights stay zero.

    PEFT's ``merge_and_unload`` adds a dense update to every weight, also to pruned ones. Here each weight becomes
    ``base + mask * update``, with the joint update of all active adapters: LoRA, rsLoRA, DoRA, the other adapters
    that PEFT can merge, and the trained copies of ``modules_to_save``. The merged model differs from the adapted one by
    the part of the update that the mask drops, and a warning says how large it is. Nothing is dropped from an adapter
    that trains only kept weights, or that :func:`~hf_lottery.hf.sparse_update.keep_update_sparse` held within the mask.

    Adapters that change the base weights as they are made (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA, KaSA) are refused,
    because their base is no longer the sparse one.

    Args:
        model: A PEFT model whose base is zero where ``mask`` prunes. Merging needs memory for a copy of the adapted
            weights. The model cannot be used afterwards, as after ``merge_and_unload``.
        mask: The mask of the base model, with its parameter names without adapters.

    Returns:
        The base model with the adapters merged; its pruned weights are exactly zero.

    Raises:
        TypeError: ``model`` is not a PEFT model that can be merged.
        ValueError: The base is quantised or not zero where the mask prunes, or an adapter is already merged, tied to
            other weights, not finite, of a kind that cannot be merged or masked, or changed the base weights as it was
            made. Nothing was changed.
        MaskMismatchError: The mask is for another base model. Nothing was changed.
        SparsityLeakError: PEFT does not return the weights that it merged, because its version works differently.

    Example:
        >>> merged = merge_adapter(peft_model, mask)  # doctest: +SKIP
        >>> Mask.from_model(prunable(merged)) == mask  # doctest: +SKIP
        True
    """
    peft = cast(Any, unwrap(model))
    if not all(hasattr(peft, name) for name in ("get_base_model", "merge_adapter", "merge_and_unload")):
        received = f"received {type(peft).__name__}. Prompt and prefix tuning have no weights to merge."
        raise TypeError(f"the model must be a PEFT model with adapters that can be merged; {received}")
    base = peft.get_base_model()
    layers = tuner_layers(base)
    _check_start(peft)
    _check_mergeable(base, layers, mask)
    frozen, trained = named_weights(base), dict(_merged(base))
    mask.check_fits(frozen)
    biases = any(getattr(config, "bias", "none") != "none" for config in peft.peft_config.values())
    check_sparse_base(mask, frozen, biases=biases)
    touched = {id(p): p for layer in layers.values() for p in layer.get_base_layer().parameters()}
    touched |= {id(p): p for name, p in trained.items() if p is not frozen[name]}
    before = {key: parameter.detach().clone() for key, parameter in touched.items()}
    try:
        _merge(peft)
        norms, within = _mask_update(mask, frozen, trained, before), trained_within(layers, mask)
        _warn_of(
            {name: norm for name, norm in norms.items() if name not in within}
        )  # inside try, because a warning may become an error
    except BaseException:
        for key, parameter in touched.items():
            parameter.data = before[key]
        for layer in layers.values():
            layer.merged_adapters.clear()
        raise
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        merged = peft.merge_and_unload(adapter_names=[])  # they are merged already
    _check_merged(mask, merged, trained)
    return merged


def trained_positions(
    folder: Path, stored: Mapping[str, Any], model: nn.Module | Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Read which weights a sparse adapter trains.

    Args:
        folder: The folder of the adapter, for error messages.
        stored: Tensor name -> slice of PEFT's safetensors file.
        model: The base model, which gives the shapes.

    Returns:
        Parameter name of the base model -> bool tensor of its shape. True marks the weights that the adapter trains.

    Raises:
        ValueError: The adapter does not list positions, or ``model`` is None.
        MaskMismatchError: The adapter is for another model.
    """
    lists = [name for name in stored if name.endswith(_POSITIONS)]
    others = [name for name in stored if ".supertuning_lora_" in name or not lists]
    if others:
        raise ValueError(
            f"the adapter {folder} must list the positions it trains, as SHiRA and Super-Tuning without a rank do; "
            f"received {others[0]!r}. Merge it into a sparse model with merge_adapter."
        )
    if model is None:
        raise ValueError(
            "model must be the base model of the adapter, whose file does not tell the shapes of its weights; "
            "received None. Load the base model and pass it as model=."
        )
    weights, entries = named_weights(model, numbers=False), {}
    for name in lists:
        weight = name.removeprefix(PEFT_PREFIX).rpartition(".")[0] + ".weight"
        if weight not in weights:
            raise MaskMismatchError(f"{name!r} must be for a weight of the model; received none. Pass its base model.")
        entry = entries[weight] = torch.zeros(weights[weight].shape, dtype=torch.bool)
        positions = stored[name][...].long()  # [2, k] rows and columns, or flat [k]; PEFT stores floats on Windows
        target = entry if positions.ndim == 2 else entry.view(-1)
        axes = torch.atleast_2d(positions).unbind()
        if len(axes) != target.ndim or not all(
            bool(((part >= 0) & (part < size)).all()) for part, size in zip(axes, target.shape, strict=True)
        ):
            raise MaskMismatchError(
                f"{name!r} must list positions within the model's {list(entry.shape)}; received others. "
                "Pass the model that the adapter was trained on."
            )
        target[axes] = True
    return entries


def _merged(module: Any, prefix: str = "") -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that the merged model will have, by their names without adapters."""
    if hasattr(module, "get_base_layer"):
        module = module.get_base_layer()
    elif {"original_module", "modules_to_save"} <= module._modules.keys():
        copies = [module.modules_to_save[name] for name in module.active_adapters if name in module.modules_to_save]
        module = copies[0] if copies else module.original_module
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield prefix + name, parameter
    for name, child in module._modules.items():
        if child is not None:
            yield from _merged(child, f"{prefix}{name}.")


def _merge(peft: Any) -> None:
    try:
        peft.merge_adapter(safe_merge=True)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"every active adapter must be one that PEFT can merge; received {type(error).__name__}: {error}. "
            "Activate other adapters (set_adapter), or keep this one beside the sparse model."
        ) from error


def _check_start(peft: Any) -> None:
    for name, config in peft.peft_config.items():
        start = str(getattr(config, "init_lora_weights", None))
        start = "kasa" if getattr(config, "kasa_config", None) else start
        if start.lower().startswith(_MOVES_BASE):
            raise ValueError(
                f"an adapter must leave the base weights as they are; received {name!r} of the kind {start!r}, which "
                "changes them as it is made: the base is no longer sparse. Turn it into a plain LoRA (save_pretrained "
                "with path_initial_model_for_weight_conversion, where PEFT can), and load that on the sparse base."
            )


def _check_mergeable(base: Any, layers: Mapping[str, Any], mask: Mask) -> None:
    owners = Counter(map(id, named_weights(base).values()))
    quantised = getattr(base, "hf_quantizer", None) is not None
    for name, layer in layers.items():
        inner = layer.get_base_layer()
        parameters = [p for part in (inner.parameters(), inner.buffers()) for p in part]
        coded = any(p.dtype not in _PLAIN or type(p.data) is not Tensor for p in parameters)
        if quantised or getattr(layer, "quantization_backend", None) or coded:
            reason, way_out = "is quantised", "Load the base model without quantisation, then load the adapter."
        elif layer.merged_adapters:
            # Unmerging leaves rounding errors, so pruned weights would no longer be exactly zero.
            reason, way_out = "is already merged", "Load the base model and the adapter again."
        elif any(owners[id(p)] > 1 for p in inner.parameters()):
            reason, way_out = "is tied to other weights", "Load the base model with tie_word_embeddings=False."
        elif (
            isinstance(inner, nn.MultiheadAttention)
            or hasattr(layer, "trainable_tokens_delta")
            or (hasattr(layer, "ln_tuning_layers") and any(entry.startswith(f"{name}.") for entry in mask))
        ):
            reason, way_out = "cannot be masked by name", "Train an adapter for other modules."
        else:
            continue
        raise ValueError(f"every adapted layer must take a masked update; received {name!r}, which {reason}. {way_out}")


@torch.no_grad()
def _mask_update(
    mask: Mask, base: Mapping[str, Tensor], merged: Mapping[str, Tensor], before: Mapping[int, Tensor]
) -> dict[str, tuple[float, float]]:
    """Undo the merge at pruned weights. Return the norms of the undone and of the whole update by parameter."""
    norms = {}
    for name, entry in mask.items():
        if id(merged[name]) in before:
            pruned = ~entry.to(merged[name].device)
            start = before[id(merged[name])] if merged[name] is base[name] else base[name]
            update = merged[name].float() - start.float()
            norms[name] = (float(update[pruned].norm()), float(update.norm()))
            merged[name].masked_fill_(pruned, 0)
    return norms


def _warn_of(norms: Mapping[str, tuple[float, float]]) -> None:
    shares = {name: dropped / whole for name, (dropped, whole) in norms.items() if dropped}
    if shares:
        dropped, whole = (math.hypot(*part) for part in zip(*norms.values(), strict=True))
        worst = max(shares, key=lambda name: shares[name])
        warnings.warn(
            f"the mask dropped {dropped / whole:.1%} of the norm of the adapter's update, most of all in {worst!r} "
            f"({shares[worst]:.1%}): the merged model differs from the adapted one. Evaluate it, or train the "
            "adapter within the mask: keep_update_sparse(model, mask).",
            stacklevel=3,
        )


def _check_merged(mask: Mask, model: nn.Module, merged: Mapping[str, Tensor]) -> None:
    weights = named_weights(model)
    for name, entry in mask.items():
        weight = merged[name].detach()
        if weights.get(name) is not merged[name] or bool(weight[~entry.to(weight.device)].any()):
            raise SparsityLeakError(
                f"PEFT must return the merged {name!r} unchanged; received another tensor. This version of PEFT merges "
                "differently: please report it, and use Mask.apply_ on the merged model until it is fixed."
            )
