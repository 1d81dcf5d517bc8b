"""Layouts: the algebra that ties, splits, cuts and joins the axes of tensors.

Operations unify :mod:`~hf_lottery.symmetry.nodes`; the structure that one tensor shows is then known for every tensor
with the same node.

Cutting an axis separates the other axes of that tensor for each block: in a fused ``q|k|v`` the head order of q need
not be that of k. Each block gets *children* of the other nodes, which are merged with their base at the end if the base
is ever seen without the axis that was cut.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Sequence

from .nodes import Layout, Node, factors, find, freeze, frozen, is_frozen, size_of, wild


def unify(first: Iterable[Node], second: Iterable[Node]) -> Layout:
    """Tie two axes of the same length and return their common layout; a wild part becomes the other axis's part."""
    first, second = tuple(first), tuple(second)
    x, y, known = factors(first), factors(second), []
    while x and y:
        a, b = x[0], y[0]
        if a is b or a.size == b.size:
            known.append(_tie(a, b))
            del x[0], y[0]
            continue
        (small, low), (large, high) = ((x, a), (y, b)) if a.size < b.size else ((y, b), (x, a))
        if _split(high, low.size):
            large[:1] = factors([high]) if high.kind != "wild" else high.parts
        elif (whole := _tie_blocks(high, small)) is not None:
            known += whole
            del large[0], small[: len(whole)]
        else:
            return _misaligned(first, second)
    return tuple(find(node) for node in known)


def _tie_blocks(sum_: Node, axis: Sequence[Node]) -> Sequence[Node] | None:
    """Tie each part of a sum to its block of the first factors of an axis; return these, or None if it has none."""
    sizes = list(itertools.accumulate((node.size for node in axis), operator.mul))
    if sum_.kind != "sum" or sum_.size not in sizes:
        return None
    whole = axis[: sizes.index(sum_.size) + 1]
    for at, part in list(zip(_offsets(sum_), sum_.parts, strict=True)):
        block = cut(whole, at, at + part.size)
        if block is None:
            return None
        unify(block[0], [part])
    return whole


def _misaligned(first: Layout, second: Layout) -> Layout:
    why = "two views of one axis do not align"
    freeze(first, why)
    freeze(second, why)
    return frozen(size_of(first), why)


def _tie(a: Node, b: Node) -> Node:
    a, b = find(a), find(b)
    if a is b or b.kind == "wild":
        return a
    if a.kind == "wild":
        return b
    if a.kind != "atom":
        a, b = b, a
    if a.kind == "atom":
        a.link, b.stacked = b, False
        if a.frozen:
            freeze([b], a.frozen)
        for (sum_, offset), child in list(a.children.items()):
            _adopt(b, sum_, offset, child)
        return find(b)
    _align_sums(a, b)
    return find(a)


def _align_sums(a: Node, b: Node) -> None:
    # A cut may open a part that is itself a sum, which brings new boundaries.
    while missing := {*_offsets(a)} ^ {*_offsets(b)}:
        if not all(_cut_at(a, offset) and _cut_at(b, offset) for offset in missing):
            freeze([a, b], "two axes are cut at places that do not align")
            return
    for left, right in zip(list(a.parts), list(b.parts), strict=True):
        unify([left], [right])
    # Both sums are cut at the same places, so the children of their blocks are the same too.
    a.stacked = a.stacked and b.stacked
    pairs = [(child, known_child(node, a, at)) for node, (_, at), child in _with_children(b)]
    b.link = a  # after this, a node may have two children for one block
    a.members += b.members  # a later cut of the one sum must reach the children in both
    for child, other in pairs:
        if other is not None:
            unify([child], [other])


def _with_children(sum_: Node) -> list[tuple[Node, tuple[Node, int], Node]]:
    found = []
    for node in list(sum_.members):
        for key, child in list(find(node).children.items()):
            if find(key[0]) is sum_:
                found.append((find(node), key, child))
    return found


