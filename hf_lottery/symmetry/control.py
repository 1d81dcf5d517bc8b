"""The negative control: each axis of each tensor that is permuted alone must change the outputs.

Most axes are shown at once, by a gradient. Let a tensor be the same in both of two units that change places. If
exchanging these units of it alone never changes the outputs, then neither does its gradient change by the exchange, as
the outputs are a function that is symmetric there. So an axis where the gradient changes matters. This is asked of many
tensors in one pass, as long as other tensors tell the units apart. The axes that no gradient shows are permuted, all at
once, and in ever smaller sets if that changes an output.

One thing may look visible and is not: units that are only compared, such as by a maximum, in a group that a spec has
merged of two that are independent. Which of two equal units a maximum takes, and so the gradient, depends on the order.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .permutation import Permutation, random_permutation
from .prover import Prover, few_ways
from .randomised import Randomised
from .structure import Structure

_VISIBLE = 1e-9  # of the largest effect: rounding is far smaller, and what is smaller is tried
_NO_CHANGE = 1e-12


class Tie(NamedTuple):
    """An axis of a tensor that a group lies on."""

    group: str
    tensor: str
    axis: int


def ties(spec: Structure) -> Iterator[Tie]:
    """Yield every tie of the free groups of a spec."""
    for tensor, blocks in spec.tensors.items():
        places = ((leaf, i) for block in blocks for i, axis in enumerate(block.axes) for leaf in axis.leaves)
        yield from (Tie(leaf, tensor, i) for leaf, i in sorted({*places}) if spec.groups[leaf].frozen is None)


def inert_ties(spec: Structure, prover: Prover, *, seed: int) -> list[Tie]:
    """Return the ties that change no output when permuted alone.

    Args:
        spec: A spec whose permutations leave the outputs as they are.
        prover: A prover on a randomised copy, whose scales have been measured.
        seed: Seed of the permutations.
    """
    stage = prover.stage
    assert isinstance(stage, Randomised)
    own = stage.first_names()
    every = [tie for tie in ties(spec) if own[tie.tensor] == tie.tensor]  # a tied tensor is moved once
    number = Counter(tie.group for tie in every)
    every = [tie for tie in every if number[tie.group] > 1]  # to permute its only tie is to permute the group
    control = _Control(spec, prover, stage, seed)
    for side in _sides(every):
        control.show(side)
    rest = [tie for tie in every if tie not in control.visible]
    if not control.unchanged_by(rest):
        control.show(rest)
        control.try_each([tie for tie in rest if tie not in control.visible])
    return [tie for tie in ties(spec) if tie._replace(tensor=own[tie.tensor]) not in control.visible]


class _Control:
    def __init__(self, spec: Structure, prover: Prover, stage: Randomised, seed: int):
        self.spec, self.prover, self.stage, self.seed = spec, prover, stage, seed
        self.visible: set[Tie] = set()
        self._alone: dict[Tie, Structure] = {}

    def alone(self, tie: Tie) -> Structure:
        """Return a spec in which a tie's group lies on that axis alone."""
        if tie not in self._alone:
            self._alone[tie] = _only(self.spec, tie)
        return self._alone[tie]

    def show(self, some: Sequence[Tie]) -> None:
        """Find ties that matter by the gradient where units that change places are the same in these ties."""
        swaps = {tie: _exchange(self.alone(tie), tie.group) for tie in some}
        by_tensor: dict[str, list[Tie]] = {}
        for tie in some:
            by_tensor.setdefault(tie.tensor, []).append(tie)
        means: dict[str, Callable[[Tensor], Tensor]] = {
            name: lambda value, found=found: _evened(value, [(tie.tensor, swaps[tie]) for tie in found])
            for name, found in by_tensor.items()
        }
        effects: dict[Tie, float] = {}

        def measure(name: str, tensor: Tensor) -> None:
            gradient, value, here = tensor.grad, self.stage.value(name), tensor.detach()
            tensor.grad = None
            for tie in by_tensor[name]:
                # Several ties of a tensor might undo each other's exchange.
                if gradient is not None and torch.equal(swaps[tie].move(name, here), here):
                    difference = swaps[tie].move(name, value) - value
                    effects[tie] = abs(torch.dot(gradient.flatten(), difference.to(gradient.dtype).flatten()).item())

        try:
            with self.prover.changed(lambda: self.stage.change(means)):
                self._backward(by_tensor, measure)
        except Exception:  # no gradient: an operation has none, or writes to its operands
            parameters = [tie for tie in some if isinstance(self.stage.tensors[tie.tensor], nn.Parameter)]
            if len(parameters) < len(some):
                self.show(parameters)
            return
        effects = {tie: effect for tie, effect in effects.items() if np.isfinite(effect)}
        least = max(_NO_CHANGE, _VISIBLE * max(effects.values(), default=0.0))
        self.visible |= {tie for tie, effect in effects.items() if effect > least}

    def _backward(self, names: Iterable[str], measure: Callable[[str, Tensor], None]) -> None:
        with ExitStack() as stack:
            for name, tensor in self.stage.tensors.items():
                if tensor.is_floating_point():
                    stack.callback(tensor.requires_grad_, tensor.requires_grad)
                    tensor.requires_grad_(name in names)
                if tensor.requires_grad:
                    hook = tensor.register_post_accumulate_grad_hook(lambda t, name=name: measure(name, t))
                    stack.callback(hook.remove)
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            with _Statistics(), self.prover.outputs_with_gradients() as outputs:
                number = self.prover.before.projection(outputs, self.seed)
                if number is not None:
                    number.backward()

    def unchanged_by(self, some: Sequence[Tie]) -> bool:
        """Tell whether permuting ties, each by a permutation of its own, changes no output.

        Ties of one group might undo each other if there are few ways to move it. So then other sets are tried too:
        for any two such ties, one of them without the other.
        """
        if not some:
            return True
        if self._change(some) > _NO_CHANGE:
            return False
        places: dict[str, int] = {}
        number = {}
        for tie in some:
            if few_ways(self.spec, tie.group):
                number[tie] = places[tie.group] = places.get(tie.group, -1) + 1
        bits = max(number.values(), default=0).bit_length()
        return all(
            self._change([tie for tie, k in number.items() if k >> bit & 1]) <= _NO_CHANGE for bit in range(bits)
        )

    def _change(self, some: Sequence[Tie]) -> float:
        moves: dict[str, list[Permutation]] = {}
        for k, tie in enumerate(some):
            permutation = random_permutation(self.alone(tie), self.seed + k, [tie.group])
            moves.setdefault(tie.tensor, []).append(permutation)

        def moved(value: Tensor, name: str) -> Tensor:
            for permutation in moves[name]:
                value = permutation.move(name, value)
            return value

        changes = {name: lambda value, name=name: moved(value, name) for name in moves}
        return self.prover.try_out(lambda: self.stage.change(changes))

    def try_each(self, some: Sequence[Tie]) -> None:
        """Find the ties that matter among some, by halves."""
        if self.unchanged_by(some):
            return
        if len(some) == 1:
            self.visible.add(some[0])
            return
        middle = len(some) // 2
        self.try_each(some[:middle])
        self.try_each(some[middle:])


