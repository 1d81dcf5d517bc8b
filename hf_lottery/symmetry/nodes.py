"""Nodes: the parts that the axes of tensors are made of.

An axis is a row-major product of *nodes*. A node is an atom (an axis that was never taken apart), a product (an axis
that was viewed as several) or a sum (an axis that was cut into blocks). A *wild* node is an axis along which a tensor
is constant.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

Layout = tuple["Node", ...]


class Node:
    """Part of an axis.

    Attributes:
        size: Length.
        kind: "atom", "product", "sum" or "wild".
        parts: The nodes of a product (outermost first) or sum.
        frozen: The reason why it must not be permuted, or None.
        children: (sum, offset) -> the node that stands for this one in that block.
        members: For a sum, the nodes that have children in its blocks.
        stacked: For a sum, whether its parts are different tensors that were stacked. A part that is not read then says
            nothing about the others.
    """

    _count = itertools.count()

    def __init__(self, size: int, kind: str = "atom", parts: Sequence[Node] = (), frozen: str | None = None):
        self.size, self.kind, self.parts, self.frozen = size, kind, list(parts), frozen
        self.link: Node | None = None
        self.children: dict[tuple[Node, int], Node] = {}
        self.members: list[Node] = []
        self.stacked = False
        self.order = next(Node._count)

    def __repr__(self) -> str:
        node = find(self)
        inner = ",".join(map(repr, node.parts))
        return {"atom": f"{node.order}:", "wild": "~", "product": f"P({inner})", "sum": f"S({inner})"}[node.kind] + (
            str(node.size) if not inner else ""
        )


def find(node: Node) -> Node:
    """Return the node that stands for ``node`` after all unifications."""
    while node.link is not None:
        if node.link.link is not None:
            node.link = node.link.link
        node = node.link
    return node


def factors(axis: Iterable[Node]) -> list[Node]:
    """Return an axis as a flat product of atoms, sums and wild nodes, without nodes of size 1."""
    flat: list[Node] = []
    for node in map(find, axis):
        if node.kind == "product":
            flat += factors(node.parts)
        elif node.size != 1:
            flat.append(node)
    return flat


def size_of(axis: Iterable[Node]) -> int:
    """Return the length of an axis."""
    return math.prod(node.size for node in axis)


def wild(size: int) -> Layout:
    """Make an axis along which a tensor is constant."""
    return (Node(size, "wild"),) if size != 1 else ()


def frozen(size: int, why: str) -> Layout:
    """Make an axis that must not be permuted."""
    return (Node(size, frozen=why),) if size != 1 else ()


def atom(size: int) -> Layout:
    """Make an axis about which nothing is known yet."""
    return (Node(size),) if size != 1 else ()


def freeze(axis: Iterable[Node], why: str) -> None:
    """Freeze all parts of an axis in every tensor that has them; the first reason is remembered."""
    for node in map(find, axis):
        if node.kind == "wild":
            continue
        if node.frozen is None or node.parts:
            changed = node.frozen is None
            node.frozen = node.frozen or why
            freeze(node.parts, why)
            if changed:
                freeze(node.children.values(), why)


def is_frozen(node: Node) -> bool:
    """Tell whether no part of the node may be permuted."""
    node = find(node)
    if node.parts:
        return all(is_frozen(part) for part in node.parts)
    return node.kind == "wild" or node.size == 1 or node.frozen is not None
