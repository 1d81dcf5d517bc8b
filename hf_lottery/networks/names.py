"""Plain names: parameters and buffers by the names they have without the wrappers of training frameworks."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .shards import reshard

# What training frameworks put in front of a parameter's own name.
_WRAPPER_PARTS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside data-parallel and compile wrappers.

    A module of FSDP2 is returned as it is, with its parameters sharded again.
    """
    while isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) or hasattr(model, "_orig_mod"):
        model = getattr(model, "_orig_mod", None) or model.get_submodule("module")
    reshard(model)
    return model


def plain_name(name: str) -> str:
    """The name of a parameter without what ``torch.compile`` or a checkpoint wrapper adds to it."""
    for part in _WRAPPER_PARTS:
        name = name.replace(part, "")
    return name


def named_weights(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters by plain name, a tied parameter under every name that it has.

    Args:
        model: A module (also a compiled or data-parallel one), or already a mapping from name to tensor.
    """
    if not isinstance(model, nn.Module):
        return dict(model)
    return {plain_name(name): parameter for name, parameter in unwrap(model).named_parameters(remove_duplicate=False)}


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by plain name, a tied one once; buffers that are not saved are included."""
    model = unwrap(model)
    return {plain_name(name): tensor for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def named_tensors(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters and buffers by plain name, a tied one under every name; a mapping becomes a dict."""
    if not isinstance(model, nn.Module):
        return dict(model)
    model = unwrap(model)
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {plain_name(name): tensor for name, tensor in named}