def _only(spec: Structure, tie: Tie) -> Structure:
    elsewhere = replace(spec.groups[tie.group], name=f"{tie.group} elsewhere", frozen="not part of the control")
    blocks = [
        replace(block, axes=tuple(
            part if i == tie.axis
            else replace(part, leaves=tuple(elsewhere.name if leaf == tie.group else leaf for leaf in part.leaves))
            for i, part in enumerate(block.axes)
        ))
        for block in spec.tensors[tie.tensor]
    ]  # fmt: skip
    near = {leaf for block in blocks for axis in block.axes for leaf in axis.leaves} - {elsewhere.name}
    near |= {parent for name in (*near, tie.group) for parent in spec.groups[name].parents}
    return Structure([*(spec.groups[name] for name in near), elsewhere], {tie.tensor: blocks})


def _exchange(spec: Structure, group: str) -> Permutation:
    """Return the permutation that exchanges the units of each pair of neighbours in a random order."""
    *outer, size = spec.entry_shape(group)
    order = np.random.default_rng(0).permutation(size)
    row, even = np.arange(size), size // 2 * 2
    row[order[:even:2]], row[order[1:even:2]] = order[1:even:2], order[:even:2]
    return Permutation(spec, {group: np.broadcast_to(row, (*outer, size))})


def _evened(value: Tensor, exchanges: Sequence[tuple[str, Permutation]]) -> Tensor:
    """Return a tensor in which both units of each exchanged pair are the one that comes first."""
    place = torch.arange(value.numel(), dtype=torch.int32, device=value.device).view(value.shape)
    for name, exchange in exchanges:
        value = torch.where(place < exchange.move(name, place), value, exchange.move(name, value))
    return value


def _sides(every: Sequence[Tie]) -> list[list[Tie]]:
    """Divide the ties of each group in two, such that one part tells the units of the other apart.

    What writes units usually has them on its first axis and what reads them on another. Where that divides nothing,
    the layers take turns.
    """
    groups: dict[str, list[Tie]] = {}
    for tie in every:
        groups.setdefault(tie.group, []).append(tie)
    sides: list[list[Tie]] = [[], []]
    for found in groups.values():
        side = [int(tie.axis > 0) for tie in found]
        if len({*side}) == 1:
            layers = [tie.tensor.rpartition(".")[0] for tie in found]
            names = layers if len({*layers}) > 1 else [tie.tensor for tie in found]
            number = {name: k for k, name in enumerate(dict.fromkeys(names))}
            side = [number[name] % 2 for name in names]
        for tie, one in zip(found, side, strict=True):
            sides[one].append(tie)
    return [side for side in sides if side]


class _Statistics(TorchFunctionMode):
    """Computes norms in evaluation mode from their formula, since torch has no gradient for their statistics."""

    _NORMS = (nn.functional.batch_norm, nn.functional.instance_norm)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self._NORMS:
            given = inspect.signature(func).bind(*args, **kwargs)
            given.apply_defaults()
            x, mean, var, weight, bias, of_batch, _, eps = given.arguments.values()
            if mean is not None and not of_batch:
                shape = (1, -1, *(1,) * (x.ndim - 2))
                scale = (var + eps).rsqrt() if weight is None else (var + eps).rsqrt() * weight
                x = (x - mean.view(shape)) * scale.view(shape)
                return x if bias is None else x + bias.view(shape)
        return func(*args, **kwargs)
