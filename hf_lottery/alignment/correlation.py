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
from ..networks.processes import gathered
from ..symmetry.groups import Axis
from ..symmetry.spec import PermutationSpec
from .moments import Moments, Observed, observe


class Site(NamedTuple):
    """Where an axis is observed: at the input or output of a module, in some of the channels along a dimension."""

    module: str
    at_input: bool
    dimension: int
    axis: Axis


class _Place:
    """A site while batches run: which channels it observes, what the source showed there, and the sums over batches."""

    def __init__(self, site: Site):
        self.site = site
        self.moments = Moments(site.axis.positions.size)
        self.held: list[tuple[int, Observed]] = []  # of the source, in this batch, with the rows before any sampling
        self._positions = site.axis.positions.reshape(-1)
        self._index: Tensor | None = None

    def hold(self, x: Tensor, sample: Sample) -> None:
        """Hold what a call of the source shows."""
        self.held.append(self._see(x, sample))

    def pair(self, x: Tensor, sample: Sample) -> None:
        """Pair what a call of the target shows with the same call of the source."""
        if not self.held:
            return self.moments.spoil()
        (rows, source), (count, target) = self.held.pop(0), self._see(x, sample)
        if rows != count:
            return self.moments.spoil()
        self.moments.add(target, source)

    def end_batch(self) -> None:
        """Give up the site if the target made fewer calls than the source."""
        if self.held:
            self.moments.spoil()
            self.held.clear()

    def _see(self, x: Tensor, sample: Sample) -> tuple[int, Observed]:
        dimension = self.site.dimension
        rows = x.numel() // max(x.shape[dimension], 1)
        if dimension == -1:
            x = sample(x.reshape(-1, x.shape[-1]))
        return rows, observe(self._channels(x), dimension)

    def _channels(self, x: Tensor) -> Tensor:
        """Return the channels that are observed: a view if they lie in a row."""
        dimension, start, size = self.site.dimension, int(self._positions[0]), self._positions.size
        if np.array_equal(self._positions, np.arange(start, start + size)):
            return x.narrow(dimension, start, size)
        if self._index is None or self._index.device != x.device:
            self._index = torch.from_numpy(self._positions).to(x.device)
        return x.index_select(dimension, self._index)


