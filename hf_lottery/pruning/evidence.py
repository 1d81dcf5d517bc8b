"""Evidence: what is known about a weight besides its values, and how it is gathered from batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ..networks.modes import restored_modes
from ..networks.numbers import check_numbers
from ..networks.shards import class_name, reshard


class Evidence(NamedTuple):
    """What is known about one weight tensor besides its values. A score reads what it needs.

    Attributes:
        gradient: dL/dw summed over the batches, in float32 for half-precision weights; shape of the weight.
        input_norm: L2 norm of each input feature over all batches and positions; broadcasts against the weight.
        start: The weight at the start of the training that led to its present value; shape of the weight.
    """

    gradient: Tensor | None = None
    input_norm: Tensor | None = None
    start: Tensor | None = None


def gather_evidence(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    within: Mapping[str, Tensor],
    fields: Collection[str] = ("gradient", "input_norm"),
) -> dict[str, Evidence]:
    """Collect gradients and input norms of the weights ``within`` over some batches.

    The model runs in evaluation mode. Its weights, buffers, mode and gradients are the same afterwards. On several
    processes, each process gets the evidence of its own batches, and you add it up, as LotteryTrainer does. FSDP2
    gradients are already means over the processes.

    Args:
        model: The model, on the device of the batches.
        batches: The batches to run, as ``loss`` takes them.
        loss: ``loss(model, batch)`` returns the scalar to differentiate.
        within: Name -> parameter to gather evidence for, such as ``prunable(model)``.
        fields: What to gather. Without ``"gradient"`` there is no backward pass, and frozen weights are fine.

    Returns:
        Name -> Evidence with the sum of the gradients, and the input norm where the parameter is the weight of a
        linear or convolution module.

    Raises:
        ValueError: There are no batches, the loss cannot be differentiated, or a parameter got no gradient from any
            of the batches.
    """
    reshard(model)
    check_numbers(within)
    squares = _Squares()
    readers = _readers(model, within) if "input_norm" in fields else ()
    handles = [module.register_forward_pre_hook(squares.hook(name)) for name, module in readers]
    kept_gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    differentiate = "gradient" in fields
    half = {name: w for name, w in within.items() if differentiate and in_full(w) is not w}
    sums: dict[str, Tensor] = {}
    count = 0
    try:
        with restored_modes(model), torch.set_grad_enabled(differentiate):
            model.eval()
            model.zero_grad(set_to_none=True)
            for count, batch in enumerate(batches, start=1):  # noqa: B007
                with squares.reading():
                    value = loss(model, batch)
                if differentiate:
                    _check_loss(value)
                    value.backward()
                    _move_gradients_(half, sums)
        if not count:
            raise ValueError("batches must hold at least one batch; received none. Was the loader used up?")
        gradients = {n: _gradient(n, sums.get(n, w.grad)) for n, w in within.items()} if differentiate else {}
        norms = {name: square.sqrt() for name, square in squares.sums.items()}
        return {name: Evidence(gradients.get(name), norms.get(name)) for name in within}
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in model.named_parameters():
            parameter.grad = kept_gradients[name]


def without_inputs(model: nn.Module, within: Mapping[str, Tensor]) -> list[str]:
    """Name the weights that have no input norm, whatever the batches are.

    These are the weights of which no linear or convolution module is called: stacked experts, embeddings, and all of
    ``nn.MultiheadAttention``, which hands its weights to a function.

    Args:
        model: The model.
        within: Name -> parameter, such as ``prunable(model)``.
    """
    attentions = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    never_called = {part for module in attentions for part in module.modules()}
    seen = {name for name, module in _readers(model, within) if module not in never_called}
    return [name for name in within if name not in seen]


def in_full(tensor: Tensor) -> Tensor:
    """Return a half-precision tensor in float32, and any other as it is."""
    return tensor.detach().float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor


def _move_gradients_(half: Mapping[str, Tensor], sums: dict[str, Tensor]) -> None:
    """Move gradients of one batch into sums in float32: a half-precision sum loses the small ones."""
    for name, weight in half.items():
        if weight.grad is not None:
            gradient, weight.grad = weight.grad.float(), None
            sums[name] = sums[name].add_(gradient) if name in sums else gradient


def _check_loss(value: Any) -> None:
    """Check that a loss is one number with a gradient."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        received = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"loss(model, batch) must return a tensor of one number; received {received}. "
            "Return the mean, such as model(**batch).loss."
        )
    if not value.requires_grad:
        raise ValueError(
            "loss(model, batch) must depend on a weight that is not frozen; received a loss without a gradient. "
            "Unfreeze the weights with requires_grad_(), or pass fields=['input_norm'], which needs no gradient."
        )


