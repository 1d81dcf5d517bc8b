"""Plain names: the names of parameters and buffers without the prefixes that training frameworks add."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .shards import reshard

# Prefixes that training frameworks put before the name of a parameter.
_WRAPPER_PARTS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside data-parallel and compile wrappers.

    An FSDP2 module is returned itself, with its parameters sharded again.
    """
    while isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) or hasattr(model, "_orig_mod"):
        model = getattr(model, "_orig_mod", None) or model.get_submodule("module")
    reshard(model)
    return model


def plain_name(name: str) -> str:
    """Return the name of a parameter without the prefixes of ``torch.compile`` and checkpoint wrappers."""
    for part in _WRAPPER_PARTS:
        name = name.replace(part, "")
    return name


def named_weights(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters by plain name; a tied parameter appears under each of its names.

    Args:
        model: A module (also a compiled or data-parallel one), or a mapping from name to tensor, which is copied.
    """
    if not isinstance(model, nn.Module):
        return dict(model)
    return {plain_name(name): parameter for name, parameter in unwrap(model).named_parameters(remove_duplicate=False)}


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by plain name, tied ones once; buffers that are not saved are included."""
    model = unwrap(model)
    return {plain_name(name): tensor for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def named_tensors(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return parameters and buffers by plain name, tied ones under each name; a mapping is copied."""
    if not isinstance(model, nn.Module):
        return dict(model)
    model = unwrap(model)
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {plain_name(name): tensor for name, tensor in named}