class Sample:
    """A random choice of the rows of one batch, the same in both networks and at all places with as many rows.

    Args:
        size: How many rows to choose; None for all.
        seed: Seed of the choice.
        batch: Number of the batch.
    """

    def __init__(self, size: int | None, *, seed: int = 0, batch: int = 0):
        self._size, self._seed = size, (seed, batch)
        self._chosen: dict[tuple[int, torch.device], Tensor] = {}

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the chosen ones of ``rows``, in their order."""
        if self._size is None or len(rows) <= self._size:
            return rows
        key = len(rows), rows.device
        if key not in self._chosen:
            generator = np.random.default_rng((*self._seed, len(rows)))
            chosen = np.sort(generator.choice(len(rows), self._size, replace=False))
            self._chosen[key] = torch.from_numpy(chosen).to(rows.device)
        return rows.index_select(0, self._chosen[key])


def correlations(
    spec: PermutationSpec,
    groups: Collection[str],
    *,
    source: nn.Module,
    target: nn.Module,
    batches: Iterable[Any],
    forward: Forward | None = None,
    tokens: int | None = None,
    one_place: bool = False,
    seed: int = 0,
) -> list[tuple[Axis, np.ndarray]]:
    """Correlate the units of every axis on which one of ``groups`` can be observed.

    Args:
        spec: The symmetries of both networks.
        groups: Names of the groups to observe.
        source: The network to move.
        target: The network to move it towards.
        batches: Inputs of both networks.
        forward: How to run a network on a batch; see :func:`hf_lottery.networks.forward.run`.
        tokens: At most so many rows of a batch are used at places whose channels come last; None uses all.
        one_place: Whether to observe each group at one place, the last.
        seed: Seed of the choice of tokens.

    Returns:
        Pairs of an axis and Pearson correlations, float64 ``[target unit, source unit]`` in [-1, 1], the mean over the
        places where the axis is observed. A unit that never varies has correlation 0.

    Raises:
        ValueError: There are no batches, an activation is not finite, or ``tokens`` is below 1.
    """
    if tokens is not None and tokens < 1:
        raise ValueError(f"tokens must be at least 1, or None for all of them; received {tokens}.")
    source, target = unwrap(source), unwrap(target)
    for model in (source, target):
        check_numbers(model)
    every = sites(spec, source, groups)
    every = _last_of_each(every, groups) if one_place else every
    places = {site: _Place(site) for site in every}
    chosen, seen = list(places.values()), 0
    for seen, batch in enumerate(batches, 1):
        sample = Sample(tokens, seed=seed, batch=seen)
        if seen == 1:
            chosen = _record_first(source, chosen, batch, forward, sample)
        else:
            with _watching(source, chosen, lambda place, x, sample=sample: place.hold(x, sample)):
                run(source, batch, forward=forward)
        with _watching(target, chosen, lambda place, x, sample=sample: place.pair(x, sample)):
            run(target, batch, forward=forward)
        for place in chosen:
            place.end_batch()
    shared = _of_all(every, [place.site for place in chosen] if seen else None)
    return _mean_per_axis((site, places.pop(site).moments.correlation()) for site in shared)


def _record_first(
    model: nn.Module, places: Sequence[_Place], batch: Any, forward: Forward | None, sample: Sample
) -> list[_Place]:
    """Record the first batch, and return one place for each observed tensor: query, key and value read the same input.

    The tensors are kept alive meanwhile, so that no two of them share an address.
    """
    alive: list[Tensor] = []
    calls: dict[Site, list[tuple]] = {place.site: [] for place in places}
    shown: dict[tuple, tuple[int, Observed]] = {}

    def hold(place: _Place, x: Tensor) -> None:
        site = place.site
        key = (x.data_ptr(), x.shape, x.stride(), x._version, site.dimension, site.axis)
        calls[site].append(key)
        alive.append(x)
        if key in shown:
            place.held.append(shown[key])
        else:
            place.hold(x, sample)
            shown[key] = place.held[-1]

    with _watching(model, places, hold):
        run(model, batch, forward=forward)
    first: dict[tuple, _Place] = {}
    for place in places:
        first.setdefault(tuple(calls[place.site]) or (place.site,), place)
    return list(first.values())


def _last_of_each(found: Sequence[Site], groups: Collection[str]) -> list[Site]:
    """Keep the last site of every group, in the order of the modules."""
    missing, kept = set(groups), []
    for site in reversed(found):
        if not missing.isdisjoint(site.axis.leaves):
            kept.append(site)
            missing -= set(site.axis.leaves)
    return kept[::-1]


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
def _watching(model: nn.Module, places: Sequence[_Place], see: Callable[[_Place, Tensor], None]) -> Iterator[None]:
    """Run a block in eval mode, and show every observation of a place to ``see(place, tensor)``."""
    modules = dict(model.named_modules())
    handles = []
    for place in places:
        module = modules[place.site.module]
        if place.site.at_input:

            def before(_, args, kwargs, place=place):
                see(place, args[0] if args else next(iter(kwargs.values())))

            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        else:

            def after(_, __, output, place=place):
                see(place, output)

            handles.append(module.register_forward_hook(after))
    try:
        with evaluating(model):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _of_all(every: Sequence[Site], chosen: Sequence[Site] | None) -> list[Site]:
    """Return the sites of all processes; a process without batches cannot tell its own, and passes None."""
    numbers = {site: number for number, site in enumerate(every)}
    shares = gathered(None if chosen is None else [numbers[site] for site in chosen])
    seen = [share for share in shares if share is not None]
    if not seen:
        raise ValueError("activation matching must see at least one batch; received none. An iterator may be used up.")
    return [every[number] for number in sorted(set().union(*seen))]


def _mean_per_axis(found: Iterable[tuple[Site, np.ndarray | None]]) -> list[tuple[Axis, np.ndarray]]:
    sums: dict[Axis, np.ndarray] = {}
    counts: dict[Axis, int] = {}
    for site, matrix in found:
        if matrix is None:
            continue
        # A unit that is not finite makes its whole row or column NaN.
        if not (np.isfinite(matrix[0]).all() and np.isfinite(matrix[:, 0]).all()):
            raise ValueError(
                f"activations at {site.module!r}, of group {', '.join(site.axis.leaves)}, must be finite; "
                "received NaN or infinity. "
                "Check both networks on this data, or run them in float32."
            )
        counts[site.axis] = counts.get(site.axis, 0) + 1
        if site.axis in sums:
            sums[site.axis] += matrix
        else:
            sums[site.axis] = matrix
    for axis, count in counts.items():
        if count > 1:
            sums[axis] /= count
    return list(sums.items())
