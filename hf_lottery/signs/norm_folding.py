"""Norm folding: move the gains and shifts of norms into the linear layers that read them.

The network stays the same function, with norms that have gain 1 and shift 0. In a pre-norm transformer a gain may be in
the norm or in the weights after it without a difference. If it is in the weights, a signed mask carries its sign too.
This is a control for what training towards initial norms gains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..networks.channels import read_channels
from ..networks.forward import Forward, run
from ..networks.modes import evaluating
from ..networks.names import plain_name, unwrap
from ..networks.numbers import check_numbers
from .norms import norm_parameters


def fold_norms_(model: nn.Module, inputs: Any, *, forward: Forward | None = None) -> tuple[str, ...]:
    """Move gain and shift of every layer and RMS norm that only linear layers read into these layers, in place.

    The network computes the same function in eval mode, and the folded norms have gain 1 and shift 0. These norms are
    not folded: those that run more than once; those whose output something else reads (a residual sum, pooling, the
    head of one token, the caller); those whose parameters or readers are tied or used elsewhere; and those with a shift
    before a layer without bias. One forward pass shows which layers read a norm, so pass inputs that use every part of
    the model. A dropout between norm and layer no longer acts on the shift.

    Args:
        model: Any module with floating-point parameters. Its modes are restored. Weights in half precision are rounded.
        inputs: One batch: a dict for ``model(**inputs)``, a tuple for ``model(*inputs)``, or a tensor.
        forward: Replaces the call of the model by ``forward(model, inputs)``, whose result must not change.

    Returns:
        The names of the folded norms, in the model's order; those that were the identity already are included.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: No norm can be folded, or the pass returns no floating-point tensor; nothing was changed.
        RuntimeError: The outputs would differ; all parameters were restored, bit for bit.

    Example:
        >>> model = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 1))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([3.0, -2.0])), model[1].weight.fill_(0.5)
        >>> fold_norms_(model, torch.randn(4, 2))
        ('0',)
        >>> model[0].weight.tolist(), model[1].weight.tolist()
        ([1.0, 1.0], [[1.5, -1.0]])

    Reference:
        A control for Oh et al., 2025, arXiv:2504.05357, who keep norm parameters apart from weights and do not fold.
    """
    names = {name.rpartition(".")[0] for name in norm_parameters(model)}
    model = unwrap(model)
    check_numbers(model)
    modules = {plain_name(name): module for name, module in model.named_modules()}
    norms = {module: name for name, module in modules.items() if name in names and not isinstance(module, _NormBase)}
    with evaluating(model):
        reads = _Reads(model, norms)
        before = reads.watch(model, inputs, forward)
        offsets = {norm: offset for norm in norms if (offset := _offset(norm, reads)) is not None}
        if not offsets:
            raise ValueError(
                "the model must have a layer or RMS norm that only linear layers read; received "
                f"{type(model).__name__}, where this holds for none of {len(norms)}. Untie its weights, or do not fold."
            )
        changed = [*offsets, *(layer for norm in offsets for layer in reads.readers[norm])]
        saved = {p: p.clone() for module in changed for p in module.parameters(recurse=False)}
        try:
            for norm, offset in offsets.items():
                _fold_(norm, offset, reads.readers[norm])
            error = _difference(before, _floating(run(model, inputs, forward=forward)))
            if not error <= reads.tolerance:
                raise RuntimeError(
                    f"folding must leave the outputs within {reads.tolerance:.1g}; received a relative change of "
                    f"{error:.1g}. All weights were restored. If the forward pass samples, fix its random numbers."
                )
        except BaseException:
            for parameter, value in saved.items():
                parameter.copy_(value)
            raise
    return tuple(norms[norm] for norm in offsets)


class _Reads(TorchDispatchMode):
    """Records in one forward pass which modules read the outputs of norms and the parameters of all modules.

    Tensors are recognized by their storage.

    Attributes:
        readers: Norm -> the linear layers that take its output.
        calls: Norm -> its arguments and output.
        runs: How often each norm and linear layer ran.
        barred: Modules that have a tied parameter or are read elsewhere.
        tolerance: The relative error to expect: the square root of the precision of the coarsest floating-point type
            in the pass.
    """

    def __init__(self, model: nn.Module, norms: Collection[nn.Module]):
        super().__init__()
        self.readers: dict[nn.Module, list[nn.Module]] = {norm: [] for norm in norms}
        self.calls: dict[nn.Module, tuple[Any, Any, Tensor]] = {}
        self.runs: Counter[nn.Module] = Counter()
        self.barred: set[nn.Module] = set()
        self.tolerance = 0.0
        self._running: list[nn.Module] = []
        self._owned: dict[int, nn.Module] = {}
        self._kept: list[Tensor] = []  # kept alive, so that no other tensor gets their memory
        for module in model.modules():
            for tensor in _tensors([*module._parameters.values(), *module._buffers.values()]):
                self._own(tensor, module)

    def watch(self, model: nn.Module, inputs: Any, forward: Forward | None) -> list[Tensor]:
        """Run the model and return its floating-point outputs."""
        handles = []
        for module in model.modules():
            if module in self.readers or _reading_axis(module) is not None:
                handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
                handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
        try:
            with self:
                result = run(model, inputs, forward=forward)
        finally:
            for handle in handles:
                handle.remove()
        self.barred |= self._owners(result)
        return _floating(result)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        read, made = _tensors([args, kwargs]), _tensors(out)
        for dtype in {x.dtype for x in made if x.is_floating_point()}:
            self.tolerance = max(self.tolerance, torch.finfo(dtype).eps ** 0.5)
        if func.is_view and {*map(_storage, made)} <= {*map(_storage, read)}:
            return out  # making a view reads nothing
        in_linear = any(module not in self.readers for module in self._running)
        for owner in self._owners(read):
            if not (in_linear if owner in self.calls else owner in self._running):
                self.barred.add(owner)
        return out

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._running.append(module)
        self.runs[module] += 1
        for x in [] if module in self.readers else _tensors([args, kwargs]):
            for norm in self._owners(x) & self.calls.keys():
                self.readers[norm].append(module)
                out = self.calls[norm][2]
                same = (x.data_ptr(), x.numel(), x.shape[-1]) == (out.data_ptr(), out.numel(), out.shape[-1])
                if x is not out and not (same and x.is_contiguous() and out.is_contiguous()):
                    self.barred.add(norm)  # the layer reads only a part of it, or along another axis

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._running.pop()
        if module in self.readers and isinstance(output, Tensor):
            self._own(output, module)
            self.calls[module] = (args, kwargs, output)

    def _own(self, tensor: Tensor, module: nn.Module) -> None:
        if others := self._owners(tensor):
            self.barred |= {module, *others}
        self._owned[_storage(tensor)] = module
        self._kept.append(tensor)

    def _owners(self, tree: Any) -> set[nn.Module]:
        return {self._owned[_storage(x)] for x in _tensors(tree) if _storage(x) in self._owned}


def _offset(norm: nn.Module, reads: _Reads) -> float | None:
    """The number that a norm adds to its raw weight: 0, or 1 for Gemma's; None if the norm cannot be folded.

    A norm can be folded if it computes ``(weight + offset) * u + bias``, where ``u`` depends only on its input. This is
    tried with chosen parameters.
    """
    readers, parameters = reads.readers[norm], dict(norm.named_parameters())
    if not readers or any(reads.runs[module] != 1 or module in reads.barred for module in (norm, *readers)):
        return None
    args, kwargs, output = reads.calls[norm]
    weight, shift = parameters.get("weight"), parameters.get("bias")
    if weight is None or len(parameters) > 1 + (shift is not None) or weight.shape != output.shape[-1:]:
        return None
    if shift is not None and shift.any() and any(reader._parameters.get("bias") is None for reader in readers):
        return None

    def at(gain: Tensor, bias: Tensor) -> Tensor:
        values = {"weight": gain, "bias": bias}
        return functional_call(norm, {name: values[name] for name in parameters}, args, kwargs).double()

    zero, ramp = torch.zeros_like(weight), torch.linspace(-1, 2, len(weight)).to(weight)
    nothing = at(zero, zero)
    unit = at(zero + 1, zero) - nothing
    offset = ((nothing * unit).sum() / unit.square().sum()).round()
    expected = (ramp.double() + offset) * unit + (0 if shift is None else ramp.flip(0))
    return offset.item() if _difference([expected], [at(ramp, ramp.flip(0))]) <= reads.tolerance else None


def _fold_(norm: nn.Module, offset: float, readers: Collection[nn.Module]) -> None:
    weight, shift = norm.get_parameter("weight"), norm._parameters.get("bias")
    for reader in readers:
        bias, axis = reader._parameters.get("bias"), _reading_axis(reader)
        matrix = reader.get_parameter("weight").T if axis else reader.get_parameter("weight")  # [in, out]
        if shift is not None and bias is not None:
            bias.copy_(bias.double() + shift.to(bias.device).double() @ matrix.double())
        matrix.copy_(matrix.double() * (weight.double() + offset)[:, None].to(matrix.device))
    weight.fill_(1 - offset)
    if shift is not None:
        shift.zero_()


def _reading_axis(module: nn.Module) -> int | None:
    """The axis along which the weight of a plain linear layer reads its input; None for any other module."""
    place, own_weight = read_channels(module), module._parameters.get("weight") is not None
    other = isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward
    return place[0] if place is not None and place[1] == -1 and own_weight and not other else None


def _difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The largest relative change; infinite if NaN or infinite values are in other places."""
    errors = []
    for old, new in zip(before, after, strict=True):
        finite = old.isfinite()
        if not torch.equal(finite, new.isfinite()):
            return float("inf")
        old, new = old[finite].double(), new[finite].double()
        errors.append(((new - old).norm() / old.norm().clamp(min=1e-300)).item())
    return max(errors)


def _floating(result: Any) -> list[Tensor]:
    found = [x.clone() for x in _tensors(result) if x.is_floating_point()]
    if not found:
        raise ValueError(
            f"the forward pass must return floating-point tensors to compare; received {type(result).__name__}. "
            "Return the logits."
        )
    return found


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor) and x.layout == torch.strided]


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
