"""keep_sparse: hold a module at a mask while anything trains it.

The gradient of a pruned weight becomes zero as soon as it is accumulated, before any code clips or reads it. Gradient
norms, momentum and adaptive moments are therefore those of the sparse network, and the training is bit-equal to one
whose forward uses ``weight * mask``. An elementwise optimizer with a masked state then keeps a pruned weight at exactly
zero. After the step of any other optimizer the pruned weights are set to zero again. No parameter is renamed or
wrapped, so ``state_dict``, ``save_pretrained`` and ``torch.compile`` see a plain model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn, optim
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ..masks.file import pack_bits
from ..masks.mask import Mask
from ..networks.names import named_weights
from ..networks.shards import local, part_of

# These optimizers keep a zero weight at zero if its gradient and state are zero. Setting it to zero again is needless.
_ELEMENTWISE = (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.Adamax,
    optim.NAdam,
    optim.RAdam,
    optim.RMSprop,
    optim.Rprop,
    optim.Adagrad,
    optim.Adadelta,
    optim.ASGD,
    optim.Adafactor,
)
_CHUNK = 2**16
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class SparsityLeakError(RuntimeError):
    """A weight that should be pruned is not zero, or the mask prunes nothing."""


def keep_sparse(
    model: nn.Module, mask: Mask, optimizer: optim.Optimizer | None = None, *, packed: bool = False
) -> SparseHandle:
    """Set the pruned weights of ``model`` to zero and hold them there, whatever trains it.

    Args:
        model: The module; compile it or make it data-parallel before or after. ``fully_shard`` (FSDP2) replaces the
            parameters, so call that first; each process then holds the mask of its shards only.
        mask: Parameter name -> bool tensor; True keeps a weight.
        optimizer: An optimizer whose state is masked at once. The state of every other torch optimizer that holds one
            of the parameters is masked before its first step.
        packed: Whether to store one bit for each weight instead of one number. This takes at most 0.13 byte a weight,
            and two to three times as long.

    Returns:
        A handle that is also a context manager: at the end, ``with keep_sparse(model, mask): train(model)`` verifies
        the sparsity and frees the weights. Without ``with``, call ``handle.verify()`` and ``handle.remove()``.

    Raises:
        MaskMismatchError: The mask is for another model. Nothing was changed.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> mask = Mask({"weight": torch.tensor([[True, False]])})
        >>> optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> with keep_sparse(model, mask, optimizer):
        ...     for _ in range(3):
        ...         model(torch.ones(4, 2)).sum().backward()
        ...         optimizer.step()
        >>> model.weight[0, 1].item()
        0.0
    """
    return SparseHandle(model, mask, optimizer, packed=packed)


class SparseHandle:
    """The hold of a mask on a model, as :func:`keep_sparse` returns it.

    Attributes:
        bound: Parameter name -> the parameter and the mask that is applied to its gradients.
    """

    def __init__(self, model: nn.Module, mask: Mask, optimizer: optim.Optimizer | None, *, packed: bool):
        mask.apply_(model)
        self._model, weights = model, named_weights(model)
        kind = _PackedMask if packed else _FloatMask
        self.bound = {
            name: (weights[name], kind(part_of(entry, weights[name]), local(weights[name])))
            for name, entry in mask.items()
        }
        self._prunes = mask.kept < mask.weights
        self._seen: WeakSet[optim.Optimizer] = WeakSet()
        self._guarded: set[str] = set()
        self._handles = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]
        self._guard_gradients()
        if optimizer is not None:
            self._meet(getattr(optimizer, "optimizer", optimizer))  # accelerate's wrapper has no hooks of its own

    def verify(self) -> None:
        """Check that the mask prunes a weight, and that every pruned weight is exactly zero now.

        Raises:
            SparsityLeakError: A pruned weight is not zero, a parameter was replaced, or the mask prunes nothing. The
                message names the parameter.
        """
        if not self._prunes:
            raise SparsityLeakError("the mask must remove at least one weight; received a dense one. Train without it.")
        present = named_weights(self._model)
        for name, (weight, mask) in self.bound.items():
            if present.get(name) is not weight:
                raise SparsityLeakError(
                    f"the model must still have the parameters that the mask was bound to; received one whose {name!r} "
                    "was replaced, for example by fully_shard. Call keep_sparse after that."
                )
            leaked = local(weight).clone()
            mask.clear_kept_(leaked)
            if count := int((leaked != 0).sum()):  # NaN is not zero either
                raise SparsityLeakError(
                    f"pruned weights of {name!r} must be exactly 0; received {count} others, up to "
                    f"{leaked.abs().max().item():.3g}. Find the code besides backward() and the optimizer that writes "
                    "to weights or gradients."
                )

    def remove(self) -> None:
        """Free the weights. They keep their values, and nothing holds them at zero from now on."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> SparseHandle:
        return self

    def __exit__(self, kind, value, traceback) -> None:
        self.remove()
        if kind is None:
            self.verify()

    def _guard_gradients(self) -> None:
        """Guard every weight that is trained. One that is frozen now is guarded before a later step."""
        for name, (weight, mask) in self.bound.items():
            if weight.requires_grad and name not in self._guarded:
                self._guarded.add(name)
                self._handles.append(self._guard_gradient(weight, mask))

    def _guard_gradient(self, weight: Tensor, mask: _FloatMask | _PackedMask):
        def zero_pruned(parameter: Tensor) -> None:  # torch requires that a hook returns None
            if parameter.grad is not None:
                mask.clear_pruned_(local(parameter.grad))

        zero_pruned(weight)  # an earlier backward may have left a gradient
        return weight.register_post_accumulate_grad_hook(zero_pruned)

    def _meet(self, optimizer: optim.Optimizer) -> None:
        self._seen.add(optimizer)
        self._mask_state(optimizer)
        # A state that is loaded later may hold values of pruned weights.
        self._handles.append(optimizer.register_load_state_dict_post_hook(self._mask_state))

    def _mask_state(self, optimizer: optim.Optimizer) -> None:
        for weight, mask in self.bound.values():
            for value in optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    if not value.is_floating_point():
                        raise NotImplementedError(
                            f"the state of {type(optimizer).__name__} must be floating point; received {value.dtype}, "
                            "which cannot be masked. Use an optimizer that does not quantise its state."
                        )
                    mask.clear_pruned_(local(value))

    def _before_step(self, optimizer: optim.Optimizer, args, kwargs) -> None:
        if optimizer not in self._seen and self._holds_ours(optimizer):
            self._meet(optimizer)
        if optimizer in self._seen and len(self._guarded) < len(self.bound):
            self._guard_gradients()

    def _after_step(self, optimizer: optim.Optimizer, args, kwargs) -> None:
        if optimizer in self._seen and type(optimizer) not in _ELEMENTWISE:
            with torch.no_grad():
                for weight, mask in self.bound.values():
                    mask.clear_pruned_(local(weight))

    def _holds_ours(self, optimizer: optim.Optimizer) -> bool:
        ours = {id(weight) for weight, _ in self.bound.values()}
        return any(id(p) in ours for group in optimizer.param_groups for p in group["params"])


