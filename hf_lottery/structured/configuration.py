"""The configuration of a small model: the same class with fewer heads or a narrower layer, if that is what was cut."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import nn

from ..networks.names import named_tensors
from ..symmetry.errors import SymmetryError
from ..symmetry.inputs import Inputs
from .comparing import own_error
from .copies import named_modules

Sizes = Mapping[str, tuple[int, ...]]
# A field of a configuration: attributes and positions that lead to it, and the number to put there.
FieldChange = tuple[tuple[str | int, ...], int]
_MOST = 256  # models that are built to find the fields, on the meta device


def configure_(
    small: nn.Module,
    large: nn.Module,
    sizes: Iterable[tuple[int, int]],
    inputs: Inputs,
    *,
    outputs: Sequence[str] | None,
) -> bool:
    """Give a small model, in place, a configuration that says its sizes, if its class can express them.

    A model made of the configuration must compute the same, and so must the small model with it.

    Args:
        small: The small model.
        large: The model that it was cut from. A model without a configuration, an object with ``to_dict`` in its
            attribute ``config``, is none of these.
        sizes: Sizes before the cut, each with the size behind it.
        inputs: One call's arguments.
        outputs: Output fields that count, as for ``discover``.

    Returns:
        Whether it has such a configuration now.
    """
    config, kind = getattr(large, "config", None), type(large)
    if not hasattr(config, "to_dict"):
        return False

    made: list[nn.Module] = []

    def proves(found: Any) -> bool:
        made[:] = [_filled(kind, found, small)]
        return _alike(small, made[0], inputs, outputs)

    found = expressed_config(config, kind, _shapes_of(small), sizes=sizes, proves=proves)
    if found is None:
        return False
    held = _put(small, large, found)
    if _alike(made[0], small, inputs, outputs):
        return True
    for module, old in held:
        module.config = old
    return False


def field_changes(large: nn.Module, small: nn.Module) -> list[FieldChange]:
    """Return the numbers in which the configuration of a small model differs from that of the large one."""
    before, after = (dict(_numbers(getattr(model, "config", None), ())) for model in (large, small))
    return [(path, value) for path, value in after.items() if before.get(path, value) != value]


def has_fields(model: nn.Module, changes: Iterable[FieldChange]) -> bool:
    """Tell whether the configuration of a model has a number in every field that is to change."""
    return {path for path, _ in changes} <= dict(_numbers(getattr(model, "config", None), ())).keys()


def put_fields_(small: nn.Module, large: nn.Module, changes: Sequence[FieldChange]) -> None:
    """Give a small model, in place, the configuration of the large one with some numbers changed."""
    if changes:
        _put(small, large, _changed(large.config, changes))


def _alike(reference: nn.Module, model: nn.Module, inputs: Inputs, outputs: Sequence[str] | None) -> bool:
    try:
        own_error(reference, model, inputs, outputs=outputs, alike=True)
    except SymmetryError:
        return False
    return True


def _filled(kind: Callable[[Any], nn.Module], config: Any, small: nn.Module) -> nn.Module:
    """Make a model of a configuration, with the tensors of the small one, which have the same shapes."""
    model = kind(copy.deepcopy(config)).to(next(small.parameters()).device)
    model.load_state_dict(small.state_dict(), assign=True)
    return model.eval()


def _put(small: nn.Module, large: nn.Module, config: Any) -> list[tuple[Any, Any]]:
    """Put the configurations that a model made of one holds into a small model; return the modules and what they held.

    Some classes make others of the one that they are given, as for an encoder.
    """
    with torch.device("meta"):
        made = named_modules(type(large)(copy.deepcopy(config)))
    held = []
    for name, module in named_modules(small).items():
        if (one := vars(made[name]).get("config") if name in made else None) is not None:
            held.append((module, module.config))
            module.config = one
    return held


def expressed_config(
    config: Any,
    kind: Callable[[Any], nn.Module],
    wanted: Sizes,
    *,
    sizes: Iterable[tuple[int, int]],
    proves: Callable[[Any], bool],
) -> Any:
    """Find a configuration whose model has the tensors of a small model, and computes the same.

    Which fields hold a size is not known beforehand: every number in the configuration that is a size before the cut
    may be one. Models are built on the meta device with some of them changed, the fewest first, until one has the
    shapes that are wanted.

    Args:
        config: The configuration of the model before it was cut; not changed.
        kind: The class of the model.
        wanted: Name -> shape of the parameters and buffers of the small model.
        sizes: Sizes before the cut, each with the size behind it.
        proves: Tells whether a configuration whose model has these shapes computes the same as the small model.

    Returns:
        The configuration; None if the class cannot express the small model.
    """
    active, inert = [], []
    if (given := _shapes(kind, config)) is None:
        return None
    for change in _changes(config, {pair for pair in sizes if pair[0] != pair[1]}):
        shapes = _shapes(kind, _changed(config, [change]))
        # A field that breaks the model on its own may be right beside another one, such as heads with their dimension.
        (inert if shapes == given else active).append(change)
    for chosen in _subsets(active):
        found = _changed(config, chosen)
        if _shapes(kind, found) != dict(wanted):
            continue
        # A number of heads or of norm groups may change what is computed, but no shape.
        for more in ((), *((change,) for change in inert), tuple(inert)):
            found = _changed(config, [*chosen, *more])
            if found is not None and proves(found):
                return found
    return None


def _changes(config: Any, sizes: set[tuple[int, int]]) -> list[FieldChange]:
    """List the fields that hold a size, and what may be put there."""
    news = {old: sorted(new for before, new in sizes if before == old) for old, _ in sizes}
    return [(path, new) for path, value in _numbers(config, ()) for new in news.get(value, ())]


def _numbers(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """Yield the place and value of each whole number in a configuration; tables of labels hold no sizes."""
    if hasattr(value, "to_dict"):
        for name in value.to_dict():
            if name not in ("id2label", "label2id") and not name.endswith("token_id") and hasattr(value, name):
                yield from _numbers(getattr(value, name), (*path, name))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _numbers(item, (*path, number))
    elif isinstance(value, int) and not isinstance(value, bool):
        yield path, value


def _subsets(changes: list[FieldChange]) -> Iterator[tuple[FieldChange, ...]]:
    """Yield the choices that change every field once at most, the smallest first: none at all."""
    tried = 0
    for count in range(len(changes) + 1):
        for chosen in combinations(changes, count):
            if len({path for path, _ in chosen}) == count:
                if (tried := tried + 1) > _MOST:
                    return
                yield chosen


def _changed(config: Any, changes: Iterable[FieldChange]) -> Any:
    """Return a copy of a configuration with other numbers; None if the configuration refuses them."""
    config = copy.deepcopy(config)
    try:
        for path, new in changes:
            _set(config, path, new)
    except Exception:  # some check themselves when they are set
        return None
    return config


def _set(holder: Any, path: tuple[str | int, ...], new: int) -> Any:
    """Put a number at a place inside; return what holds it, which is another object for a tuple."""
    name, *rest = path
    inner = getattr(holder, name) if isinstance(name, str) else holder[name]
    value = _set(inner, tuple(rest), new) if rest else new
    if isinstance(name, str):
        setattr(holder, name, value)
    elif isinstance(holder, tuple):
        return (*holder[:name], value, *holder[name + 1 :])
    else:
        holder[name] = value
    return holder


def _shapes(kind: Callable[[Any], nn.Module], config: Any) -> dict[str, tuple[int, ...]] | None:
    """The shapes of a model's parameters and buffers; None if there is no configuration, or it makes no model."""
    if config is None:
        return None
    try:
        with torch.device("meta"):
            model = kind(copy.deepcopy(config))
    except Exception:  # what a configuration can do wrong has no end
        return None
    return _shapes_of(model)


def _shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(model, numbers=False).items()}
