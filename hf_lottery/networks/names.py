"""Plain names: the names of parameters and buffers without what training frameworks and PEFT put around a model.

``torch.compile``, data parallelism and checkpoint wrappers add a prefix to each name. PEFT does so too, puts layers of
its own around those of the base model, and adds adapters. Everything here goes by the base model's own names, and
leaves adapters out, unless the caller asks for them. PEFT is not imported: its modules are known by their classes, and
what they are put around by their attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn

from .numbers import check_layouts, check_numbers
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


def base_of(model: nn.Module) -> nn.Module:
    """Return the module inside data-parallel and compile wrappers and inside a PEFT model.

    Its layers may still have adapters around them.
    """
    model = unwrap(model)
    while (inner := _inside(model)) is not None:
        model = unwrap(inner)
    return model


def plain_name(name: str) -> str:
    """Return the name of a parameter without the prefixes of ``torch.compile`` and checkpoint wrappers."""
    for part in _WRAPPER_PARTS:
        name = name.replace(part, "")
    return name


def base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module by plain name, without PEFT's own; a shared module comes under each of its names."""
    for name, module, _ in _walk(unwrap(model)):
        yield name, module


def replaced_weights(model: nn.Module) -> set[str]:
    """Return the plain names of the parameters that are not in use, since PEFT trains copies of their modules.

    These are the modules that PEFT's ``modules_to_save`` lists, such as a task head.
    """
    return {
        _join(name, own)
        for name, module, copied in _walk(unwrap(model))
        for own, parameter in module._parameters.items()
        if copied and parameter is not None
    }


def adapter_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that PEFT added to the base model, by the names that it gives."""
    every = dict(_owned(model, "_parameters", adapters=True))
    base = {id(parameter) for _, parameter in _owned(model, "_parameters", adapters=False)}
    return {name: parameter for name, parameter in every.items() if id(parameter) not in base}


def named_parameters(model: nn.Module, *, numbers: bool = True) -> dict[str, nn.Parameter]:
    """Return the parameters by plain name; a tied parameter appears under its first name. See :func:`named_weights`."""
    return cast(dict[str, nn.Parameter], _checked(_once(_owned(model, "_parameters", adapters=False)), numbers))


def named_weights(
    model: nn.Module | Mapping[str, Tensor], *, adapters: bool = False, numbers: bool = True
) -> dict[str, Tensor]:
    """Return the parameters by plain name; a tied parameter appears under each of its names.

    Args:
        model: A module (also a compiled or data-parallel one, or a PEFT model), or a mapping from name to tensor, which
            is copied.
        adapters: Whether to include PEFT's adapters. The names are then those that PEFT gives.
        numbers: Whether the tensors must have numbers. False is for callers that read names and shapes alone.

    Raises:
        ValueError: A tensor has no numbers, because it is on the meta device or offloaded.
    """
    return _checked(
        _owned(model, "_parameters", adapters=adapters) if isinstance(model, nn.Module) else model.items(), numbers
    )


def named_state(model: nn.Module, *, adapters: bool = False, numbers: bool = True) -> dict[str, Tensor]:
    """Return parameters and buffers by plain name, tied ones once; buffers that are not saved are included.

    The arguments are those of :func:`named_weights`.

    Raises:
        ValueError: A tensor has no numbers, or is in a sparse layout, which is not copied by its numbers.
    """
    parameters, buffers = (_once(_owned(model, kind, adapters=adapters)) for kind in ("_parameters", "_buffers"))
    state = _checked((*parameters, *buffers), numbers)
    if numbers:
        check_layouts(state)
    return state


def named_tensors(model: nn.Module | Mapping[str, Tensor], *, numbers: bool = True) -> dict[str, Tensor]:
    """Return parameters and buffers, tied ones under each name; a mapping is copied.

    Adapters are included, because they are a part of the function that the model computes.
    """
    if not isinstance(model, nn.Module):
        return _checked(model.items(), numbers)
    return _checked(_owned(model, "_parameters", "_buffers", adapters=True), numbers)


def tied_names(model: nn.Module) -> dict[str, str]:
    """Return the first name of each parameter and buffer for every name of it."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named_tensors(model, numbers=False).items()}


def _walk(module: nn.Module, name: str = "", copied: bool = False) -> Iterator[tuple[str, nn.Module, bool]]:
    """Yield the modules of the base model, and whether PEFT replaced them by a copy."""
    while (inner := _inside(module)) is not None:
        copied = copied or "modules_to_save" in module._modules
        module = inner
    yield name, module, copied
    for part, child in module._modules.items():
        if child is not None:
            yield from _walk(child, name if f"{part}." in _WRAPPER_PARTS else _join(name, part), copied)


def _inside(module: nn.Module) -> nn.Module | None:
    """The part of the base model that a module of PEFT is put around; None if the module is not of PEFT."""
    kind, parts = type(module), module._modules
    if not any(cls.__module__.partition(".")[0] == "peft" for cls in kind.__mro__):
        return None  # other modules have a get_base_model or a base_layer too
    if hasattr(kind, "get_base_model") and "base_model" in parts:  # PeftModel
        return cast(Any, module).get_base_model()
    if hasattr(type(parts.get("base_model")), "inject_adapter"):  # PeftMixedModel
        return parts["base_model"]
    if hasattr(kind, "inject_adapter") and "model" in parts:  # LoraModel and the other tuners
        return parts["model"]
    if hasattr(kind, "get_base_layer") and "base_layer" in parts:  # a layer of LoRA, IA3 ...
        return cast(Any, module).get_base_layer()
    if {"original_module", "modules_to_save"} <= parts.keys():
        return parts["original_module"]
    if "token_adapter" in parts and hasattr(kind, "original_module"):  # trainable tokens
        return parts["token_adapter"]
    if "adaption_prompt" in module._parameters and "model" in parts:  # LLaMA-Adapter
        return parts["model"]
    return None


def _owned(model: nn.Module, *kinds: str, adapters: bool) -> Iterator[tuple[str, Tensor]]:
    model = unwrap(model)
    modules = list(model.named_modules(remove_duplicate=False) if adapters else base_modules(model))
    for kind in kinds:
        for prefix, module in modules:
            for name, tensor in getattr(module, kind).items():
                if tensor is not None:
                    yield plain_name(_join(prefix, name)), tensor


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _once(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()
    for name, tensor in named:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _checked(named: Iterable[tuple[str, Tensor]], numbers: bool) -> dict[str, Tensor]:
    found = dict(named)
    if numbers:
        check_numbers(found)
    return found