# The masks run between two operations of the network, when no cache holds their code and data. Every line of Python
# counts there: `no_grad()` instead of `detach()` would add half of the multiplication's time.


class _FloatMask:
    """A mask of one number for each weight. Multiplication by it is fastest; a bool mask takes three times as long."""

    def __init__(self, mask: Tensor, weight: Tensor):
        # The mask takes the weight's memory format: a channels-last weight times a contiguous mask would be slow.
        self.keep = torch.empty_like(weight).copy_(mask)

    def clear_pruned_(self, tensor: Tensor) -> None:
        if self.keep.device != tensor.device:  # the model moved
            self.keep = self.keep.to(tensor.device)
        tensor.detach().mul_(self.keep)

    def clear_kept_(self, tensor: Tensor) -> None:
        tensor.detach().masked_fill_(self.keep.to(tensor.device) != 0, 0)


class _PackedMask:
    """A mask of one bit for each weight, which is unpacked 65,536 weights at a time.

    On the CPU, an infinite or NaN gradient of a pruned weight becomes 0. A mask of numbers makes it NaN.
    """

    def __init__(self, mask: Tensor, weight: Tensor):
        self.bits = pack_bits(mask).numpy()

    def clear_pruned_(self, tensor: Tensor) -> None:
        flat = tensor.detach().reshape(-1)  # a copy if the tensor is not contiguous
        if flat.is_cpu and flat.itemsize in _INTEGERS:
            # numpy multiplies by bytes directly, while torch would first convert them to the tensor's type. numpy has
            # no bfloat16, so the numbers are read as integers of the same size. Multiplying by 0 or 1 stays exact.
            numbers = flat.view(_INTEGERS[flat.itemsize]).numpy()
            for part, keep in self._unpack(numbers):
                np.multiply(part, keep, out=part)
        else:
            for part, keep in self._unpack(flat):
                part.mul_(torch.from_numpy(keep).to(part))
        self._write_back(flat, tensor)

    def clear_kept_(self, tensor: Tensor) -> None:
        flat = tensor.detach().reshape(-1)
        for part, keep in self._unpack(flat):
            part.masked_fill_(torch.from_numpy(keep).to(part.device) != 0, 0)
        self._write_back(flat, tensor)

    def _unpack(self, flat: Any) -> Iterator[tuple[Any, np.ndarray]]:
        for begin in range(0, len(flat), _CHUNK):
            part, bits = flat[begin : begin + _CHUNK], self.bits[begin // 8 : (begin + _CHUNK) // 8]
            yield part, np.unpackbits(bits, count=len(part), bitorder="little")

    @staticmethod
    def _write_back(flat: Tensor, tensor: Tensor) -> None:
        if flat.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(flat.view(tensor.shape))
