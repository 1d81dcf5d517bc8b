"""keep_sparse: hold a module at a mask while anything trains it.

The gradient of a pruned weight becomes zero as soon as it is accumulated, before any code clips or reads it. Gradient
norms, momentum and adaptive moments are therefore those of the sparse network, and the training is bit-equal to one
whose forward uses ``weight * mask``. After every step, the pruned weights that the optimizer holds are set to zero,
wherever the gradient came from and whatever was written to weights or state. No parameter is renamed or wrapped, so
``state_dict``, ``save_pretrained`` and ``torch.compile`` see a plain model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakSet, finalize

from torch import Tensor, nn, optim

from ..masks.mask import Mask
from ..networks.names import named_weights
from ..networks.shards import is_sharded, local, part_of
from .holds import add_hold, check_free, drop_hold
from .steps import unwatch, watch
from .weight_masks import BitMask, NumberMask, WeightMask, clear_pruned_gradient_

# The step of these optimizers changes a weight by its own gradient alone. Any other optimizer may use the gradients of
# pruned weights for the kept ones, so it gets none, even if they come from elsewhere than ``backward()``.
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
    optim.SparseAdam,
)


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
        A handle that is also a context manager. At the end, ``with keep_sparse(model, mask): train(model)`` verifies
        the sparsity and frees the weights. Without ``with``, call ``handle.verify()`` and ``handle.remove()``.

    Raises:
        TypeError: ``mask`` is not a Mask, or ``optimizer`` is not one torch optimizer.
        MaskMismatchError: The mask is for another model. Nothing was changed.
        RuntimeError: A parameter is held already; :func:`hf_lottery.training.release` frees it. Nothing was changed.
        NotImplementedError: The state of an optimizer is quantised or mixes weights, and cannot be masked.

    Example:
        >>> import torch
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
        if not isinstance(mask, Mask):
            raise TypeError(
                f"mask must be a Mask; received {type(mask).__name__}. Pass Mask(...) of tensors, "
                "Mask.from_pretrained() of a folder or repository, or the .mask of a ticket or signed mask."
            )
        mask.check_fits(model)
        check_free(model, mask)
        mask.apply_(model)
        self._model, weights = model, named_weights(model)
        kind = BitMask if packed else NumberMask
        self.bound: dict[str, tuple[Tensor, WeightMask]] = {
            name: (weights[name], kind(part_of(entry, weights[name]), local(weights[name])))
            for name, entry in mask.items()
        }
        self._prunes = mask.kept < mask.weights
        self._seen: WeakSet[optim.Optimizer] = WeakSet()
        self._handles: list[Any] = []
        finalize(self, _remove_all, self._handles).atexit = False  # parameters may live longer than their modules
        add_hold(model, self)
        watch(self)
        try:
            self._handles += [_guard_gradient(weight, mask) for weight, mask in self.bound.values()]
            if optimizer is not None:
                self._meet(_with_hooks(optimizer))
        except BaseException:
            self.remove()
            raise

    @property
    def held(self) -> Iterable[Tensor]:
        """The parameters that are held."""
        return [weight for weight, _ in self.bound.values()]

    def verify(self) -> None:
        """Check that the mask prunes a weight, and that every pruned weight is exactly zero now.

        Raises:
            SparsityLeakError: A pruned weight is not zero, a parameter is gone or was sharded, or the mask prunes
                nothing. The message names the parameter.
        """
        if not self._prunes:
            raise SparsityLeakError("the mask must remove at least one weight; received a dense one. Train without it.")
        present = named_weights(self._model)
        for name, (weight, mask) in self.bound.items():
            now = present.get(name)
            if now is None or now.shape != weight.shape or is_sharded(now) != is_sharded(weight):
                raise _replaced(name)
            leaked = local(now).clone()
            mask.clear_kept_(leaked)
            if bool((leaked != 0).any()):  # NaN is not zero either
                if now is not weight:
                    raise _replaced(name)
                raise SparsityLeakError(
                    f"pruned weights of {name!r} must be exactly 0; received {_described(leaked)}. Find the code that "
                    "wrote to the weights after the last step of an optimizer that holds them."
                )

    def remove(self) -> None:
        """Free the weights. They keep their values, and nothing holds them at zero from now on."""
        _remove_all(self._handles)
        unwatch(self)
        drop_hold(self._model, self)

    def __enter__(self) -> SparseHandle:
        return self

    def __exit__(self, kind, value, traceback) -> None:
        self.remove()
        if kind is None:
            self.verify()

    def _meet(self, optimizer: optim.Optimizer) -> None:
        self._seen.add(optimizer)
        self._mask_state(optimizer)
        # A state that is loaded later may hold values of pruned weights.
        self._handles.append(optimizer.register_load_state_dict_post_hook(self._mask_state))
        if type(optimizer) not in _ELEMENTWISE:
            self._handles.append(optimizer.register_step_pre_hook(self._clear_gradients))

    def _mask_state(self, optimizer: optim.Optimizer) -> None:
        if isinstance(optimizer, optim.LBFGS) and optimizer.state:
            raise NotImplementedError(
                "LBFGS must begin under the mask; received one with a state, which mixes the gradients of all weights. "
                "Make a new optimizer."
            )
        for weight, mask in self.bound.values():
            for value in optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    if not (value.is_floating_point() or value.is_complex()):
                        raise NotImplementedError(
                            f"the state of {type(optimizer).__name__} must be floating point; received {value.dtype}, "
                            "which cannot be masked. Use an optimizer that does not quantise its state."
                        )
                    mask.clear_pruned_(local(value))

    def before_step(self, optimizer: optim.Optimizer) -> None:
        """Mask the state of an optimizer that holds one of the parameters, before its first step."""
        if optimizer not in self._seen and self._held_by(optimizer):
            self._meet(optimizer)

    def _clear_gradients(self, optimizer: optim.Optimizer, args, kwargs) -> tuple[Any, Any]:
        """Clear the gradients of pruned weights before a step, and those that its closure computes."""
        held = self._held_by(optimizer)

        def clear() -> None:
            for weight, mask in held:
                clear_pruned_gradient_(weight, mask)

        clear()
        given = tuple(_followed_by(clear, argument) for argument in args[1:])  # args[0] is the optimizer
        return (optimizer, *given), {name: _followed_by(clear, argument) for name, argument in kwargs.items()}

    def after_step(self, optimizer: optim.Optimizer) -> None:
        """Set the pruned weights that an optimizer holds to zero."""
        for weight, mask in self._held_by(optimizer):
            mask.clear_pruned_(local(weight))

    def _held_by(self, optimizer: optim.Optimizer) -> list[tuple[Tensor, WeightMask]]:
        theirs = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        return [pair for pair in self.bound.values() if id(pair[0]) in theirs]


def _with_hooks(optimizer: Any) -> optim.Optimizer:
    """Return the optimizer whose steps torch announces to hooks: accelerate's wrapper has none of its own."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    if not getattr(getattr(type(optimizer), "step", None), "hooked", False):
        raise TypeError(
            f"optimizer must be one torch.optim.Optimizer; received {type(optimizer).__name__}. Leave it out: every "
            "torch optimizer is found at its first step. A step of any other is not seen."
        )
    return optimizer


