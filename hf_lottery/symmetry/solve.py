"""Solve: from the layouts of a trace to the groups, their nesting, and where they lie in every parameter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .groups import PRODUCT, Axis, Block, Group
from .layout import known_child, unify
from .nodes import Layout, Node, factors, find
from .trace import Axes

# One axis of one block: its nodes, and where along the tensor's axis each multi-index lies.
_Part = tuple[tuple[Node, ...], np.ndarray]


def solve(
    tensors: Mapping[str, Axes], seen: Iterable[Axes], lookups: Iterable[tuple[Layout, Layout]]
) -> tuple[list[Group], dict[str, tuple[Block, ...]]]:
    """Find the groups of labelled tensors.

    Args:
        tensors: Name -> axes of each parameter and buffer.
        seen: The axes of everything that was traced.
        lookups: Pairs of the axes of some positions and the axis they were looked up in. A node that is seen with all
            of the first goes with the second.

    Returns:
        The groups, and the blocks of every tensor: the arguments of a ``PermutationSpec``.
    """
    seen = [*seen]
    while _merge_children([*seen, *tensors.values()]):
        pass
    blocks = {name: list(_blocks(axes)) for name, axes in tensors.items()}
    wanted = {node for parts in blocks.values() for block in parts for leaves, _ in block for node in leaves}
    found = [({*factors(a)}, {*factors(b)} & wanted) for a, b in lookups]
    parents = _parents(wanted, [(axes, found) for axes in seen] + [(axes, []) for axes in tensors.values()])
    names = _names(blocks)
    groups = [
        Group(names[node], node.size, tuple(names[p] for p in parents.get(node, ())), node.frozen)
        for node in sorted(wanted, key=lambda node: node.order)
    ]
    placed = {
        name: tuple(
            Block(tuple(Axis(tuple(names[node] for node in leaves), positions) for leaves, positions in block))
            for block in parts
        )
        for name, parts in blocks.items()
    }
    return groups, placed


def mixed_groups(tensors: Mapping[str, Axes], mixed: Iterable[tuple[Layout, str]]) -> dict[str, str]:
    """Name the groups whose units are combined with each other, and by what.

    Args:
        tensors: What :func:`solve` was given before.
        mixed: Axes, and what mixes them. Of several things, a product of activations counts least.
    """
    names, found = _names({name: list(_blocks(axes)) for name, axes in tensors.items()}), {}
    for axis, by in mixed:
        todo = _nodes([tuple(factors(axis))])
        for node in todo:
            todo += [child for child in map(find, node.children.values()) if child not in todo]
            if node in names and found.get(names[node], PRODUCT) == PRODUCT:
                found[names[node]] = by
    return found


def _nodes(axes: Sequence[Sequence[_Entry]]) -> list[Node]:
    """Return every atom and sum of a tensor, also inside sums."""
    found: list[Node] = []
    todo: list[_Entry] = [entry for axis in axes for entry in axis]
    while todo:
        entry = todo.pop()
        if isinstance(entry, _Fixed):
            todo += entry.inner
            continue
        found.append(entry)
        if entry.kind == "sum":
            todo += [inner for part in entry.parts for inner in factors([part])]
    return found


def _appearances(axes: Axes) -> Iterator[Counter[Node]]:
    """Count the nodes of a tensor, of each of its blocks, of the blocks of these and so on.

    What stands for a node in a block appears only there. The sums that a block was taken from count as its nodes.
    """
    whole = [tuple(factors(axis)) for axis in axes]
    if not any(node.children for node in _nodes(whole)):
        return  # nothing stands for another node
    for entries, inside in _levels(whole):
        yield Counter([*_nodes(entries), *(sum_ for sum_, _ in inside)])


def _merge_children(seen: Sequence[Axes]) -> bool:
    """Merge children with their base where the base is seen without the sum; return whether anything changed.

    They are merged, too, where it is not clear which child stands in a place: the sum lies in the tensor twice, or the
    base has children in two sums.
    """
    together: dict[Node, list[Counter[Node]]] = {}
    for axes in seen:
        for nodes in _appearances(axes):
            for node in nodes:
                if node.children:
                    together.setdefault(node, []).append(nodes)
    changed = False
    for base, tensors in together.items():
        sums = {find(sum_) for (sum_, _), child in find(base).children.items() if find(child) is not find(base)}
        unclear = {sum_ for sum_ in sums if any(nodes[sum_] != 1 for nodes in tensors)}
        merged = unclear or (sums if len(sums) > 1 else ())
        for (sum_, _), child in list(find(base).children.items()):
            if find(sum_) in merged and find(child) is not find(base):
                unify([child], [base])
                changed = True
    return changed


@dataclass(frozen=True)
class _Fixed:
    """One part of a sum, in its place: ``size`` of the sum, ``offset`` of the part, and what the part is made of."""

    size: int
    offset: int
    inner: tuple[_Entry, ...]


_Entry = Node | _Fixed


def _blocks(axes: Axes) -> Iterator[list[_Part]]:
    """Take a tensor apart at its sums; yield the blocks, in which every axis is a product of atoms."""
    for entries, _ in _levels([tuple(factors(axis)) for axis in axes]):
        if not any(map(_first_sum, entries)):
            yield [_place(axis) for axis in entries]


_Inside = tuple[tuple[Node, int], ...]


def _levels(
    axes: Sequence[tuple[_Entry, ...]], inside: _Inside = ()
) -> Iterator[tuple[Sequence[tuple[_Entry, ...]], _Inside]]:
    """Take the first sum apart, then the next; yield all that comes up, and the parts of sums that it lies in."""
    yield axes, inside
    for i, entries in enumerate(axes):
        sum_ = _first_sum(entries)
        if sum_ is None:
            continue
        offset = 0
        for part in list(sum_.parts):
            inner = _Fixed(sum_.size, offset, tuple(factors([part])))
            todo = [inner]  # one occurrence at a time
            block = []
            for k, other in enumerate(axes):
                block.append(_substitute(other, sum_, (*inside, (sum_, offset)), todo if k == i else []))
            yield from _levels(block, (*inside, (sum_, offset)))
            offset += part.size
        return


def _first_sum(entries: Iterable[_Entry]) -> Node | None:
    for entry in entries:
        found = _first_sum(entry.inner) if isinstance(entry, _Fixed) else entry if entry.kind == "sum" else None
        if found is not None:
            return found
    return None


def _substitute(
    entries: Iterable[_Entry], sum_: Node, inside: Sequence[tuple[Node, int]], todo: list[_Fixed]
) -> tuple[_Entry, ...]:
    """Replace the sum's first occurrence by the part in ``todo``, and other nodes by their stand-ins in the block."""
    result: list[_Entry] = []
    for entry in entries:
        if entry is sum_ and todo:
            part = todo.pop()
            entry = _Fixed(part.size, part.offset, part.inner)
        if isinstance(entry, _Fixed):
            inner = _substitute(entry.inner, sum_, inside, todo)
            result.append(_Fixed(entry.size, entry.offset, inner))
        elif entry is sum_:
            result.append(entry)
        else:
            result += _stand_ins(entry, inside)
    return tuple(result)


