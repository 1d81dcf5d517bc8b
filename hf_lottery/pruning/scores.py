"""Scores: how much each weight matters. A score is a function of one weight tensor and the evidence about it.

Every score here, and any of your own, is called as ``score(weight, evidence)`` and returns a tensor of the weight's
shape; the higher, the longer the weight stays. :func:`score_weights` calls it for every weight of a model,
:func:`gather_evidence` collects gradients and input norms from batches for the scores that need them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..networks.names import named_weights
from ..networks.shards import as_shards, class_name, is_sharded, reshard


class Evidence(NamedTuple):
    """What is known about one weight tensor besides its values. A score reads what it needs.

    Attributes:
        gradient: dL/dw summed over the batches; shape of the weight.
        input_norm: L2 norm of each input feature over all batches and positions; broadcasts against the weight.
        start: The weight at the start of the training that led to its present value; shape of the weight.
    """

    gradient: Tensor | None = None
    input_norm: Tensor | None = None
    start: Tensor | None = None


Score = Callable[[Tensor, Evidence], Tensor]


def magnitude(weight: Tensor, evidence: Evidence = Evidence()) -> Tensor:  # noqa: B008  # immutable
    """|w|.

    Reference:
        Han et al., 2015, "Learning both Weights and Connections for Efficient Neural Networks", arXiv:1506.02626.
    """
    return weight.detach().abs()


def random_score(weight: Tensor, evidence: Evidence = Evidence()) -> Tensor:  # noqa: B008
    """Uniform in [0, 1), drawn on the CPU from torch's global generator: the control every ticket must beat."""
    return torch.rand(weight.shape).to(weight.device)


def saliency(weight: Tensor, evidence: Evidence) -> Tensor:
    """|w * dL/dw|: the first-order change of the loss when the weight goes.

    Raises:
        ValueError: The evidence has no gradient.

    Reference:
        Lee et al., 2019, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", arXiv:1810.02340. Ours is
        not normalised by its sum, which leaves every ranking as it is.
    """
    return (weight.detach() * _required(evidence.gradient, "gradient", "saliency")).abs()


def movement(weight: Tensor, evidence: Evidence) -> Tensor:
    """(w^2 - w_start^2) / 2: how far training moved the weight away from zero; negative when it moved towards it.

    Raises:
        ValueError: The evidence has no start.

    Reference:
        Sanh et al., 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", arXiv:2005.07683. They sum
        -w * dL/dw over the steps of plain SGD; ours is the limit of that sum for small steps (the integral of w dw),
        so it needs no bookkeeping during training and holds for every optimizer.
    """
    return (weight.detach().square() - _required(evidence.start, "start", "movement").square()) / 2


def wanda(weight: Tensor, evidence: Evidence) -> Tensor:
    """|w| * ||x||: magnitude times the L2 norm of the input feature it multiplies.

    Raises:
        ValueError: The evidence has no input norm (stacked expert weights have none).

    Reference:
        Sun et al., 2024, "A Simple and Effective Pruning Approach for Large Language Models", arXiv:2306.11695. They
        compare weights within each output; here the scope given to ``prune`` decides.
    """
    return weight.detach().abs() * _required(evidence.input_norm, "input_norm", "wanda")


def score_weights(
    weights: nn.Module | Mapping[str, Tensor], score: Score = magnitude, evidence: Mapping[str, Evidence] | None = None
) -> dict[str, Tensor]:
    """Score every weight tensor.

    Args:
        weights: Name -> weight, such as ``prunable(model)``.
        score: One of this module's scores, or any callable of the same signature.
        evidence: Name -> evidence, as :func:`gather_evidence` returns it; a missing name has none.

    Returns:
        Name -> scores, each of the weight's shape.

    Raises:
        ValueError: A score lacks its evidence, or returned another shape; the message names the weight.
    """
    scores = {}
    for name, weight in named_weights(weights).items():
        try:
            known = (evidence or {}).get(name, Evidence())
            if is_sharded(weight):
                known = Evidence(*(None if value is None else _sharded(value, weight) for value in known))
            scores[name] = score(weight, known)
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from error
        if scores[name].shape != weight.shape:
            raise ValueError(
                f"the score of {name!r} must have the weight's shape {list(weight.shape)}; "
                f"received {list(scores[name].shape)}. Return one score for each weight."
            )
        scores[name] = _sharded(scores[name], weight)
    return scores


