"""Structure: the groups of an architecture and where they lie in its tensors, as plain data.

:class:`~hf_lottery.symmetry.spec.PermutationSpec` is a structure that can also draw permutations and verify itself.
Permutations and the verification need only the data; they import this module, and ``spec`` imports them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..networks.display import html_table, text_table
from ..networks.identity import identity_differences
from ..networks.names import named_tensors
from ..networks.selection import Patterns, near_names, select_names
from ..storage.atomic import write_atomically
from ..storage.json_files import seal_json
from .errors import SpecMismatchError, SymmetryError
from .groups import KERNEL, Block, Group, axis_from_json, axis_to_json, check_blocks, check_group
from .inputs import Inputs
from .spec_file import FORMAT_VERSION, read_spec

if TYPE_CHECKING:
    from typing_extensions import Self

SHOWN = 20  # rows that a table prints
_HEADER = ("group", "size", "parents", "members", "frozen")
_OTHER = "The spec is for another model: discover it again on this one."


class Structure:
    """The groups of one architecture, and the blocks that make up its tensors.

    The arguments, attributes and errors are those of :class:`~hf_lottery.symmetry.spec.PermutationSpec`.
    """

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # equality is by value

    def __init__(
        self,
        groups: Iterable[Group],
        tensors: Mapping[str, Sequence[Block]],
        *,
        network: Mapping[str, Any] | None = None,
        proof: str | None = None,
        reads: Mapping[str, Sequence[int]] | None = None,
        mixed: Mapping[str, str] | None = None,
    ):
        groups = list(groups)
        self.network = None if network is None else dict(network)
        self.proof = proof
        self.reads = None if reads is None else {name: tuple(axes) for name, axes in reads.items() if axes}
        self.mixed = None if mixed is None else dict(mixed)
        self.inputs: Inputs | None = None
        self.outputs: tuple[str, ...] | None = None
        self.groups = {group.name: group for group in groups}
        self.tensors = {name: tuple(blocks) for name, blocks in tensors.items()}
        if len(self.groups) != len(groups):
            raise SymmetryError(
                f"group names must be unique; received {len(groups)} groups of {len(self.groups)} names."
            )
        for group in groups:
            check_group(group, self.groups)
        self.shapes = {name: check_blocks(name, blocks, self.groups) for name, blocks in self.tensors.items()}
        for name, axes in (self.reads or {}).items():
            if name not in self.shapes or not all(0 <= axis < len(self.shapes[name]) for axis in axes):
                raise SymmetryError(
                    f"reads must name axes of tensors of the spec; received {list(axes)} of {name!r}. "
                    "Discover the spec again."
                )
        if unknown := (self.mixed or {}).keys() - self.groups.keys():
            raise SymmetryError(f"mixed must name groups; received {min(unknown)!r}. Discover the spec again.")

    @property
    def free(self) -> dict[str, Group]:
        """The groups that may be permuted."""
        return {name: group for name, group in self.groups.items() if group.frozen is None}

    @cached_property
    def members(self) -> dict[str, list[tuple[str, int]]]:
        """Group name -> the (tensor name, axis) pairs that the group lies on."""
        found: dict[str, dict[tuple[str, int], None]] = {name: {} for name in self.groups}
        for tensor, blocks in self.tensors.items():
            for block in blocks:
                for k, axis in enumerate(block.axes):
                    for leaf in axis.leaves:
                        found[leaf][tensor, k] = None
        return {name: list(places) for name, places in found.items()}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the groups and of where they lie.

        It does not depend on what is frozen, nor on the reasons, nor on the network.
        """
        data = self._as_json()
        for group in data["groups"]:
            del group["frozen"]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def entry_shape(self, group: str) -> tuple[int, ...]:
        """Return the shape of a group's permutation: the sizes of its parents, then its own."""
        return tuple(self.groups[name].size for name in (*self.groups[group].parents, group))

    def select(self, include: Patterns | None, *, exclude: Patterns | None = None) -> list[str]:
        """Choose groups by name.

        Args:
            include: A regular expression that may match anywhere in a name, or several. A full name selects that group
                alone. None selects all groups.
            exclude: Patterns of the groups to leave out, of the same kind.

        Returns:
            The names, in the order of :attr:`groups`.

        Raises:
            SymmetryError: A pattern matches no group.
        """

        def hint(pattern: str) -> str:
            return f"{near_names(pattern, self.groups)} list(spec.groups) shows all names."

        return select_names(
            self.groups, include=include, exclude=exclude, what="a group", error=SymmetryError, hint=hint
        )

    def freeze(self, include: Patterns, why: str) -> Self:
        """Return the same spec with more groups frozen.

        Args:
            include: The groups to freeze, as for :meth:`select`.
            why: The reason, kept with the group. A group that is already frozen keeps its own reason.
        """
        chosen = set(self.select(include))
        groups = [replace(g, frozen=why) if g.name in chosen and g.frozen is None else g for g in self.groups.values()]
        more = {"network": self.network, "proof": self.proof, "reads": self.reads, "mixed": self.mixed}
        spec = type(self)(groups, self.tensors, **more)
        spec.inputs, spec.outputs = self.inputs, self.outputs
        return spec

    def check_fits(self, model: nn.Module | Mapping[str, Tensor]) -> None:
        """Check names and shapes against a model (which must hold every tensor) or a state dict (which may hold fewer).

        Tensors without dimensions or elements need no entry. Of a model it is also checked that it is the network that
        the spec was discovered on: the same class, heads, groups and configuration, whatever its weights are.

        Raises:
            SpecMismatchError: A tensor is missing, unknown, or of another shape, or the model is another network. The
                message names the difference.
            TypeError: This is neither a model nor a mapping from name to tensor.
        """
        if not isinstance(model, nn.Module | Mapping):
            raise TypeError(
                f"a spec must be compared with a model, a state dict or a mask; received {type(model).__name__}. "
                "Of a ticket, pass ticket.mask."
            )
        tensors = named_tensors(model, numbers=False)
        for name, tensor in tensors.items():
            if name not in self.shapes:
                if tensor.ndim == 0 or tensor.numel() == 0:
                    continue
                raise SpecMismatchError(f"tensor {name!r} must be in the spec; received no such entry. {_OTHER}")
            if tuple(tensor.shape) != self.shapes[name]:
                raise SpecMismatchError(
                    f"tensor {name!r} must have the spec's shape {list(self.shapes[name])}; "
                    f"received {list(tensor.shape)}. {_OTHER}"
                )
        if isinstance(model, nn.Module) and (missing := [name for name in self.shapes if name not in tensors]):
            raise SpecMismatchError(f"the model must have the tensor {missing[0]!r}; received none. {_OTHER}")
        if isinstance(model, nn.Module) and self.network is not None:
            self._refuse(identity_differences(self.network, model, where=("in the spec", "here")), "model")

    def check_network(self, network: Mapping[str, Any] | None) -> None:
        """Check that what another spec says of its network agrees with this one, as far as both say anything.

        Raises:
            SpecMismatchError: They are of different networks. The message names the difference.
        """
        if self.network is not None and network is not None:
            differences = identity_differences(self.network, network, where=("in one spec", "in another"))
            self._refuse(differences, "other spec")

    def check_like(self, other: Structure) -> None:
        """Check that another spec has the same groups at the same places, whatever their sizes.

        So a spec that was discovered without weights is compared with the proven one of a narrow copy. It is evidence,
        and no proof: what is narrow may hide what only the wide network does. Axes of one index belong to no group.

        Args:
            other: The spec of a network of the same layers with fewer units in each.

        Raises:
            SpecMismatchError: They differ. The message names the first group or tensor.
        """
        for what, mine, theirs in (
            ("group", self._nesting(), other._nesting()),
            ("tensor", self._places(), other._places()),
        ):
            for name in [*mine, *theirs]:
                if mine.get(name) != theirs.get(name):
                    raise SpecMismatchError(
                        f"the other spec must have the same groups at the same places; received the {what} {name!r} "
                        f"with {theirs.get(name)} instead of {mine.get(name)}. Compare networks of the same layers "
                        "and numbers of heads and experts, of which no size that differs is one."
                    )

    def _nesting(self) -> dict[str, tuple[tuple[str, ...], str]]:
        return {g.name: (g.parents, "free" if g.frozen is None else "frozen") for g in self.groups.values()}

    def _places(self) -> dict[str, list[list[tuple[str, ...]]]]:
        tensors = self.tensors.items()
        return {name: [[axis.leaves for axis in block.axes] for block in blocks] for name, blocks in tensors}

    def _refuse(self, differences: Sequence[str], what: str) -> None:
        if differences:
            more = f"; and {len(differences) - 8} more" if len(differences) > 8 else ""
            raise SpecMismatchError(
                f"the {what} must be of the network that the spec was discovered on; received another: "
                f"{'; '.join(differences[:8])}{more}. Discover the spec again on this one. If the difference cannot "
                "change which axes may be permuted, PermutationSpec(spec.groups.values(), spec.tensors) goes by "
                "names and shapes alone."
            )

    def coverage(self, *, names: Iterable[str] | None = None) -> tuple[float, float]:
        """Measure how far the symmetries reach, over the tensors with two or more dimensions.

        Args:
            names: Count only these tensors, such as the prunable ones.

        Returns:
            Share of the elements with a free group on at least one axis, and on every axis that units lie on. The axes
            of a convolution's kernel and axes of one index do not count.
        """
        elements = some = both = 0
        for size, moved in self._moved(names):
            elements, some = elements + size, some + size * any(why is None for why in moved)
            both += size * (bool(moved) and all(why is None for why in moved))
        return (some / elements, both / elements) if elements else (0.0, 0.0)

    def held_by(self, *, names: Iterable[str] | None = None) -> dict[str, float]:
        """Say what keeps the second figure of :meth:`coverage` from being one.

        Args:
            names: Count only these tensors, such as the prunable ones.

        Returns:
            Why an axis is frozen, or both reasons -> share of the elements, the largest first. The shares and the
            second figure of :meth:`coverage` make one.
        """
        elements, held = 0, Counter[str]()
        for size, moved in self._moved(names):
            elements += size
            if not moved or any(moved):
                held["; ".join(dict.fromkeys(why for why in moved if why)) or "one index"] += size
        return {why: size / elements for why, size in held.most_common()}

    def _moved(self, names: Iterable[str] | None) -> Iterator[tuple[int, list[str | None]]]:
        """Yield each block's number of elements, and why each of its axes of units cannot move (None if it can)."""
        for name in self.tensors if names is None else names:
            shape = self.shapes[name]
            for block in self.tensors[name] if len(shape) >= 2 else ():
                axes = [axis.leaves for axis, length in zip(block.axes, shape, strict=True) if length > 1]
                reasons = [self._reason(leaves) for leaves in axes]
                yield math.prod(axis.positions.size for axis in block.axes), [r for r in reasons if r != KERNEL]

    def _reason(self, leaves: Iterable[str]) -> str | None:
        """Return why an axis cannot move, None if it can."""
        if any(self._moves(leaf) for leaf in leaves):
            return None
        return next((why for leaf in leaves if (why := self.groups[leaf].frozen)), "one index")

    def explain(self, tensor: str) -> str:
        """Describe what every axis of a tensor is made of, and why an axis may not move."""
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
        more = {"network": self.network, "proof": self.proof, "reads": self.reads, "mixed": self.mixed}
        data = {**self._as_json(), "format_version": FORMAT_VERSION, **more}
        write_atomically(path, seal_json(data, what="a spec"))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a spec that :meth:`save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            SymmetryError: The file is malformed or newer than this library.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"the spec must be in {path}; received no such file. Check the path.")
        data = read_spec(path)
        groups = [Group(g["name"], g["size"], tuple(g["parents"]), g["frozen"]) for g in data["groups"]]
        sizes = {group.name: group.size for group in groups}
        tensors = {
            name: [Block(tuple(axis_from_json(axis, sizes) for axis in block)) for block in blocks]
            for name, blocks in data["tensors"].items()
        }
        try:
            more = {key: data.get(key) for key in ("network", "proof", "reads", "mixed")}
            return cls(groups, tensors, **more)
        except SymmetryError as error:
            raise SymmetryError(f"{path}: {error!s:.600}") from error

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Structure):
            return NotImplemented
        return (self.groups, self.tensors, self.network) == (other.groups, other.tensors, other.network)

    def __repr__(self) -> str:
        """Return a table with one line per group, the free ones first; a long table is cut."""
        return f"{self._title()}\n{text_table(_HEADER, self._rows(), limit=SHOWN)}"

    def _repr_html_(self) -> str:
        return f"<p>{self._title()}</p>\n{html_table(_HEADER, self._rows(), limit=SHOWN)}"

    def _title(self) -> str:
        free = f"{len(self.free)} of {len(self.groups)} groups free"
        proof = ", not proven yet: call verify" if self.proof == "later" else ""
        return f"{type(self).__name__}({len(self.tensors)} tensors, {free}{proof})"

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (g.name, str(g.size), ", ".join(g.parents), str(len(self.members[g.name])), g.frozen or "")
            for g in sorted(self.groups.values(), key=lambda group: group.frozen is not None)
        ]

    def _moves(self, name: str) -> bool:
        return self.groups[name].frozen is None and self.groups[name].size > 1

    def _describe(self, name: str) -> str:
        group = self.groups[name]
        inner = f" per {', '.join(group.parents)}" if group.parents else ""
        return f"{name} ({group.size}{inner}; {'free' if group.frozen is None else 'frozen: ' + group.frozen})"

    def _as_json(self) -> dict[str, Any]:
        return {
            "format_version": 1,  # of what the fingerprint hashes; it stays when the file's version changes
            "groups": [
                {"name": g.name, "size": g.size, "parents": list(g.parents), "frozen": g.frozen}
                for g in self.groups.values()
            ],
            "tensors": {
                name: [[axis_to_json(axis) for axis in block.axes] for block in blocks]
                for name, blocks in self.tensors.items()
            },
        }