def _stand_ins(node: Node, inside: Sequence[tuple[Node, int]]) -> list[Node]:
    """Return the nodes that stand for one in all parts of sums that a block lies in."""
    for sum_, offset in inside:
        child = known_child(node, sum_, offset)
        if child is not None and find(child) is not node:
            return [inner for part in factors([child]) for inner in _stand_ins(part, inside)]
    return [node]


def _place(entries: Iterable[_Entry]) -> _Part:
    """Return the leaves of an axis and their positions."""
    leaves: list[Node] = []
    positions = np.zeros((), np.int64)
    for entry in entries:
        if isinstance(entry, _Fixed):
            inner, where = _place(entry.inner)
            where = where + entry.offset
        else:
            inner, where = (entry,), np.arange(entry.size)
        leaves += inner
        positions = positions[(..., *[None] * where.ndim)] * entry.size + where
    return tuple(leaves), positions


_Lookups = Sequence[tuple[set[Node], set[Node]]]


def _parents(wanted: set[Node], seen: Sequence[tuple[Axes, _Lookups]]) -> dict[Node, tuple[Node, ...]]:
    """Find, for each free atom, the atoms it never goes without: it may be permuted anew for each index of them."""
    always: dict[Node, set[Node]] = {}
    outer: Counter[tuple[Node, Node]] = Counter()
    for axes, lookups in seen:
        for block in _blocks(axes):
            counts = [Counter(node for node in leaves if node in wanted) for leaves, _ in block]
            present = {node for leaves, _ in block for node in leaves}
            # Where the experts of some tokens were looked up, a token stands for its expert, but not for itself.
            looked = [(at, of - present) for at, of in lookups if at and at <= present]
            order = [*(node for _, of in looked for node in of), *(node for leaves, _ in block for node in leaves)]
            for node in dict.fromkeys(node for node in order if node in wanted):
                fit = _company(node, counts) | {other for at, of in looked if node not in at for other in of}
                always[node] = always[node] & fit if node in always else fit
                for other in fit:
                    outer[other, node] += 1 if order.index(other) < order.index(node) else -1
    parents = {}
    for node, found in always.items():
        mine = [o for o in found if node not in always.get(o, set()) or (outer[o, node], -o.order) > (0, -node.order)]
        if mine and node.frozen is None:
            parents[node] = mine
    closed = {}
    for node, mine in parents.items():
        # A parent's own parents come along, outermost first.
        chain = sorted(mine, key=lambda o: (len(parents.get(o, ())), o.order))
        closed[node] = tuple(o for o in chain if all(p in mine for p in parents.get(o, ())))
    return closed


def _company(node: Node, counts: Sequence[Counter[Node]]) -> set[Node]:
    """Return the nodes that accompany one in a block such that it is clear which occurrence goes with which."""
    total = sum(counts, Counter())
    return {
        other
        for other in total
        if other is not node and (total[other] == 1 or all(count[other] == count[node] <= 1 for count in counts))
    }


def _names(blocks: Mapping[str, Sequence[Sequence[_Part]]]) -> dict[Node, str]:
    """Give each atom a readable name: the first tensor and axis it lies in."""
    names: dict[Node, str] = {}
    taken: Counter[str] = Counter()
    for tensor, parts in blocks.items():
        for block in parts:
            for axis, (leaves, _) in enumerate(block):
                for node in leaves:
                    if node in names:
                        continue
                    name = f"{tensor}[{axis}]"
                    taken[name] += 1
                    names[node] = name if taken[name] == 1 else f"{name}#{taken[name]}"
    return names
