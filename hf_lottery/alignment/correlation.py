"""Correlations between the units of two networks on the same data, from one forward pass per network and batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..networks.channels import norm_channels, read_channels, written_channels
from ..networks.forward import Forward, run
from ..networks.modes import evaluating
from ..networks.names import plain_name, unwrap
from ..networks.numbers import check_numbers
from ..networks.processes import gathered, reducing_device, sum_over_processes
from ..symmetry.groups import Axis
from ..symmetry.spec import PermutationSpec


class Site(NamedTuple):
    """Where an axis is observed: at the input or output of a module, in some of the channels along a dimension."""

    module: str
    at_input: bool
    dimension: int
    axis: Axis


class Moments:
    """Streaming first and second moments of paired observations.

    The products of a batch are taken around its own means, and batches are merged in float64. The result does not
    depend on the order of the batches, nor on which process has which.
    """

    def __init__(self, size: int):
        self.count = 0.0
        self._size = size
        self._means: list[Tensor] = []  # of the target and of the source
        self._products: list[Tensor] = []  # of their deviations: target squared, source squared, target by source

    def add(self, target: Tensor, source: Tensor) -> None:
        """Add observations ``[rows, units]`` of both networks; the two tensors are overwritten."""
        if target.shape != source.shape:
            return self.spoil()
        if not len(target):
            return
        source = source.to(target.device)
        shifts = target.mean(0), source.mean(0)
        for rows, shift in zip((target, source), shifts, strict=True):
            rows.sub_(shift)
        left = [rows.sum(0).double() / len(rows) for rows in (target, source)]  # float32 means are not exact
        products = [part.double() for part in (_squares(target), _squares(source), target.T @ source)]
        _add_outer_(products, left, -len(target))
        means = [shift.double() + rest for shift, rest in zip(shifts, left, strict=True)]
        self._merge(len(target), means, products)

    def _merge(self, count: int, means: list[Tensor], products: list[Tensor]) -> None:
        before, self.count = self.count, self.count + count
        if not self._means:
            self._means, self._products = means, products
            return
        off = [mean - own for mean, own in zip(means, self._means, strict=True)]
        for own, new in zip(self._products, products, strict=True):
            own.add_(new)
        _add_outer_(self._products, off, before * count / self.count)
        for own, step in zip(self._means, off, strict=True):
            own.add_(step, alpha=count / self.count)

    def spoil(self) -> None:
        """Discard everything: the networks made different numbers of observations here, as for routed tokens."""
        self.count = float("nan")

    def correlation(self) -> np.ndarray | None:
        """Return the Pearson correlations ``[target, source]`` over all processes; None without paired observations.

        Call it once, after the last observation.
        """
        device = self._means[0].device if self._means else reducing_device()
        n, zero = self._size, {"dtype": torch.float64, "device": device}
        count = sum_over_processes(torch.tensor(self.count, **zero))
        if not count > 0:
            return None
        means = self._means or [torch.zeros(n, **zero)] * 2
        products = self._products or [torch.zeros(shape, **zero) for shape in (n, n, (n, n))]
        overall = [sum_over_processes(self.count * mean) / count for mean in means]
        _add_outer_(products, [mean - o for mean, o in zip(means, overall, strict=True)], self.count)
        left, right, cross = map(sum_over_processes, products)
        # The variance of a unit that never varies is a rounding error, small against the squares of its values.
        alive = [v > 1e-10 * (m * m * count + 1e-30) for v, m in zip((left, right), overall, strict=True)]
        scale = [torch.where(ok, v, torch.inf).rsqrt() for ok, v in zip(alive, (left, right), strict=True)]
        return (cross * torch.outer(*scale)).cpu().numpy()


def correlations(
    spec: PermutationSpec,
    groups: Collection[str],
    *,
    source: nn.Module,
    target: nn.Module,
    batches: Iterable[Any],
    forward: Forward | None = None,
) -> list[tuple[Axis, np.ndarray]]:
    """Correlate the units of every axis on which one of ``groups`` can be observed.

    Args:
        spec: The symmetries of both networks.
        groups: Names of the groups to observe.
        source: The network to move.
        target: The network to move it towards.
        batches: Inputs of both networks.
        forward: How to run a network on a batch; see :func:`hf_lottery.networks.forward.run`.

    Returns:
        Pairs of an axis and Pearson correlations, float64 ``[target unit, source unit]`` in [-1, 1], the mean over the
        places where the axis is observed. A unit that never varies has correlation 0.

    Raises:
        ValueError: There are no batches, or an activation is not finite.
    """
    source, target = unwrap(source), unwrap(target)
    for model in (source, target):
        check_numbers(model)
    every = chosen = sites(spec, source, groups)
    moments = {site: Moments(site.axis.positions.size) for site in chosen}
    seen = 0
    for seen, batch in enumerate(batches, 1):
        held, raw = _record(source, chosen, batch, forward, keep=seen == 1)
        chosen = _distinct(chosen, raw) if seen == 1 else chosen
        del raw

        def pair(site: Site, x: Tensor, held=held) -> None:
            if held[site]:
                moments[site].add(_rows(site, x), held[site].pop(0))
            else:
                moments[site].spoil()

        with evaluating(target), _watching(target, chosen, pair):
            run(target, batch, forward=forward)
        for site in chosen:
            if held[site]:
                moments[site].spoil()
    chosen = _of_all(every, chosen if seen else None)
    return _mean_per_axis((site, moments[site].correlation()) for site in chosen)


def _record(
    model: nn.Module, chosen: Sequence[Site], batch: Any, forward: Forward | None, keep: bool
) -> tuple[dict[Site, list[Tensor]], list[tuple[Site, Tensor, int]]]:
    """Record every site in one forward pass; with ``keep`` also return the very tensors, and their versions."""
    held: dict[Site, list[Tensor]] = {site: [] for site in chosen}
    raw: list[tuple[Site, Tensor, int]] = []

    def hold(site: Site, x: Tensor) -> None:
        held[site].append(_rows(site, x))
        if keep:
            raw.append((site, x, x._version))

    with evaluating(model), _watching(model, chosen, hold):
        run(model, batch, forward=forward)
    return held, raw


def sites(spec: PermutationSpec, model: nn.Module, groups: Collection[str]) -> list[Site]:
    """Find where to observe the groups: where they are read, else where they are produced, else at a norm."""
    found: list[Site] = []
    missing = set(groups)
    for at_input, places in ((True, read_channels), (False, written_channels), (False, norm_channels)):
        new: dict[Site, None] = {}
        for name, module in model.named_modules():
            weight = plain_name(f"{name}.weight" if name else "weight")
            place = places(module)
            if place is None or weight not in spec.tensors or len(spec.shapes[weight]) <= place[0]:
                continue
            for block in spec.tensors[weight]:
                axis = block.axes[place[0]]
                if not missing.isdisjoint(axis.leaves):
                    new[Site(name, at_input, place[1], axis)] = None
        found.extend(new)
        missing -= {leaf for site in new for leaf in site.axis.leaves}
    return found


@contextmanager
def _watching(model: nn.Module, chosen: Sequence[Site], see: Callable[[Site, Tensor], None]) -> Iterator[None]:
    """Show every observation of a site to ``see(site, tensor)`` while the block runs."""
    modules = dict(model.named_modules())
    handles = []
    for site in chosen:
        if site.at_input:

            def before(_, args, kwargs, site=site):
                see(site, args[0] if args else next(iter(kwargs.values())))

            handles.append(modules[site.module].register_forward_pre_hook(before, with_kwargs=True))
        else:

            def after(_, __, output, site=site):
                see(site, output)

            handles.append(modules[site.module].register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(site: Site, x: Tensor) -> Tensor:
    """Return an own copy ``[observations, units]`` of the channels that a site observes, in float32 or float64."""
    positions = site.axis.positions.reshape(-1)
    rows = x.movedim(site.dimension, -1)
    rows = rows.reshape(-1, rows.shape[-1])
    if not np.array_equal(positions, np.arange(rows.shape[1])):
        rows = rows[:, torch.from_numpy(positions).to(x.device)]
    rows = rows.to(torch.promote_types(x.dtype, torch.float32))
    return rows.clone() if rows.data_ptr() == x.data_ptr() else rows


def _distinct(chosen: Sequence[Site], raw: Sequence[tuple[Site, Tensor, int]]) -> list[Site]:
    """Keep one site for each observed tensor, since query, key and value read the same input.

    ``raw`` keeps the tensors alive, so that no two of them share an address.
    """
    calls: dict[Site, list[tuple]] = {site: [] for site in chosen}
    for site, x, version in raw:
        calls[site].append((x.data_ptr(), x.shape, x.stride(), version, site.dimension, site.axis))
    first: dict[tuple, Site] = {}
    for site in chosen:
        first.setdefault(tuple(calls[site]) or (site,), site)
    return list(first.values())


def _of_all(every: Sequence[Site], chosen: Sequence[Site] | None) -> list[Site]:
    """Return the sites of all processes; a process without batches cannot tell its own, and passes None."""
    numbers = {site: number for number, site in enumerate(every)}
    shares = gathered(None if chosen is None else [numbers[site] for site in chosen])
    seen = [share for share in shares if share is not None]
    if not seen:
        raise ValueError("activation matching must see at least one batch; received none. An iterator may be used up.")
    return [every[number] for number in sorted(set().union(*seen))]


def _mean_per_axis(found: Iterable[tuple[Site, np.ndarray | None]]) -> list[tuple[Axis, np.ndarray]]:
    sums: dict[Axis, tuple[np.ndarray, int]] = {}
    for site, matrix in found:
        if matrix is None:
            continue
        if not np.isfinite(matrix).all():
            raise ValueError(
                f"activations at {site.module!r}, of group {', '.join(site.axis.leaves)}, must be finite; "
                "received NaN or infinity. "
                "Check both networks on this data, or run them in float32."
            )
        before, count = sums.get(site.axis, (np.zeros_like(matrix), 0))
        sums[site.axis] = before + matrix, count + 1
    return [(axis, summed / count) for axis, (summed, count) in sums.items()]


def _add_outer_(products: Sequence[Tensor], means: Sequence[Tensor], weight: float) -> None:
    """Add ``weight`` times the products of the means of target and source, in place."""
    products[0].add_(means[0].square(), alpha=weight)
    products[1].add_(means[1].square(), alpha=weight)
    products[2].addr_(means[0], means[1], alpha=weight)


def _squares(x: Tensor) -> Tensor:
    return x.square().sum(0)  # einsum would take ten times as long
