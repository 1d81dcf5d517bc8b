"""Unit candidates: the groups that are cut unless the user names others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ..symmetry.structure import Structure
from .slicing import known_reads


def unit_candidates(spec: Structure) -> list[str]:
    """Name the groups whose units may be cut by default.

    These are the free groups of more than one unit that send through weights (see ``spec.reads``), are no streams, are
    not mixed, and lie inside no other candidate: whole heads and not their dimensions, key-value heads with their
    queries, the units of each expert. A *stream* is a group that weights read and add to again, as a residual stream or
    a recurrent state does. Streams are read by all layers at once, and groups that a norm, softmax or ranking mixes
    (see ``spec.mixed``) change what the others compute: a user must name them to cut them. Experts and query dimensions
    send through no weight of their own and must be named too.

    Args:
        spec: The symmetries.

    Raises:
        UnitError: The spec does not know which axes are read.
    """
    reads = known_reads(spec, remedy="Name the groups with include, or discover the spec again.")
    out = _streams(spec, reads) | (spec.mixed or {}).keys()
    sending = {
        leaf
        for name, axes in reads.items()
        for block in spec.tensors[name]
        for k in axes
        for leaf in block.axes[k].leaves
    }
    found = {name for name, group in spec.free.items() if group.size > 1 and name in sending and name not in out}
    return [name for name in spec.groups if name in found and not found & set(spec.groups[name].parents)]


def _streams(spec: Structure, reads: Mapping[str, tuple[int, ...]]) -> set[str]:
    """The free groups without which no weights lead from a group back to it; of a circle, the one with most arrows."""
    arrows: dict[str, set[str]] = {name: set() for name in spec.groups}
    for name, axes in reads.items():
        for block in spec.tensors[name]:
            written = {leaf for k, axis in enumerate(block.axes) if k not in axes for leaf in axis.leaves}
            for leaf in (leaf for k in axes for leaf in block.axes[k].leaves):
                arrows[leaf] |= written
    for gate in _gates(spec, arrows):
        arrows[gate] = set()
    degree = Counter(name for before, after in arrows.items() for name in (*[before] * len(after), *after))
    streams = spec.groups.keys() - spec.free.keys()
    for name in sorted(spec.free, key=lambda group: (-degree[group], -len(spec.members[group]))):
        if name in _reached(arrows, name, streams):
            streams.add(name)
    return streams


def _gates(spec: Structure, arrows: dict[str, set[str]]) -> list[str]:
    """The groups that are read from the same wider groups that they write to, as those of squeeze and excite.

    Such a side path multiplies, so what it writes to is no stream because of it. The layers inside a residual block are
    not narrower than the stream in at least one block.
    """
    width = dict.fromkeys(arrows, 0)
    for blocks in spec.tensors.values():
        for axis in (axis for block in blocks for axis in block.axes):
            width |= {leaf: max(width[leaf], axis.positions.size) for leaf in axis.leaves if leaf in width}
    found = []
    for name, after in arrows.items():
        before = {other for other, ahead in arrows.items() if name in ahead}
        if after and after == before and all(width[name] < width[other] for other in after):
            found.append(name)
    return found


def _reached(arrows: dict[str, set[str]], start: str, without: Iterable[str]) -> set[str]:
    """The groups that arrows lead to from a group, and not through some others."""
    found: set[str] = set()
    ahead = set(arrows[start]).difference(without)
    while ahead:
        found |= ahead
        ahead = {after for name in ahead for after in arrows[name]} - found - set(without)
    return found
