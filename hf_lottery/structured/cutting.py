"""Cutting: groups are cut one place of the network after the other; what changes the outputs is kept whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np
from torch import nn

from ..symmetry.groups import PRODUCT
from .attributes import Change, Place, attributes_used, candidates, choices, says_what_stays, size_changes
from .layers import layer_changes
from .slicing import Slices, UnitError
from .workshop import PROVEN, Workshop

# What a group lies on, by classes and by names without the numbers of layers, and how deep it is nested.
Key = tuple[frozenset[tuple[type, str, int]], int]
_NUMBER = re.compile(r"\d+")


class Cutting:
    """What is cut so far, and what that took.

    Args:
        workshop: The model to try it on.
        slices: All that is to be cut.

    Attributes:
        fingerprint: The fingerprint of the spec.
        kept: The units of the groups that were cut.
        changes: The attributes that were set, in order.
        reasons: Why a group is kept whole.
    """

    def __init__(self, workshop: Workshop, slices: Slices):
        self._workshop, self._wanted, self._spec = workshop, slices.units, slices.spec
        self.fingerprint = slices.spec.fingerprint
        self.kept: dict[str, np.ndarray] = {}
        self.changes: list[Change] = []
        self.reasons: dict[str, str] = {}
        self._learned: dict[Key, set[Place]] = {}
        self._failed: set[Key] = set()

    def cut(self, groups: Iterable[str], *, prove: bool = True) -> None:
        """Cut groups, those of the same place in other layers at once, and then those that can only be cut together.

        Args:
            groups: Their names.
            prove: Whether the outputs must stay the same. Otherwise the model only has to run.
        """
        ordered = sorted(groups, key=lambda name: len(self._spec.groups[name].parents))
        alike: dict[Key, list[str]] = {}
        for name in ordered:
            alike.setdefault(self._key(name), []).append(name)
        for first, *others in alike.values():
            self._try([first], prove)
            if first in self.reasons or (others and not self._try(others, prove)):
                for name in others:
                    self._try([name], prove)
        for related in (self._beside, self._alike):
            for some in _together([name for name in ordered if name in self.reasons], related):
                self._try(some, prove)

    def _try(self, names: Sequence[str], prove: bool) -> bool:
        """Cut some groups at once if that can be done; else note why not."""
        before = Slices(self._spec, self.kept)
        reason = self._cut_or_reason(names, before, prove)
        for name in names if reason else ():
            self.reasons[name] = reason
        for name in () if reason else names:
            self.reasons.pop(name, None)
        return not reason

    def _cut_or_reason(self, names: Sequence[str], before: Slices, prove: bool) -> str:
        """Cut groups, and return an empty text; or leave all as it was, and return the reason."""
        key = self._key(names[0])
        try:
            after = Slices(self._spec, {**self.kept, **{name: self._wanted[name] for name in names}})
            tensors = {self._workshop.first[tensor] for name in names for tensor, _ in self._spec.members[name]}
            put_back = self._workshop.slice(tensors, after)
        except UnitError as error:
            return str(error)
        errors: list[float | Exception] = []
        for fixed, chosen in self._choices(names, before, after):
            undo = self._workshop.set([*fixed, *chosen])
            errors.append(self._error(prove))
            if _same(errors[-1]):
                if key not in self._learned:
                    undo()
                    chosen = self._without_chance(fixed, chosen, prove)
                    self._workshop.set([*fixed, *chosen])
                self.kept = dict(after.units)
                self.changes += [*fixed, *chosen]
                self._learned[key] = {self._place(change) for change in (*fixed, *chosen)}
                return ""
            undo()
            if (len(errors) > 3 and key in self._failed) or (self._mixed(names) and isinstance(errors[-1], float)):
                break
        put_back()
        self._failed.add(key)
        return self._reason(names, errors)

    def _place(self, change: Change) -> Place:
        return type(self._workshop.modules[change.module]), change.path

    def _without_chance(self, fixed: list[Change], chosen: list[Change], prove: bool) -> list[Change]:
        """Leave out attributes that the model uses as they were: a size of something else, by chance the same number.

        What no pass uses is set if it says a size that is gone; but not in an object that others may share.
        """
        left, modules = chosen, self._workshop.modules
        for place in dict.fromkeys(map(self._place, chosen)):
            fewer = [change for change in left if self._place(change) != place]
            undo = self._workshop.set([*fixed, *fewer])
            with attributes_used() as used:
                error = self._error(prove, others=True)
            undo()
            mine = [(modules[change.module], change.path[0]) for change in left if self._place(change) == place]
            if _same(error) and (
                len(place[1]) > 1 or any((id(m), at) in used or says_what_stays(m, at) for m, at in mine)
            ):
                left = fewer
        return left

    def _error(self, prove: bool, *, others: bool = False) -> float | Exception:
        try:
            if prove:
                return self._workshop.error(others=others)
            return 0.0 if self._workshop.runs() else float("inf")
        except Exception as error:  # whatever the model raises says that it cannot be cut like this
            return error

    def _choices(
        self, names: Sequence[str], before: Slices, after: Slices
    ) -> Iterator[tuple[list[Change], list[Change]]]:
        """Yield the attributes to set: always those of torch's own layers, and then what else may be needed."""
        modules, near, possible = self._workshop.modules, set[str](), dict[Change, None]()
        fixed: dict[Change, None] = {}
        for name in names:
            places = self._spec.members[name]
            owners = self._owners(name)
            around = _around(owners)
            near |= _below(owners, around)
            for owner in owners:
                fixed |= dict.fromkeys(layer_changes(owner, modules[owner], before, after))
            sizes = size_changes(before, after, places)
            possible |= dict.fromkeys(candidates({at: modules[at] for at in around}, sizes))
        done = {(change.module, change.path) for change in fixed}
        fixed = {c: None for c in fixed if getattr(modules[c.module], c.path[0]) != c.value}
        rest = [change for change in possible if (change.module, change.path) not in done]
        classes = {change.module: type(modules[change.module]) for change in rest}
        for chosen in choices(rest, classes, near, self._learned.get(self._key(names[0]))):
            yield [*fixed], chosen

    def _owners(self, group: str) -> list[str]:
        first, owners = self._workshop.first, self._workshop.places.owners
        return list(dict.fromkeys(at for tensor, _ in self._spec.members[group] for at in owners[first[tensor]]))

    def _key(self, group: str) -> Key:
        modules = self._workshop.modules
        places = set()
        for tensor, axis in self._spec.members[group]:
            owner = tensor.rpartition(".")[0]
            places.add((type(modules.get(owner)), _NUMBER.sub("#", tensor), axis))
        return frozenset(places), len(self._spec.groups[group].parents)

    def _beside(self, one: str, two: str) -> bool:
        """Tell whether groups may share a size: as many units, with a parent or a module in common."""
        a, b = self._spec.groups[one], self._spec.groups[two]
        counts = {(self._wanted[name].shape[-1], int(self._wanted[name].sum(-1).max())) for name in (one, two)}
        return len(counts) == 1 and (
            bool(a.parents and a.parents == b.parents) or not set(self._owners(one)).isdisjoint(self._owners(two))
        )

    def _alike(self, one: str, two: str) -> bool:
        """Tell whether groups are of the same place in two layers, which may add what their units make."""
        return self._key(one) == self._key(two)

    def _mixed(self, names: Sequence[str]) -> str:
        """Say what computes with all units of one of the groups at once, other than weights; empty if nothing does."""
        modules = self._workshop.modules
        for owner in (owner for name in names for owner in self._owners(name)):
            if _mixes_channels(modules[owner]):
                return f"{type(modules[owner]).__name__} {owner!r}"
        mixed = self._spec.mixed or {}
        found = [mixed[name] for name in names if name in mixed and mixed[name] != PRODUCT]
        return found[0] if found else ""

    def _reason(self, names: Sequence[str], errors: Sequence[float | Exception]) -> str:
        changes = [error for error in errors if isinstance(error, float)]
        mixed = self._mixed(names)
        if changes and mixed:
            return f"{mixed} reads all of its units at once; the outputs change by {min(changes):.2g}"
        if changes:
            return f"the outputs change by {min(changes):.2g}: something reads all of its units at once, or its size"
        error = errors[0]
        return f"the model does not run with less: {type(error).__name__}: {str(error).strip()[:200]}"


