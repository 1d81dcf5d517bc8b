"""A randomised float64 copy of a model, of which tensors are changed and put back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ..networks.names import named_tensors, tied_names, unwrap
from ..networks.numbers import check_numbers
from .inputs import Inputs
from .permutation import Permutation, movable_tensors

Changes = Mapping[str, Callable[[Tensor], Tensor]]
_BLOCK = 1_048_573  # a prime: axes are shorter or no multiple of it, so no two units of a tensor get the same noise
_SAMPLE = 1 << 16


class Randomised:
    """A float64 copy of a model with noise on every parameter.

    Initial values of zero and one make checks empty (a bias of zero moves nowhere), so every parameter gets noise. The
    noise is one block that all parameters are cut from, each at its own place. A parameter is put back by computing it
    anew, so there is only one copy. It is on the model's device if that has float64 and room for it, else on the CPU.

    Args:
        model: The model; not changed.
        seed: Seed of the noise.
        rtol: Allowed change of an output.
    """

    RTOL = 1e-8

    def __init__(self, model: nn.Module, *, seed: int = 0, rtol: float = RTOL):
        check_numbers(model)
        model = unwrap(model)
        self.device = _roomy_device(model)
        self.model = _in_double(model, self.device)
        self.rtol = rtol
        self.where = f"in float64 on {'the CPU' if self.device.type == 'cpu' else self.device} to be verified"
        generator = torch.Generator().manual_seed(seed)
        sizes = sum(parameter.numel() for parameter in model.parameters())
        self._noise = torch.randn(max(min(sizes, _BLOCK), 1), generator=generator).to(self.device)
        self._sources, self._state = self._find_sources(model), {}
        self._dirty: set[str] = set()
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                if name in self._sources:
                    self._fill(name, tensor)
                elif name.endswith("running_var"):
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator, dtype=torch.float64))
                elif name.endswith(("running_mean", "correction_bias")):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.1)
        self.settle()

    def _find_sources(self, model: nn.Module) -> dict[str, tuple[Tensor, int, float]]:
        """Return, for each parameter, the one it was copied from, and the place and scale of its noise."""
        given, found, start = named_tensors(model), {}, 0
        parameters = {id(parameter) for parameter in self.model.parameters()}
        for name, tensor in self.tensors.items():
            if id(tensor) in parameters and tensor.is_floating_point():
                source = given[name].detach()
                found[name] = source, start, _spread(source)
                start += source.numel()
        return found

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters and buffers of the copy by name, a tied one under its first name."""
        first = self.first_names()
        return {name: tensor for name, tensor in named_tensors(self.model).items() if first[name] == name}

    def first_names(self) -> dict[str, str]:
        """Return the first name of each tensor for every name."""
        return tied_names(self.model)

    def settle(self) -> None:
        """Take the buffers as they are for the state that is restored: a first pass may have extended them."""
        self._state = {name: t.detach().clone() for name, t in self.tensors.items() if name not in self._sources}

    def inputs(self, inputs: Inputs) -> Inputs:
        """Return inputs in float64, on the device of the copy."""

        def convert(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(self.device, torch.float64 if value.is_floating_point() else value.dtype)

        return tree_map(convert, inputs)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute in float64, also what a network asks for in less."""
        usual = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with _InDouble():
                yield
        finally:
            torch.set_default_dtype(usual)

    @torch.no_grad()
    def value(self, name: str) -> Tensor:
        """Return what a tensor is when nothing has been changed, in no more precision than it has numbers for."""
        if name not in self._sources:
            return self._state[name]
        source = self._sources[name][0]
        value = torch.empty(source.shape, dtype=torch.promote_types(source.dtype, torch.float32), device=self.device)
        self._fill(name, value)
        return value

    def _fill(self, name: str, target: Tensor) -> None:
        """Write a parameter's own value with its noise to a tensor, in pieces."""
        source, start, spread = self._sources[name]
        source, length = source.reshape(-1), len(self._noise)
        whole = target if target.is_contiguous() else torch.empty(target.shape, dtype=target.dtype, device=self.device)
        flat, done = whole.view(-1), 0
        while done < len(source):
            at = (start + done) % length
            noise = self._noise[at : at + len(source) - done]
            piece = slice(done, done + len(noise))
            flat[piece].copy_(torch.add(source[piece].to(self.device), noise, alpha=spread))
            done += len(noise)
        if whole is not target:
            target.copy_(whole)

    @torch.no_grad()
    def change(self, changes: Changes) -> None:
        """Write to each named tensor what a function makes of its own value."""
        for name, tensor in self.tensors.items():
            if name in changes:
                self._dirty.add(name)
                tensor.detach().copy_(changes[name](self.value(name)))

    def permute(self, permutation: Permutation) -> None:
        """Permute the copy, which has its own values, as :func:`permute_` does with a model."""
        changes = {}
        for name in movable_tensors(self.model, permutation.spec):
            if permutation.moves(name):
                changes[name] = partial(permutation.move, name)
        self.change(changes)

    def disturb(self, names: Collection[str] | None) -> None:
        """Shift and scale tensors, each by its own amount, which is no symmetry."""
        chosen = [n for n in self.tensors if (n in self._sources if names is None else n in names)]

        def disturbed(value: Tensor, k: int) -> Tensor:
            return value.flatten().roll(1 + k).view_as(value) * (1 + 0.1 * (1 + k % 7))

        self.change({n: lambda value, k=k: disturbed(value, k) for k, n in enumerate(chosen)})

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what was changed."""
        for name, tensor in self.tensors.items() if self._dirty else ():
            if name in self._dirty and name in self._sources:
                self._fill(name, tensor.detach())
            elif name in self._dirty:
                tensor.detach().copy_(self._state[name])
        self._dirty.clear()


class _InDouble(TorchDispatchMode):
    """Gives float64 where a network asks for less (in norms or softmax), as rounding would hide errors."""

    _LOW = (torch.float32, torch.float16, torch.bfloat16)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        args, kwargs = tree_map(lambda v: torch.float64 if isinstance(v, torch.dtype) and v in self._LOW else v,
                                (args, kwargs or {}))  # fmt: skip
        return func(*args, **kwargs)


def _in_double(model: nn.Module, device: torch.device) -> nn.Module:
    """Copy a model to float64 without a copy in its own precision; the values of its parameters are left open."""
    memo: dict[int, Tensor] = {
        id(p): nn.Parameter(torch.empty(p.shape, dtype=torch.float64, device=device), requires_grad=p.requires_grad)
        for p in model.parameters()
        if type(p) is nn.Parameter and p.is_floating_point()
    }
    # torch copies no tensor with a history, such as a weight that a norm of weights has computed.
    computed = [v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor) and v.grad_fn is not None]
    memo |= {id(value): value.detach().clone() for value in computed}
    return copy.deepcopy(model, memo).to(device, torch.float64)


def _roomy_device(model: nn.Module) -> torch.device:
    tensors = [*model.parameters(), *model.buffers()]
    devices = {tensor.device for tensor in tensors}
    if len(devices) == 1 and (device := devices.pop()).type == "cuda":
        need = 8 * sum(tensor.numel() for tensor in tensors)
        if torch.cuda.mem_get_info(device)[0] > 2 * need:  # as much again for what a pass computes
            return device
    return torch.device("cpu")


def _spread(parameter: Tensor) -> float:
    if parameter.ndim < 2:
        return 0.3
    sample = parameter.reshape(-1)[:: 1 + parameter.numel() // _SAMPLE].float()
    spread = sample.std().item() if len(sample) > 1 else 0.0
    # Weights that are small beside the number of their inputs would let signals fade, layer after layer, to nothing.
    return max(spread, (len(parameter) / max(parameter.numel(), 1)) ** 0.5)
