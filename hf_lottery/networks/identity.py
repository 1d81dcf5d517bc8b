"""Identity: which network a module is, beyond the names and shapes of its tensors.

A model with a configuration is known by it. Any other module is known by the classes of its modules, by what each of
them prints about itself, and by the whole numbers that it keeps: heads, groups and sizes are often in no shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any

from torch import nn

from .configuration import configuration_differences, configuration_of, decides, deciding
from .names import base_of, plain_name, unwrap
from .shards import class_name

VARIES = "varies"  # a number that a forward pass changes is a counter
_NOTHING_IN_EVALUATION = re.compile(r"(\w*Dropout\w*|\w*DropPath|StochasticDepth|DropBlock\w*|Identity)")
_PART = re.compile(r"(?:[^,(]|\([^)]*\))+")  # of what a module prints, between commas
_NOT_THE_FUNCTION = re.compile(r"inplace(=.*)?|(p|drop_prob|dropout|dtype|device|momentum)=.*")
_COUNTERS = re.compile(
    r"(\w+_)?(steps?|epochs?|iters?|iterations?|updates?|batch(es)?|calls|counter|seen|hist(ory)?)(_count|_index)?"
    r"|\w*cached?\w*"
)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a function, which is another in every process
_BATCH_NORM = re.compile(r"(Sync)?BatchNorm(\dd)?")  # which are one function of what they are given


def identity_of(model: nn.Module) -> dict[str, Any]:
    """Return what tells a network from others whose tensors have the same names and shapes, in JSON's terms.

    What cannot change the function in evaluation is left out, such as rates of dropout.
    """
    inner = base_of(model)
    if (config := configuration_of(inner)) is not None:
        return {"class": class_name(inner), **deciding(config)}
    modules: dict[str, nn.Module] = {}
    for name, module in unwrap(model).named_modules():
        modules[plain_name(f"{name}.").removesuffix(".")] = module  # a wrapper gives way to what it wraps
    return {name: value for at, module in modules.items() for name, value in _facts(at, module)}


def identity_differences(
    identity: Mapping[str, Any], other: nn.Module | Mapping[str, Any], *, where: tuple[str, str]
) -> list[str]:
    """List how another network differs from that of a stored identity.

    Args:
        identity: What :func:`identity_of` returned.
        other: The other network, or its identity.
        where: How to say which is which, such as ``("in the spec", "here")``.
    """
    like = configuration_of(other) if isinstance(other, nn.Module) else None
    ours = identity_of(other) if isinstance(other, nn.Module) else other
    theirs, ours = (
        {name: value for name, value in one.items() if VARIES not in (value, two.get(name))}
        for one, two in ((identity, ours), (ours, identity))
    )
    return configuration_differences(theirs, ours, like=like, where=where)


def without_counters(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity in which what a forward pass changed is marked.

    Args:
        before: The identity before the pass.
        after: The identity after it.
    """
    return {name: value if before.get(name, value) == value else VARIES for name, value in after.items()}


def _facts(name: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
    kind = _BATCH_NORM.sub("BatchNorm", class_name(module))
    if _NOTHING_IN_EVALUATION.fullmatch(kind) and not module._parameters and not module._modules:
        return
    said = _said(module)
    yield name or "class", f"{kind}({said})"
    if said and type(module).__module__.startswith("torch.nn."):
        return  # its numbers are in what it says
    for key, value in vars(module).items():
        counts = _COUNTERS.fullmatch(key) or key.startswith("_")
        if decides(key) and _is_whole(value) and not counts:
            yield f"{name}.{key}" if name else key, list(value) if isinstance(value, list | tuple) else value


def _said(module: nn.Module) -> str:
    """Return what a module prints about itself, without the defaults of its class: other versions print others."""
    if isinstance(module, nn.ParameterList | nn.ParameterDict):
        return ""  # only shapes, dtypes and devices
    try:
        parameters = signature(type(module)).parameters.values()
    except (TypeError, ValueError):  # some compiled modules have none
        parameters = ()
    defaults = {f"{parameter.name}={parameter.default!s}" for parameter in parameters}
    parts = (" ".join(part.split()) for part in _PART.findall(_ADDRESS.sub("", module.extra_repr())))
    return ", ".join(
        part for part in parts if part.replace("'", "") not in defaults and not _NOT_THE_FUNCTION.fullmatch(part)
    )


def _is_whole(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return 0 < len(value) <= 64 and all(map(_is_whole, value))
    return isinstance(value, int) and not isinstance(value, bool)
