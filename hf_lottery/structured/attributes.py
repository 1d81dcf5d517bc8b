"""Attributes: the whole numbers of modules that say sizes, and how they are set and put back."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from torch import Tensor, nn

from .copies import named_modules
from .slicing import Slices

Path = tuple[str, ...]  # names of attributes, one inside the other
Place = tuple[type, Path]  # a class of modules, and an attribute of them
Kind = tuple[type, Path, Any]  # the same, and its new value
Sizes = Mapping[int, Collection[int]]  # a size -> what it may have become

# Attributes that are set even where no pass shows that they must be: others would speak of a size that is gone.
_SAYS_SIZE = re.compile(r"(^|_)(size|dim|width|features|channels|heads|groups|experts|embed|inner|nx|nf)(_|$)|dim$")
_OF_DATA = re.compile(r"(^|_)(kernel|patch|window|pool|image|vocab|chunk|position|seq|max|label)")
_OF_STREAM = re.compile(r"(^|_)(hidden|embed|model)(_|$)")
_MOST_NUMBERS = 16  # of a list
_MOST_TRIALS = 96


@dataclass(frozen=True)
class Change:
    """An attribute of a module that was set.

    Attributes:
        module: The module's name.
        path: The attribute, or an attribute of an object that the module holds, such as ``("config", "num_heads")``.
        value: The new value; of a list, as a tuple.
    """

    module: str
    path: Path
    value: Any


def size_changes(before: Slices, after: Slices, tensors: Iterable[tuple[str, int]]) -> dict[int, set[int]]:
    """Return which sizes have become which, along axes of tensors.

    Sizes are those of groups that lie next to each other on an axis, multiplied, of whole blocks, and of several blocks
    next to each other.

    Args:
        before: What was kept before.
        after: What is kept now.
        tensors: The names of tensors, each with an axis.
    """
    found: dict[int, set[int]] = {}
    for name, axis in tensors:
        blocks = {block.axes[axis].positions.tobytes(): block.axes[axis] for block in before.spec.tensors[name]}
        axes = sorted(blocks.values(), key=lambda one: int(one.positions.min()))
        lengths = []
        for one in axes:
            old, new = ([slices.size(leaf) for leaf in one.leaves] for slices in (before, after))
            for start, stop in combinations(range(len(old) + 1), 2):
                _note(found, int(np.prod(old[start:stop])), int(np.prod(new[start:stop])))
            lengths.append((int(np.prod(old)), int(np.prod(new))))
        for start, stop in combinations(range(len(lengths) + 1), 2):
            _note(found, *(sum(pair[k] for pair in lengths[start:stop]) for k in (0, 1)))
    return found


def _note(found: dict[int, set[int]], old: int, new: int) -> None:
    if old != new:
        found.setdefault(old, set()).add(new)


def candidates(modules: Mapping[str, nn.Module], sizes: Sizes) -> Iterator[Change]:
    """Yield what attributes of modules, and of the objects that they hold, may have to be set to.

    Args:
        modules: The modules by name.
        sizes: Which sizes have become which.
    """
    for name, module in modules.items():
        for path, value in _numbers(module):
            for new in _renewed(value, sizes):
                yield Change(name, path, new)


def _numbers(module: nn.Module) -> Iterator[tuple[Path, Any]]:
    for key, value in vars(module).items():
        if key.startswith("_") or isinstance(value, Tensor | nn.Module | type | Callable):
            continue
        if _is_number(value):
            yield (key,), value
        elif hasattr(value, "__dict__"):
            yield from (((key, inner), v) for inner, v in vars(value).items() if _is_number(v) and inner[:1] != "_")


def _is_number(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return 0 < len(value) <= _MOST_NUMBERS and all(type(number) is int for number in value)
    return type(value) is int


def _renewed(value: Any, sizes: Sizes) -> Iterator[Any]:
    if isinstance(value, int):
        yield from sorted(sizes.get(value, ()))
    elif any(number in sizes for number in value):
        yield tuple(min(sizes.get(number, [number])) for number in value)


def _says_size(path: Path) -> bool:
    """Return whether the name of an attribute says that it is a size of the network."""
    return bool(_SAYS_SIZE.search(path[-1])) and not _OF_DATA.search(path[-1])


def choices(
    changes: Collection[Change], classes: Mapping[str, type], near: Collection[str], learned: Collection[Place] | None
) -> Iterator[list[Change]]:
    """Yield sets of changes to try, each different, the likeliest first.

    Args:
        changes: All candidates.
        classes: The class of each module.
        near: The modules around the units, without those that also hold much else.
        learned: What was set when units of the same place were cut in another layer; None if there were none.
    """
    by_kind: dict[Kind, list[Change]] = {}
    for change in changes:
        by_kind.setdefault((classes[change.module], change.path, change.value), []).append(change)
    close = [kind for kind, some in by_kind.items() if {c.module for c in some} <= {*near}]
    seen: set[frozenset[Kind]] = set()
    for chosen in _subsets([*by_kind], close, learned):
        some = [change for kind in by_kind if kind in chosen for change in by_kind[kind]]
        if len({(change.module, change.path) for change in some}) == len(some) and chosen not in seen:
            seen.add(chosen)
            yield some
        if len(seen) >= _MOST_TRIALS:
            return


def _subsets(kinds: list[Kind], close: list[Kind], learned: Collection[Place] | None) -> Iterator[frozenset[Kind]]:
    around = [kind for kind in close if _says_size(kind[1])]
    own = [kind for kind in around if len(kind[1]) == 1]  # without those of configurations, which others may share
    if learned is not None:
        yield frozenset(kind for kind in kinds if kind[:2] in learned)
    yield from _one_value_each(own)
    yield frozenset()
    yield from _one_value_each(around)
    for count in (1, 2):
        for some in (own, around):
            yield from map(frozenset, combinations(some, count))
            yield from (frozenset(some) - {*left} for left in combinations(some, count))
    for count in (1, 2):
        yield from map(frozenset, combinations(close, count))
    yield from map(frozenset, combinations(kinds, 1))
    yield from _one_value_each(kinds)


def _one_value_each(kinds: list[Kind]) -> Iterator[frozenset[Kind]]:
    """Yield the kinds with one value for each attribute: the first value of all, then the last."""
    for order in (-1, 1):
        yield frozenset({kind[:2]: kind for kind in kinds[::order]}.values())


class Attributes:
    """The attributes of a model that are set, and can be put back.

    An object that a module holds, such as a configuration, is copied before it is changed, so that other modules with
    the same object do not change.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module):
        self._by_name = named_modules(model)

    def set(self, changes: Iterable[Change]) -> list[Callable[[], None]]:
        """Set attributes, and return functions that put them back, to be called in reverse order."""
        undo: list[Callable[[], None]] = []
        for change in changes:
            module, (first, *inner) = self._by_name[change.module], change.path
            old = getattr(module, first)
            value = _as(old, change.value)
            if inner:
                value = copy.copy(old)
                setattr(value, inner[0], _as(getattr(old, inner[0]), change.value))
            undo.append(lambda module=module, first=first, old=old: setattr(module, first, old))
            setattr(module, first, value)
        return undo


def says_what_stays(module: nn.Module, attribute: str) -> bool:
    """Return whether an attribute says how wide the stream is that a module reads, and it still is that wide.

    As many units of its own, such as heads times their dimensions, say nothing of it.
    """
    left = {length for tensor in module.parameters() for length in tensor.shape}
    return bool(_OF_STREAM.search(attribute)) and getattr(module, attribute) in left


@contextmanager
def attributes_used() -> Iterator[set[tuple[int, str]]]:
    """Note which attributes of modules are looked up in a block: pairs of the ``id`` of a module and a name."""
    used: set[tuple[int, str]] = set()

    def noting(module: nn.Module, name: str) -> Any:
        used.add((id(module), name))
        return object.__getattribute__(module, name)

    nn.Module.__getattribute__ = noting
    try:
        yield used
    finally:
        del nn.Module.__getattribute__


def _as(old: Any, value: Any) -> Any:
    return list(value) if isinstance(old, list) else value