def _guard_gradient(weight: Tensor, mask: WeightMask) -> Any:
    def zero_pruned(parameter: Tensor) -> None:  # torch requires that a hook returns None
        clear_pruned_gradient_(parameter, mask)

    zero_pruned(weight)  # an earlier backward may have left a gradient
    trained = weight.requires_grad
    weight.requires_grad_(True)  # a frozen weight takes no hook, and may be trained later
    handle = weight.register_post_accumulate_grad_hook(zero_pruned)
    weight.requires_grad_(trained)
    return handle


def _followed_by(then: Callable[[], None], argument: Any) -> Any:
    """Return the argument of a step; a closure is followed by another call."""
    if not callable(argument):
        return argument

    def call(*args: Any, **kwargs: Any) -> Any:
        result = argument(*args, **kwargs)
        then()
        return result

    return call


def _remove_all(handles: list[Any]) -> None:
    while handles:
        handles.pop().remove()


def _replaced(name: str) -> SparsityLeakError:
    """Make the error of a parameter that was replaced; one that PEFT only wraps anew keeps its zeros, and is none."""
    return SparsityLeakError(
        f"the model must still have the parameters that the mask was bound to; received one whose {name!r} was "
        "replaced, for example by fully_shard, a parametrization or load_state_dict(assign=True). Call keep_sparse "
        "after that."
    )


def _described(leaked: Tensor) -> str:
    """Say what stands where zeros should be."""
    bad, alive = int(leaked.isnan().sum()), int((leaked != 0).sum())
    largest = leaked.nan_to_num(0, posinf=float("inf"), neginf=float("-inf")).abs().max().item()
    numbers = f"{alive - bad} others, up to {largest:.3g}" if alive > bad else ""
    return " and ".join(part for part in (numbers, f"{bad} NaN" if bad else "") if part)