def _gradient(name: str, gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise ValueError(
            f"{name!r} must get a gradient from the batches; received none. If it is frozen, unfreeze it with "
            "requires_grad_() or pass fields=['input_norm'], which needs no gradient; if it is unused, leave it out."
        )
    return gradient


class _Squares:
    """Sums of squares of what each weight multiplies, over all batches; what several layers read is summed once."""

    def __init__(self):
        self.sums: dict[str, Tensor] = {}
        self.seen = WeakTensorKeyDictionary()  # input -> (its version, axis of its features), sum of its squares
        self.reads = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Add up inside this block: the loss of one batch. Checkpointed layers run once more when it is differentiated.

        What was seen is forgotten at the end, because a loader may put the next batch into the same memory.
        """
        self.reads = True
        try:
            yield
        finally:
            self.reads = False
            self.seen.clear()

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """Return a hook that adds the input of a layer to the sums of its weight."""

        def add(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            # Of anything else the module itself says that it cannot take it.
            if self.reads and inputs and isinstance(inputs[0], Tensor):
                square = _for_weight(module, self.of(inputs[0], _feature_axis(module, inputs[0])))
                self.sums[name] = self.sums[name] + square if name in self.sums else square

        return add

    def of(self, x: Tensor, axis: int) -> Tensor:
        """Return the sum of squares of each feature along an axis."""
        known = None if x.is_inference() else (x._version, axis)  # who writes to an input raises its version
        if x not in self.seen or known is None or self.seen[x][0] != known:
            self.seen[x] = known, _sum_of_squares(x.detach().float(), axis)
        return self.seen[x][1]


def _readers(model: nn.Module, within: Mapping[str, Tensor]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that multiply their input by a weight, each with the weight's name."""
    names = {id(weight): name for name, weight in within.items()}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or class_name(module) == "Conv1D":
            weight = dict(module.named_parameters(recurse=False)).get("weight")  # reading a computed one changes it
            if weight is not None and (name := names.get(id(weight))) is not None:
                yield name, module


def _feature_axis(module: nn.Module, x: Tensor) -> int:
    """Return the axis of a layer's input along which its features lie; a convolution also takes one without a batch."""
    return x.ndim - module.weight.ndim + 1 if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) else x.ndim - 1


def _sum_of_squares(x: Tensor, axis: int) -> Tensor:
    """Return the sum of squares of each feature along an axis."""
    if axis < x.ndim - 1 and x.is_contiguous():  # the places of a feature lie together: nothing is allocated
        x, axis = torch.linalg.vector_norm(x.flatten(axis + 1), dim=-1), -1
    x = x.movedim(axis, -1)
    return x.reshape(-1, x.shape[-1]).square().sum(0)


def _for_weight(module: nn.Module, per_feature: Tensor) -> Tensor:
    """Shape the sums of the input features so that they broadcast against ``module.weight``."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        # A group of filters sees only its own slice of the channels.
        per_filter = per_feature.view(module.groups, -1).repeat_interleave(module.out_channels // module.groups, 0)
        return per_filter.view(*per_filter.shape, *[1] * (module.weight.ndim - 2))
    # GPT-2's Conv1D keeps its weights as [inputs, outputs].
    return per_feature[None, :] if isinstance(module, nn.Linear) else per_feature[:, None]
