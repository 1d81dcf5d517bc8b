"""PermutationSpec: which axes of which tensors may be permuted together without changing the function. Plain data.

A *group* is one class of axes that move together: the channels of a residual stream, the heads of one attention, the
units of one feed-forward layer. An inner group (the dimensions of each head) has *parents*: its permutation may be
another one for every index of them. A tensor is a set of disjoint *blocks* (the fused ``q|k|v`` is three), and every
axis of a block is a product of groups, outermost first, with the positions that the product takes along the axis.

References:
    Ainsworth, Hayase and Srinivasa, 2023, "Git Re-Basin", arXiv:2209.04836 (the flat specification, without nesting).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..networks.names import named_tensors
from ..storage.atomic import write_atomically
from .errors import SpecMismatchError, SymmetryError
from .groups import Axis, Block, Group, Slot, axis_from_json, axis_to_json, check_blocks, check_group
from .permutation import Permutation
from .verification import VerifyReport, verify

__all__ = ["Axis", "Block", "Group", "PermutationSpec", "Slot", "SpecMismatchError", "SymmetryError"]

FORMAT_VERSION = 1


class PermutationSpec:
    """The permutation symmetries of one architecture.

    Args:
        groups: The groups, free and frozen.
        tensors: Name of a parameter or buffer (every name of a tied one) -> the blocks that make it up.

    Attributes:
        groups: Name -> group.
        tensors: Name -> blocks.
        shapes: Name -> shape of the tensor, as the blocks add up to.

    Raises:
        SymmetryError: The data contradict themselves, naming the group or tensor.

    Example:
        A hidden layer of three units between four frozen inputs and two frozen outputs:

        >>> groups = [Group("in", 4, frozen="input"), Group("hidden", 3), Group("out", 2, frozen="output")]
        >>> axis = {group.name: Axis((group.name,), np.arange(group.size)) for group in groups}
        >>> spec = PermutationSpec(groups, {"fc1.weight": [Block((axis["hidden"], axis["in"]))],
        ...                                 "fc2.weight": [Block((axis["out"], axis["hidden"]))]})
        >>> list(spec.free), spec.shapes["fc2.weight"], spec.coverage()
        (['hidden'], (2, 3), (1.0, 0.0))
    """

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # equality is by value

    def __init__(self, groups: Iterable[Group], tensors: Mapping[str, Sequence[Block]]):
        groups = list(groups)
        self.groups = {group.name: group for group in groups}
        self.tensors = {name: tuple(blocks) for name, blocks in tensors.items()}
        if len(self.groups) != len(groups):
            raise SymmetryError(
                f"group names must be unique; received {len(groups)} groups of {len(self.groups)} names."
            )
        for group in groups:
            check_group(group, self.groups)
        self.shapes = {name: check_blocks(name, blocks, self.groups) for name, blocks in self.tensors.items()}

    @property
    def free(self) -> dict[str, Group]:
        """The groups that may be permuted."""
        return {name: group for name, group in self.groups.items() if group.frozen is None}

    @cached_property
    def members(self) -> dict[str, list[tuple[str, int]]]:
        """Group name -> the (tensor name, axis) pairs it lies on."""
        found: dict[str, dict[tuple[str, int], None]] = {name: {} for name in self.groups}
        for tensor, blocks in self.tensors.items():
            for block in blocks:
                for k, axis in enumerate(block.axes):
                    for leaf in axis.leaves:
                        found[leaf][tensor, k] = None
        return {name: list(places) for name, places in found.items()}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the groups and tensors: where everything lies. What is frozen, and why, does not count."""
        data = self._as_json()
        for group in data["groups"]:
            del group["frozen"]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def identity(self) -> Permutation:
        """The permutation that moves nothing."""
        return Permutation(self, {})

    def random(self, seed: int, groups: str | Iterable[str] | None = None) -> Permutation:
        """A random legal permutation without fixed points: one n-cycle per group and parent index.

        Args:
            seed: The same seed gives the same permutation.
            groups: Move only these free groups (names, or a regular expression); all by default.
        """
        chosen = self.free if groups is None else {name: self.groups[name] for name in self.select(groups)}
        generator, entries = np.random.default_rng(seed), {}
        for name, group in chosen.items():
            outer = tuple(self.groups[parent].size for parent in group.parents)
            rows = [_cycle(group.size, generator) for _ in range(math.prod(outer))]
            entries[name] = np.array(rows, dtype=np.int64).reshape(*outer, group.size)
        return Permutation(self, entries)

    def select(self, names_or_regex: str | Iterable[str]) -> list[str]:
        """Names of the groups meant: a string is a regular expression found anywhere in the name, else exact names.

        Raises:
            SymmetryError: A name is not a group, or the expression matches none.
        """
        if isinstance(names_or_regex, str):
            chosen = [name for name in self.groups if re.search(names_or_regex, name)]
            if not chosen:
                raise SymmetryError(f"the expression must match a group; received {names_or_regex!r}. Print the spec.")
            return chosen
        chosen = list(names_or_regex)
        if unknown := [name for name in chosen if name not in self.groups]:
            raise SymmetryError(f"a group must be in the spec; received {unknown[0]!r}. Print the spec for its names.")
        return chosen

    def freeze(self, names_or_regex: str | Iterable[str], why: str) -> PermutationSpec:
        """The same spec with more groups frozen.

        Args:
            names_or_regex: As for :meth:`select`.
            why: The reason, kept with the group; a group that is already frozen keeps its own.
        """
        chosen = set(self.select(names_or_regex))
        groups = [replace(g, frozen=why) if g.name in chosen and g.frozen is None else g for g in self.groups.values()]
        return PermutationSpec(groups, self.tensors)

    def verify(self, model: nn.Module, inputs: Mapping[str, Any] | tuple[Any, ...], **options: Any) -> VerifyReport:
        """Prove on a randomised float64 copy of ``model`` that legal permutations leave its outputs as they are.

        Arguments, options and errors are those of :func:`hf_lottery.symmetry.verification.verify`.
        """
        return verify(self, model, inputs, **options)

    def check_fits(self, model: nn.Module | Mapping[str, Tensor]) -> None:
        """Check names and shapes against a model (which must hold every tensor) or a state dict (which may hold fewer).

        Tensors without dimensions need no entry.

        Raises:
            SpecMismatchError: Naming the tensor.
        """
        tensors = named_tensors(model)
        for name, tensor in tensors.items():
            if name not in self.shapes:
                if tensor.ndim == 0:
                    continue
                raise SpecMismatchError(f"tensor {name!r} must be in the spec; received no such entry. {_OTHER}")
            if tuple(tensor.shape) != self.shapes[name]:
                raise SpecMismatchError(
                    f"tensor {name!r} must have the spec's shape {list(self.shapes[name])}; "
                    f"received {list(tensor.shape)}. {_OTHER}"
                )
        if isinstance(model, nn.Module) and (missing := [name for name in self.shapes if name not in tensors]):
            raise SpecMismatchError(f"the model must have the tensor {missing[0]!r}; received none. {_OTHER}")

    def coverage(self, names: Iterable[str] | None = None) -> tuple[float, float]:
        """How far the symmetries reach, over the tensors with two or more dimensions.

        Args:
            names: Count only these tensors, such as the prunable ones.

        Returns:
            Share of the elements with a free group on at least one axis, and on both of the first two axes (axes of
            one index, and the kernel axes of a convolution, do not count).
        """
        chosen = self.tensors if names is None else {name: self.tensors[name] for name in names}
        total = some = both = 0
        for name, blocks in chosen.items():
            for block in blocks if len(self.shapes[name]) >= 2 else ():
                size = math.prod(axis.positions.size for axis in block.axes)
                moved = [any(self._moves(leaf) for leaf in axis.leaves) for axis in block.axes]
                first = [yes for yes, length in zip(moved[:2], self.shapes[name], strict=False) if length > 1]
                total, some = total + size, some + size * any(moved)
                both += size * (any(moved) and all(first))
        return (some / total, both / total) if total else (0.0, 0.0)

    def explain(self, tensor: str) -> str:
        """What every axis of a tensor is made of, and why an axis may not move."""
        if tensor not in self.tensors:
            raise SpecMismatchError(f"tensor {tensor!r} must be in the spec; received no such entry. {_OTHER}")
        lines = [f"{tensor} {list(self.shapes[tensor])}"]
        for number, block in enumerate(self.tensors[tensor]):
            for k, axis in enumerate(block.axes):
                parts = [self._describe(leaf) for leaf in axis.leaves] or ["one index"]
                lines.append(f"  block {number} axis {k} ({axis.positions.size}): {' x '.join(parts)}")
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write the spec to ``path`` as JSON."""
        write_atomically(path, (json.dumps(self._as_json(), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> PermutationSpec:
        """Read a spec that :meth:`save` wrote.

        Raises:
            FileNotFoundError: No such file.
            SymmetryError: The file is malformed or newer than this library.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"the spec must be in {path}; received no such file. Check the path.")
        try:
            data = json.loads(path.read_bytes())
            if data["format_version"] != FORMAT_VERSION:
                raise SymmetryError(
                    f"{path}: format_version must be {FORMAT_VERSION}; received {data['format_version']!r}. "
                    "Install a newer hf_lottery."
                )
            groups = [Group(g["name"], g["size"], tuple(g["parents"]), g["frozen"]) for g in data["groups"]]
            sizes = {group.name: group.size for group in groups}
            tensors = {
                name: [Block(tuple(axis_from_json(axis, sizes) for axis in block)) for block in blocks]
                for name, blocks in data["tensors"].items()
            }
        except SymmetryError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SymmetryError(f"{path} must be a spec that save() wrote; received: {error!r}.") from error
        return cls(groups, tensors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PermutationSpec):
            return NotImplemented
        return self.groups == other.groups and self.tensors == other.tensors

    def __repr__(self) -> str:
        """A table: one line per group, the free ones first."""
        rows = [("group", "size", "parents", "members", "frozen")]
        for group in sorted(self.groups.values(), key=lambda group: group.frozen is not None):
            count = str(len(self.members[group.name]))
            rows.append((group.name, str(group.size), ", ".join(group.parents), count, group.frozen or ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        title = f"PermutationSpec({len(self.tensors)} tensors, {len(self.free)} of {len(self.groups)} groups free)"
        return "\n".join([title, *table])

    def _moves(self, name: str) -> bool:
        return self.groups[name].frozen is None and self.groups[name].size > 1

    def _describe(self, name: str) -> str:
        group = self.groups[name]
        inner = f" per {', '.join(group.parents)}" if group.parents else ""
        return f"{name} ({group.size}{inner}; {'free' if group.frozen is None else 'frozen: ' + group.frozen})"

    def _as_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "groups": [
                {"name": g.name, "size": g.size, "parents": list(g.parents), "frozen": g.frozen}
                for g in self.groups.values()
            ],
            "tensors": {
                name: [[axis_to_json(axis) for axis in block.axes] for block in blocks]
                for name, blocks in self.tensors.items()
            },
        }


_OTHER = "The spec is for another model: discover it again on this one."


def _cycle(size: int, generator: np.random.Generator) -> np.ndarray:
    order = generator.permutation(size)
    cycle = np.empty(size, dtype=np.int64)
    cycle[order] = np.roll(order, 1)
    return cycle
