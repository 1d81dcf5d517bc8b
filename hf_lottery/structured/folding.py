"""Folding: what units send that never changes is added to the biases of the layers that read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..masks.mask import Mask
from ..networks.channels import read_channels, written_channels
from ..networks.generators import kept_generators
from ..networks.names import named_tensors, plain_name, unwrap
from ..symmetry.inputs import Inputs, checked_inputs, first_taken
from ..symmetry.kept import kept_buffers
from ..symmetry.randomised import Randomised
from ..symmetry.structure import Structure
from ..symmetry.trace import call, plain_kernels
from .copies import named_modules
from .slicing import Units
from .wiring import Wiring

_SAME = 1e-10  # of the largest number that a layer reads
_ZERO = 1e-13


@dataclass
class Folds:
    """Constants to add to biases, and the weights through which units sent them.

    Attributes:
        added: Name of a bias -> what to add, in float64.
        removed: Name of a weight -> bool tensor, True for the elements to set to zero.
    """

    added: dict[str, Tensor] = field(default_factory=dict)
    removed: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def fold_(model: nn.Module, folds: Folds) -> None:
    """Add constants to biases, in place, and set to zero the weights that brought them; outputs stay the same.

    Args:
        model: The model that :func:`live_units` saw, under the mask that it was given.
        folds: What it returned.
    """
    tensors = named_tensors(model)
    for name, addition in folds.added.items():
        bias = tensors[name].detach()
        bias.copy_(bias.double() + addition.to(bias.device))
    for name, removed in folds.removed.items():
        tensors[name].detach().masked_fill_(removed.to(tensors[name].device), 0)


def live_units(model: nn.Module, spec: Structure, mask: Mask | None, inputs: Inputs) -> tuple[dict[str, Tensor], Folds]:
    """Choose the units to keep of a network under a mask, so that without the others it computes the same.

    Units that send nothing go. So do units that receive nothing through a weight, if all layers that read them are seen
    to read a constant, on the inputs and on others of another length, whatever the weights are that are not zero. The
    constant must be zero or reach the bias of the reading layer: one without a bias, and a convolution that pads with
    zeros, can only do without zeros. Of nested groups as many units stay for each index of the parents, and of every
    group at least one.

    Args:
        model: The network; not changed.
        spec: Its spec.
        mask: Which weights stay; None for the zeros that the model has.
        inputs: One call's arguments.

    Returns:
        Group -> bool tensor of ``spec.entry_shape(group)``, True for units to keep, for every group that loses units;
        and the constants to add to biases first.

    Raises:
        SpecMismatchError: The spec is for another network.
        MaskMismatchError: The mask is for another network.
        UnitError: The spec does not know which axes are read.
        SymmetryError: The model does not take the inputs.
    """
    model = unwrap(model)
    spec.check_fits(model)
    if mask is not None:
        mask.check_fits(model)
    with kept_generators(accelerators=torch.cuda.is_initialized()):
        bench = _Bench(model, spec, mask, checked_inputs(model, inputs))
        wiring, folds = Wiring(spec, bench.nonzero()), Folds()
        changed = True
        while changed:
            while wiring.remove(wiring.silent()):
                pass
            changed = _fold_once(bench, wiring, folds)
    return _kept(wiring.silent()), folds


def _fold_once(bench: _Bench, wiring: Wiring, folds: Folds) -> bool:
    """Fold the constants of units that the layers which read them can do without; return whether there were any."""
    silent = wiring.silent()
    candidates = {group: units & ~silent[group] for group, units in wiring.partly_deaf().items()}
    if not any(units.any() for units in candidates.values()):
        return False
    constants = bench.constants()
    elsewhere = wiring.sending_elsewhere({name: ~np.isnan(values) for name, values in constants.items()})
    sent = wiring.sent_by({group: units & ~elsewhere[group] for group, units in candidates.items()})
    bench.fold({name: torch.from_numpy(elements) for name, elements in sent.items()}, constants, folds)
    wiring.clear(sent)
    return bool(sent)


@dataclass
class _Reader:
    """A layer that reads units: where in its weight and its input they are, and which bias takes a constant."""

    module: nn.Module
    axis: int
    channels: int
    written: int
    bias: str | None


class _Bench:
    """A float64 copy of a model under a mask, on which the inputs of layers are watched.

    Args:
        model: The model; not changed.
        spec: Its spec.
        mask: Which weights stay.
        inputs: One call's arguments.
    """

    def __init__(self, model: nn.Module, spec: Structure, mask: Mapping[str, Tensor] | None, inputs: Inputs):
        self._stage = Randomised(model)
        self._first = self._stage.first_names()
        tensors = {name: tensor for name, tensor in named_tensors(model).items() if tensor.is_floating_point()}
        self._own = {name: t.detach().to(self._stage.device, torch.float64)
                     for name, t in tensors.items() if self._first[name] == name}  # fmt: skip
        self._values = dict(self._own)
        for name, entry in (mask or {}).items():
            self._values[self._first[name]] = self._values[self._first[name]] * entry.to(self._stage.device)
        self._named = {plain_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
        self._readers = self._find_readers(spec)
        self._runs = [self._stage.inputs(inputs)]
        self._run(self._runs[0])
        self._stage.settle()  # a first pass may have extended buffers
        if other := first_taken(self._runs[0], self._run):
            self._runs.append(other[0])

    def _run(self, inputs: Inputs) -> None:
        model = self._stage.model
        with kept_buffers(model), plain_kernels(model), self._stage.computing():
            call(model, inputs)

    def nonzero(self) -> dict[str, Tensor]:
        """Return which elements of every tensor are not zero."""
        return {name: self._values[first] != 0 for name, first in self._first.items() if first in self._values}

    def _find_readers(self, spec: Structure) -> dict[str, _Reader]:
        """Return the layers that are known to read through their weights, by the names of these."""
        found, shared = (
            {},
            Counter(id(module.bias) for module in self._stage.model.modules() if hasattr(module, "bias")),
        )
        for name, module in named_modules(self._stage.model).items():
            weight, reads, writes = f"{name}.weight".lstrip("."), read_channels(module), written_channels(module)
            if reads and writes and reads[0] in (spec.reads or {}).get(weight, ()):
                bias = f"{name}.bias".lstrip(".")
                usable = bias in self._named and shared[id(module.bias)] == 1 and not _pads_with_zeros(module)
                found[weight] = _Reader(module, *reads, writes[0], self._first[bias] if usable else None)
        return found

    def constants(self) -> dict[str, np.ndarray]:
        """Return, for each weight that a layer reads through, what the layer reads of each unit; NaN where it varies.

        What the layer's bias cannot take is NaN, too.
        """
        real = self._watched(dict(self._values))
        noisy = self._watched({
            name: (self._stage.value(name) - self._own[name]) * (value != 0)
            for name, value in self._values.items()
            if name in self._named
        })  # fmt: skip
        found = {}
        for name in real.keys() & noisy.keys():
            (low, high, scale), (least, most, other) = real[name], noisy[name]
            value = torch.where(torch.maximum(low.abs(), high.abs()) <= _ZERO * scale, 0.0, (low + high) / 2)
            same = (high - low <= _SAME * scale) & (most - least <= _SAME * other)
            fits = same & ((value == 0) | (self._readers[name].bias is not None))
            found[name] = torch.where(fits, value, torch.nan).cpu().numpy()
        return found

    @torch.no_grad()
    def _watched(self, values: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor, float]]:
        """Run with some values; return the least and the largest number that layers read of each unit, and of all."""
        seen: dict[str, tuple[Tensor, Tensor, float]] = {}

        def watch(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rows = (*args, *kwargs.values())[0].movedim(self._readers[name].channels, -1)
            rows = rows.reshape(-1, rows.shape[-1])
            if not len(rows):
                return
            low, high, scale = rows.amin(0), rows.amax(0), float(rows.abs().max())
            if name in seen:
                low, high = torch.minimum(low, seen[name][0]), torch.maximum(high, seen[name][1])
                scale = max(scale, seen[name][2])
            seen[name] = low, high, scale

        hooks = [
            reader.module.register_forward_pre_hook(partial(watch, name), with_kwargs=True)
            for name, reader in self._readers.items()
        ]
        self._stage.restore()
        shapes = {name: tensor.shape for name, tensor in self._stage.tensors.items()}  # the first pass extends tables
        self._stage.change({n: lambda _, value=value: value for n, value in values.items() if value.shape == shapes[n]})
        try:
            for inputs in self._runs:
                self._run(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    @torch.no_grad()
    def fold(self, sent: Mapping[str, Tensor], constants: Mapping[str, np.ndarray], folds: Folds) -> None:
        """Add what some elements of weights bring to the biases beside them, and set these elements to zero.

        Args:
            sent: Name of a weight -> which of its elements.
            constants: What :meth:`constants` returned.
            folds: Where to note it.
        """
        done = set()
        for name, elements in sent.items():
            reader, weight = self._readers[name], self._values[self._first[name]]
            values = torch.from_numpy(constants[name]).to(weight.device).nan_to_num()
            shape = [-1 if axis == reader.axis else 1 for axis in range(weight.ndim)]
            brought = torch.where(elements.to(weight.device), weight * values.reshape(shape), 0.0)
            key = self._first[name], reader.bias
            if reader.bias is not None and brought.any() and key not in done:
                added = brought.sum([axis for axis in range(weight.ndim) if axis != reader.written])
                self._values[reader.bias] = self._values[reader.bias] + added
                folds.added[reader.bias] = folds.added.get(reader.bias, 0.0) + added
            done.add(key)
        for name, elements in sent.items():
            first = self._first[name]
            self._values[first] = self._values[first].masked_fill(elements.to(self._values[first].device), 0)
            folds.removed[first] = folds.removed.get(first, torch.zeros_like(elements)) | elements


def _pads_with_zeros(module: nn.Module) -> bool:
    """Whether a constant is no constant for some of what a layer makes."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        return False
    padded = module.padding_mode == "zeros" and module.padding not in ("valid", (0,) * len(module.kernel_size))
    return padded or module.transposed


def _kept(dead: Units) -> dict[str, Tensor]:
    """Return the units to keep: the others, and so many dead ones that every row keeps as many, and at least one."""
    kept = {}
    for name, units in dead.items():
        most = max(int((~units).sum(-1).max()), 1)
        rank = np.argsort(np.argsort(units, axis=-1, kind="stable"), axis=-1)  # the live ones first
        kept[name] = torch.from_numpy(rank < most)
    return {name: units for name, units in kept.items() if not units.all()}