def _sharded(value: Tensor, weight: Tensor) -> Tensor:
    """What is the same on every process, in the layout of the weight."""
    return as_shards(value.expand(weight.shape), weight) if is_sharded(weight) and not is_sharded(value) else value


def gather_evidence(
    model: nn.Module, batches: Iterable[Any], loss: Callable[[nn.Module, Any], Tensor], *, within: Mapping[str, Tensor]
) -> dict[str, Evidence]:
    """Collect gradients and input norms of the weights ``within`` over some batches.

    The model keeps its weights, buffers, mode and gradients: it is run in evaluation mode, and gradients that were
    there are put back. On several processes the evidence is of this process's batches, and for you to sum, as
    LotteryTrainer does; the gradients of FSDP2 are means over the processes already.

    Args:
        model: The model, on the device of the batches.
        batches: What ``loss`` takes.
        loss: ``loss(model, batch)`` returns the scalar to differentiate.
        within: Name -> parameter to gather evidence for, such as ``prunable(model)``.

    Returns:
        Name -> Evidence with the sum of the gradients, and the input norm where the parameter is the weight of a
        linear or convolution module.

    Raises:
        ValueError: There are no batches, or a parameter got no gradient from any of them.
    """
    reshard(model)
    names = {id(parameter): name for name, parameter in within.items()}
    squares: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(_square_inputs(squares, names[id(weight)]))
        for module in model.modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor) and id(weight) in names
    ]
    kept_gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    count = 0
    try:
        model.zero_grad(set_to_none=True)
        for count, batch in enumerate(batches, start=1):  # noqa: B007
            loss(model, batch).backward()
        if not count:
            raise ValueError("batches must hold at least one batch; received none. Was the loader used up?")
        return {name: _evidence(name, parameter, squares.get(name)) for name, parameter in within.items()}
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in model.named_parameters():
            parameter.grad = kept_gradients[name]
        for module, mode in modes.items():
            module.training = mode


def _evidence(name: str, parameter: Tensor, square: Tensor | None) -> Evidence:
    if parameter.grad is None:
        raise ValueError(f"{name!r} must get a gradient from the batches; received none. Is it frozen or unused?")
    return Evidence(gradient=parameter.grad, input_norm=None if square is None else square.sqrt())


def _square_inputs(squares: dict[str, Tensor], name: str):
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        square = _input_squares(module, inputs[0].detach().float()) if inputs else None
        if square is not None:
            squares[name] = squares[name] + square if name in squares else square

    return hook


def _input_squares(module: nn.Module, x: Tensor) -> Tensor | None:
    """Sum of squares of each input feature, shaped to broadcast against ``module.weight``."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        spatial = module.weight.ndim - 2
        per_channel = x.square().sum(dim=[d for d in range(x.ndim) if d != x.ndim - spatial - 1])
        # A group of filters sees only its own slice of the channels.
        per_filter = per_channel.view(module.groups, -1).repeat_interleave(module.out_channels // module.groups, 0)
        return per_filter.view(*per_filter.shape, *[1] * spatial)
    per_feature = x.reshape(-1, x.shape[-1]).square().sum(0)
    if isinstance(module, nn.Linear):
        return per_feature[None, :]
    if class_name(module) == "Conv1D":  # GPT-2 keeps its weights as [inputs, outputs]
        return per_feature[:, None]
    return None


def _required(value: Tensor | None, what: str, score: str) -> Tensor:
    if value is None:
        raise ValueError(f"{score} must be given evidence with a {what}; received none. See gather_evidence().")
    return value