def _same(error: float | Exception) -> bool:
    return isinstance(error, float) and error <= PROVEN


def _together(names: Sequence[str], related: Callable[[str, str], bool]) -> Iterator[list[str]]:
    """Yield groups that may have to be cut at once, since each is related to another one of them."""
    left = list(names)
    while left:
        some, left = [left[0]], left[1:]
        while found := [name for name in left if any(related(name, other) for other in some)]:
            some += found
            left = [name for name in left if name not in found]
        if len(some) > 1:
            yield some


def _mixes_channels(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__ and not isinstance(module, nn.modules.batchnorm._NormBase)


def _around(owners: Collection[str]) -> list[str]:
    """Return the names of modules and of all that they are in."""
    found: dict[str, None] = {}
    for owner in owners:
        parts = owner.split(".") if owner else []
        found |= dict.fromkeys(".".join(parts[:stop]) for stop in range(len(parts), -1, -1))
    return list(found)


def _below(owners: Collection[str], around: Iterable[str]) -> set[str]:
    """Return those modules that are in the smallest one that holds all owners, and that one."""
    paths = [owner.split(".") if owner else [] for owner in owners]
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len({*parts}) > 1:
            break
        common.append(parts[0])
    top = ".".join(common)
    return {name for name in around if not top or name == top or name.startswith(f"{top}.")}