def _split(node: Node, outer: int) -> bool:
    """Make a node a product of ``outer`` and the rest; return False if that is not possible."""
    node = find(node)
    if node.size % outer:
        return False
    if node.kind == "sum":
        return _split_sum(node, outer)
    if node.kind == "wild":
        node.parts = [Node(outer, "wild"), Node(node.size // outer, "wild")]
        return True
    parts = [Node(outer, frozen=node.frozen), Node(node.size // outer, frozen=node.frozen)]
    node.kind, node.parts = "product", parts
    children, node.children = node.children, {}
    for (sum_, offset), child in children.items():
        unify([child], [child_of(node, sum_, offset)])
    return True


def _split_sum(node: Node, outer: int) -> bool:
    """Make a sum of equal rows a product of its rows and their common axis, as a shuffle of channels needs it."""
    inner = node.size // outer
    places = dict(zip(_offsets(node), node.parts, strict=True))
    if not places.keys() >= {*range(0, node.size, inner)}:
        return False
    rows = Node(outer, "sum", [Node(1) for _ in range(outer)])
    pieces = [[part for at, part in places.items() if at // inner == row] for row in range(outer)]
    pieces = [parts if len(parts) == 1 else [Node(inner, "sum", parts)] for parts in pieces]
    members = _with_children(node)
    node.kind, node.parts = "product", [rows, *common([tuple(piece) for piece in pieces], rows)]
    for other, key, child in members:
        other.children.pop(key, None)
        (piece,), place = pieces[key[1] // inner], key[1] % inner
        stand_in = child_of(other, rows, key[1] // inner)
        if key[1] % inner or (piece.kind == "sum" and piece.parts):
            stand_in = child_of(stand_in, piece, place)
        unify([child], [stand_in])
    return True


def _adopt(node: Node, sum_: Node, offset: int, child: Node) -> None:
    """Let ``child`` stand for ``node`` in a block."""
    node, sum_ = find(node), find(sum_)
    if node.parts or node.frozen is not None or known_child(node, sum_, offset) is not None:
        unify([child], [child_of(node, sum_, offset)])
    else:
        node.children[sum_, offset] = child
        sum_.members.append(node)


def known_child(node: Node, sum_: Node, offset: int) -> Node | None:
    """Return the node that stands for ``node`` in a block; None if :func:`child_of` was never called for it."""
    return next((child for (key, at), child in node.children.items() if at == offset and find(key) is sum_), None)


def child_of(node: Node, sum_: Node, offset: int) -> Node:
    """Return the node that stands for ``node`` in the block of ``sum_`` at ``offset``; make it if needed."""
    node, sum_ = find(node), find(sum_)
    if node.kind == "wild" or node.size == 1 or node is sum_:
        return node
    if (known := known_child(node, sum_, offset)) is not None:
        return known
    if node.parts:
        child = Node(node.size, node.kind, [child_of(part, sum_, offset) for part in node.parts])
    elif node.frozen is not None:
        return node
    else:
        child = Node(node.size)
    node.children[sum_, offset] = child
    sum_.members.append(node)
    return child


def common(pieces: Sequence[Layout], sum_: Node) -> Layout:
    """Return the axis that is each of the pieces in its part of a sum; pieces that cannot move are tied.

    Args:
        pieces: One axis per part of ``sum_``, all of the same length.
        sum_: The sum, without nodes that stand for others in its parts so far.
    """
    flat = [factors(piece) for piece in pieces]
    if all(nodes == flat[0] for nodes in flat):
        return tuple(flat[0])
    if any(all(map(is_frozen, nodes)) for nodes in flat):
        return functools.reduce(unify, pieces)
    base = Node(size_of(pieces[0]))
    for offset, nodes in zip(_offsets(sum_), flat, strict=True):
        # A constant is constant in any order, and a new atom expresses the same.
        nodes = [Node(node.size) if node.kind == "wild" else node for node in nodes]
        base.children[sum_, offset] = nodes[0] if len(nodes) == 1 else Node(base.size, "product", nodes)
    sum_.members.append(base)
    return (base,)


def reunite(sum_: Node) -> None:
    """Let every node stand for itself in all blocks of a sum again."""
    for node, _, child in _with_children(find(sum_)):
        unify([child], [node])


def _offsets(sum_: Node) -> list[int]:
    return list(itertools.accumulate((part.size for part in sum_.parts[:-1]), initial=0))


def _cut_at(node: Node, offset: int) -> bool:
    """Make a node a sum with a boundary at ``offset``; return False if its structure forbids it."""
    node = find(node)
    if offset in (0, node.size):
        return True
    if node.kind == "atom":
        node.kind = "sum"
        node.parts = [Node(offset, frozen=node.frozen), Node(node.size - offset, frozen=node.frozen)]
        children, node.children = node.children, {}
        for (sum_, at), child in children.items():
            unify([child], [child_of(node, sum_, at)])
        return True
    if node.kind != "sum":
        return False
    start = 0
    for index, part in enumerate(node.parts):
        if start < offset < start + part.size:
            halves, part_size = _halves(part, offset - start), part.size
            if halves is None:
                return False
            node.parts[index : index + 1] = halves
            # The nodes that stood for the other axes in the whole part stand for them in each piece.
            for other, (_, at), child in _with_children(node):
                for new in _offsets(node) if at == start else ():
                    if start < new < start + part_size:
                        unify([child], [child_of(other, node, new)])
            return True
        start += part.size
    return True


def _halves(part: Node, offset: int) -> list[Node] | None:
    """Cut a part of a sum into the parts before and after ``offset``; None if its structure forbids the cut."""
    part = find(part)
    if part.kind != "product":
        return list(find(part).parts) if _cut_at(part, offset) else None
    before, after = cut([part], 0, offset), cut([part], offset, part.size)
    return None if before is None or after is None else [*_joined(before[0]), *_joined(after[0])]


def _joined(axis: Layout) -> list[Node]:
    """Return an axis as parts of a sum."""
    flat = factors(axis)
    if len(flat) == 1:
        return list(flat[0].parts) if flat[0].kind == "sum" else flat
    return [Node(size_of(axis), "product", flat)]


_StandIn = Callable[[Node], Layout]


def cut(axis: Iterable[Node], start: int, stop: int) -> tuple[Layout, _StandIn] | None:
    """Cut the block ``[start, stop)`` out of an axis.

    Returns:
        The layout of the block, and a function from a node of another axis to what stands for it in the block. None if
        the structure forbids the cut.
    """
    flat = factors(axis)
    inner = math.prod(node.size for node in flat[1:])
    if not flat:
        return None
    if start % inner or stop % inner:
        return _cut_within_rows(flat, inner, start, stop)
    outer, first, last = flat[0], start // inner, stop // inner
    if outer.kind == "wild":
        return (*wild(last - first), *flat[1:]), lambda node: (node,)
    if not (_cut_at(outer, first) and _cut_at(outer, last)):
        return None
    outer = find(outer)
    if outer.kind != "sum":
        return (outer, *flat[1:]), lambda node: (node,)
    places = [(at, part) for at, part in zip(_offsets(outer), outer.parts, strict=True) if first <= at < last]
    block = places[0][1] if len(places) == 1 else Node(last - first, "sum", [part for _, part in places])

    def stand_in(node: Node) -> Layout:
        pieces = [(child_of(node, outer, at),) for at, _ in places]
        return pieces[0] if len(pieces) == 1 else common(pieces, block)

    return (block, *(inside for node in flat[1:] for inside in stand_in(node))), stand_in


def _cut_within_rows(flat: Sequence[Node], inner: int, start: int, stop: int) -> tuple[Layout, _StandIn] | None:
    """Cut a block that begins or ends inside a row of a product: the rest of a row, whole rows, a part of a row."""
    bounds = sorted({start, min(-(-start // inner) * inner, stop), max(stop // inner * inner, start), stop})
    pieces: list[tuple[Layout, _StandIn]] = []
    for low, high in itertools.pairwise(bounds):
        top = low // inner * inner
        rows = cut(flat, top, -(-high // inner) * inner)
        if rows is None:
            return None
        if high - low < inner:
            part = cut(rows[0], low - top, high - top)
            if part is None:
                return None
            rows = part[0], functools.partial(_twice, rows[1], part[1])
        pieces.append(rows)
    if len(pieces) == 1:
        return pieces[0]
    block = Node(stop - start, "sum", [piece for layout, _ in pieces for piece in _as_one(layout)])

    def stand_in(node: Node) -> Layout:
        return common([inside(node) for _, inside in pieces], block)

    return (block,), stand_in


def _twice(outer: _StandIn, inner: _StandIn, node: Node) -> Layout:
    return tuple(last for first in outer(node) for last in inner(first))


def _as_one(axis: Layout) -> list[Node]:
    flat = factors(axis)
    return flat if len(flat) == 1 else [Node(size_of(axis), "product", flat)]


def concatenate(axes: Sequence[Layout]) -> Layout:
    """Join axes, one after the other, into one.

    Frozen axes make one frozen axis: it has no parts. Comparing neighbours (a cut and a concatenation) would otherwise
    cut an axis of positions into single ones, and every tensor with it.
    """
    nodes = [node for axis in axes for node in factors(axis)]
    if all(map(is_frozen, nodes)) and (why := next((node.frozen for node in nodes if node.frozen), None)):
        return frozen(sum(map(size_of, axes)), why)
    parts: list[Node] = []
    for axis in axes:
        # A constant part is constant in any order. A new atom expresses the same, and can be tied to others.
        flat = [Node(node.size) if node.kind == "wild" else node for node in factors(axis)] or [Node(1)]
        if len(flat) == 1:
            parts += _joined(tuple(flat))
        else:
            parts.append(Node(size_of(axis), "product", flat))
    return (Node(sum(part.size for part in parts), "sum", parts),)


def regroup(axes: Sequence[Layout], sizes: Sequence[int]) -> list[Layout] | None:
    """Distribute the factors of axes over the sizes of a view, in row-major order; None if they do not align."""
    flat = [node for axis in axes for node in factors(axis)]
    result: list[Layout] = []
    for size in sizes:
        taken: list[Node] = []
        missing = size
        while missing != 1:
            if not flat:
                return None
            node = flat[0]
            if node.size > missing:
                if not _split(node, missing):
                    return None
                flat[:1] = factors([node]) if node.kind != "wild" else node.parts
                continue
            if missing % node.size:
                return None
            taken.append(flat.pop(0))
            missing //= node.size
        result.append(tuple(taken))
    return result
