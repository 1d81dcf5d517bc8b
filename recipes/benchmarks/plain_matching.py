"""The plain way to match weights, as it is published: the peer of ``matching.py``.

This is Algorithm 1 of Git Re-Basin (Ainsworth et al., 2023, arXiv:2209.04836) in numpy and scipy, in our own words: one
permutation after the other, one matrix product for every axis that it lies on, until a sweep over all of them gains
nothing. It starts at the identity, and knows no nested groups.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from hf_lottery.symmetry.spec import PermutationSpec

Axes = dict[str, tuple[str | None, ...]]


def axes_of(spec: PermutationSpec) -> Axes:
    """Return tensor name -> the free group on each axis, or None: what the published code has as a table.

    Raises:
        ValueError: An axis has more than one group, or a tensor more than one block.
    """
    found: Axes = {}
    for name, blocks in spec.tensors.items():
        leaves = [axis.leaves for axis in blocks[0].axes]
        if len(blocks) > 1 or any(len(groups) > 1 for groups in leaves):
            raise ValueError(f"the plain way needs one group an axis; received {name!r}. Choose a flat network.")
        found[name] = tuple(next((group for group in groups if group in spec.free), None) for groups in leaves)
    return found


def plain_weight_matching(
    axes: Axes, *, target: dict[str, np.ndarray], source: dict[str, np.ndarray], seed: int = 0
) -> dict[str, np.ndarray]:
    """Find a permutation of every group by plain coordinate descent from the identity."""
    where: dict[str, list[tuple[str, int]]] = {}
    for name in target:
        for axis, group in enumerate(axes[name]):
            if group is not None:
                where.setdefault(group, []).append((name, axis))
    found = {group: np.arange(target[name].shape[axis]) for group, ((name, axis), *_) in where.items()}
    groups, generator = list(where), np.random.default_rng(seed)
    while True:
        progress = False
        for number in generator.permutation(len(groups)):
            group = groups[number]
            n = len(found[group])
            score = np.zeros((n, n))
            for name, axis in where[group]:
                ours = np.moveaxis(target[name], axis, 0).reshape(n, -1)
                theirs = np.moveaxis(permuted(axes[name], found, source[name], but=axis), axis, 0).reshape(n, -1)
                score += ours @ theirs.T
            order = linear_sum_assignment(score, maximize=True)[1]
            gain = score[np.arange(n), order].sum() - score[np.arange(n), found[group]].sum()
            found[group] = order
            progress = progress or gain > 1e-12
        if not progress:
            return found


def permuted(
    groups: tuple[str | None, ...], found: dict[str, np.ndarray], tensor: np.ndarray, but: int | None = None
) -> np.ndarray:
    """Return a tensor with its axes in the order that was found, except one axis."""
    for axis, group in enumerate(groups):
        if group is not None and axis != but:
            tensor = np.take(tensor, found[group], axis=axis)
    return tensor
