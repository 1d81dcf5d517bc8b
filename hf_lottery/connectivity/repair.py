"""Repair: give an interpolated network the channel statistics that interpolation took from it.

Between two networks the variance of every channel shrinks, layer after layer, because their units agree only in part.
Repair helps to judge how well two networks are aligned. It is not needed to carry a mask over.

Under ``torch.distributed`` every process calls these functions with its share of the batches, which may be empty. Every
process obtains the statistics of all batches.

References:
    Jordan, Sedghi, Saukh, Entezari and Neyshabur, 2023, "REPAIR: REnormalizing Permuted Activations for Interpolation
    Repair", arXiv:2211.08403.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..networks.channels import written_channels
from ..networks.forward import Forward, run
from ..networks.modes import evaluating
from ..networks.names import unwrap
from ..networks.numbers import check_numbers
from ..networks.processes import gathered, reducing_device, several, sum_over_processes
from ..networks.selection import Patterns, select_names

Repair = Callable[[nn.Module, float], None]
_EPS = 1e-5


def recalibrate_batch_norm_(model: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None) -> None:
    """Recompute the running statistics of every batch norm, in place, as the plain mean over the batches.

    All other modules are in eval mode, so dropout is off and nothing else changes. Modes and momenta are put back.

    Args:
        model: A network with batch norms, such as an interpolated or a freshly masked one.
        batches: Inputs: dicts for ``model(**batch)``, tuples for ``model(*batch)``, or tensors. Under
            ``torch.distributed``, this process's share of them.
        forward: ``forward(model, batch)`` runs the model instead; it gets the batch unchanged.

    Raises:
        ValueError: There are no batch norms with running statistics, or no batches on any process; nothing was
            changed.
    """
    model = unwrap(model)
    check_numbers(model)
    if not batch_norms(model):
        raise ValueError(
            "the model must have batch norms with running statistics; received a model without any, which needs no "
            "recalibration."
        )
    with evaluating(model), _recalibrating(model):
        _run_all(model, batches, forward)


def repair_(
    model: nn.Module,
    *,
    source: nn.Module,
    target: nn.Module,
    batches: Iterable[Any],
    alpha: float = 0.5,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    forward: Forward | None = None,
) -> None:
    """Rescale the channels of an interpolated network to the interpolated statistics of its two ends, in place.

    Each channel's output gets the mean ``(1 - alpha) * mean_source + alpha * mean_target``, and a standard deviation
    interpolated likewise. Scale and shift are folded into weight and bias. Batch norms are recalibrated in the same
    pass.

    Args:
        model: The network at ``(1 - alpha) * source + alpha * target``.
        source: One end, already permuted; not changed.
        target: The other end; not changed.
        batches: As for :func:`recalibrate_batch_norm_`; they are run over twice.
        alpha: The model's place between the ends, in [0, 1].
        include: Names or regular expressions of the linear or convolution layers with a bias to repair. By default
            all of them are repaired except the one that runs last, which makes the output.
        exclude: Names or regular expressions of the layers to leave out again.
        forward: ``forward(model, batch)`` runs the model instead.

    Raises:
        ValueError: There are no batches, or no layer to repair; nothing was changed.

    Reference:
        Jordan et al., 2023, arXiv:2211.08403, section 3. Their code adds batch norms and fuses them. This function
        folds the same numbers in directly, with the variance pooled over the batches instead of averaged.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1]; received {alpha}.")
    repaired(source, target, batches, include=include, exclude=exclude, forward=forward)(model, alpha)


def recalibrated(batches: Iterable[Any], *, forward: Forward | None = None) -> Repair:
    """Make a ``repair`` for :func:`error_barrier` that recomputes the statistics of the batch norms at every point.

    Args:
        batches: As for :func:`recalibrate_batch_norm_`. One or two thousand samples of the training set are enough.
        forward: ``forward(model, batch)`` runs the model instead.
    """
    batches = _reusable(batches)
    return lambda model, alpha: recalibrate_batch_norm_(model, batches, forward=forward)


def repaired(
    source: nn.Module,
    target: nn.Module,
    batches: Iterable[Any],
    *,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    forward: Forward | None = None,
) -> Repair:
    """Make a ``repair`` for :func:`error_barrier` that applies REPAIR at every point.

    The statistics of the two ends are measured once, now. Each point then costs one pass over the batches, and the ends
    may change afterwards.

    Args:
        source: The network at ``alpha = 0``, already permuted; not changed.
        target: The network at ``alpha = 1``; not changed.
        batches: As for :func:`recalibrate_batch_norm_`.
        include: As for :func:`repair_`.
        exclude: As for :func:`repair_`.
        forward: ``forward(model, batch)`` runs the model instead.

    Returns:
        A function that repairs the network at ``(1 - alpha) * source + alpha * target``, in place.

    Raises:
        ValueError: There are no batches, or no layer to repair.

    Reference:
        Jordan et al., 2023, arXiv:2211.08403; see :func:`repair_`.
    """
    source, target, batches = unwrap(source), unwrap(target), _reusable(batches)
    for end in (source, target):
        check_numbers(end)
    able = _layers_with_bias(source)
    names = select_names(able, include=include, exclude=exclude, what="a linear or convolution layer with a bias")
    if not names and not (include is exclude is None):
        raise ValueError("include and exclude must leave a layer to repair; received ones that leave none.")
    ends = []
    for end in (source, target):
        measured, handles = _measure(end, able if include is None else names)
        with evaluating(end), handles:
            _run_all(end, batches, forward)
        ends.append({name: found.mean_std() for name, found in _of_all(end, measured).items()})
    if include is None:  # all that ran, in this order, except the last
        names = [name for name in list(ends[0])[:-1] if name in names]
    names = [name for name in names if name in ends[0] and name in ends[1]]
    if not names and not batch_norms(source):
        raise ValueError(
            "the model must have a layer with a bias to repair, besides the one that runs last; received a model "
            "without. Name the layer in `include` if it is to be repaired."
        )

    def repair(model: nn.Module, alpha: float) -> None:
        model = unwrap(model)
        check_numbers(model)
        goals = {
            name: [(1 - alpha) * a + alpha * b.to(a.device) for a, b in zip(*(end[name] for end in ends), strict=True)]
            for name in names
        }
        measured, handles = _measure(model, names, goals)
        with evaluating(model), handles, _recalibrating(model):
            _run_all(model, batches, forward)
        for name, found in _of_all(model, measured).items():
            _fold_(model.get_submodule(name), goals[name], found)

    return repair


class _Statistics:
    """Pooled mean and standard deviation of every channel of a layer's output."""

    def __init__(self):
        self.count, self.sums = 0, []

    def add(self, rows: Tensor) -> None:
        rows = rows.double()
        new = [rows.sum(0), rows.square().sum(0)]
        self.sums = [a + b for a, b in zip(self.sums, new, strict=True)] if self.sums else new
        self.count += len(rows)

    def of_all(self, channels: int) -> _Statistics:
        """The statistics over all processes."""
        pooled = _Statistics()
        sums = self.sums or [torch.zeros(channels, dtype=torch.float64, device=reducing_device())] * 2
        pooled.sums = [sum_over_processes(part.clone()) for part in sums]
        pooled.count = sum_over_processes(torch.tensor(self.count, device=sums[0].device)).item()
        return pooled

    def mean_std(self) -> tuple[Tensor, Tensor]:
        mean = self.sums[0] / self.count
        return mean, (self.sums[1] / self.count - mean.square()).clamp_min(0).add(_EPS).sqrt()


def _measure(model: nn.Module, names: Iterable[str], goals: dict[str, list[Tensor]] | None = None):
    """Hang hooks on layers that measure them; with ``goals``, each batch is also moved to its goal for later layers."""
    measured: dict[str, _Statistics] = {}
    handles = ExitStack()

    def hook(name: str, dimension: int) -> Callable[..., Tensor | None]:
        def measure(_, __, output: Tensor) -> Tensor | None:
            rows = output.movedim(dimension, -1)
            flat = rows.reshape(-1, rows.shape[-1])
            measured.setdefault(name, _Statistics()).add(flat)
            if goals is None:
                return None
            here = _Statistics()
            here.add(flat)
            (mean, std), (goal_mean, goal_std) = here.mean_std(), goals[name]
            rows = (rows.double() - mean) / std * goal_std.to(std.device) + goal_mean.to(std.device)
            return rows.to(output.dtype).movedim(-1, dimension)

        return measure

    for name in names:
        module = model.get_submodule(name)
        place = written_channels(module)
        assert place is not None
        handles.callback(module.register_forward_hook(hook(name, place[1])).remove)
    return measured, handles


def _of_all(model: nn.Module, measured: dict[str, _Statistics]) -> dict[str, _Statistics]:
    """The statistics of all processes, in the order in which the layers ran on any process that had batches."""
    found = {}
    for name in dict.fromkeys(chain.from_iterable(gathered(list(measured)))):
        layer = model.get_submodule(name)
        place = written_channels(layer)
        assert place is not None
        found[name] = measured.get(name, _Statistics()).of_all(layer.get_parameter("weight").shape[place[0]])
    return found


@torch.no_grad()
def _fold_(layer: nn.Module, goal: list[Tensor], found: _Statistics) -> None:
    place = written_channels(layer)
    assert place is not None
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    mean, std = found.mean_std()
    scale = goal[1].to(std.device) / std
    shape = [-1 if k == place[0] else 1 for k in range(weight.ndim)]
    weight.copy_(weight.double() * scale.view(shape))
    bias.copy_(goal[0].to(std.device) + scale * (bias.double() - mean))


def _layers_with_bias(model: nn.Module) -> list[str]:
    """Names of the linear and convolution modules with a bias."""
    return [
        name
        for name, module in model.named_modules()
        if written_channels(module) is not None and isinstance(getattr(module, "bias", None), Tensor)
    ]


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms of a model that have running statistics."""
    kind = nn.modules.batchnorm._BatchNorm
    return [m for m in model.modules() if isinstance(m, kind) and m.running_mean is not None]


@contextmanager
def _recalibrating(model: nn.Module):
    """Let batch norms collect statistics anew while a block runs; if it fails, their old ones are put back."""
    for norm in batch_norms(model):
        norm.train()
    norms = [norm for norm in batch_norms(model) if norm.training]  # a frozen one stays in eval mode
    before = [({name: b.clone() for name, b in norm.named_buffers()}, norm.momentum) for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative mean
        yield
        for norm in norms:
            _average_(norm)
    except BaseException:
        for norm, (buffers, _) in zip(norms, before, strict=True):
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])
        raise
    finally:
        for norm, (_, momentum) in zip(norms, before, strict=True):
            norm.momentum = momentum


@torch.no_grad()
def _average_(norm: nn.modules.batchnorm._BatchNorm) -> None:
    """Give a batch norm the mean over the batches of all processes."""
    if not several():
        return
    own = norm.get_buffer("num_batches_tracked")
    count = sum_over_processes(own.clone())
    for name in ("running_mean", "running_var"):
        buffer = norm.get_buffer(name)
        mean = sum_over_processes(buffer.double() * own) / count
        if count:  # a norm that never ran keeps the values of a reset
            buffer.copy_(mean)
    own.copy_(count)


def _reusable(batches: Iterable[Any]) -> Iterable[Any]:
    return list(batches) if iter(batches) is batches else batches


def _run_all(model: nn.Module, batches: Iterable[Any], forward: Forward | None) -> None:
    seen = torch.zeros((), device=reducing_device())
    for batch in batches:
        run(model, batch, forward=forward)
        seen += 1
    if not sum_over_processes(seen):
        raise ValueError("repair must see at least one batch; received none. Pass a list: an iterator may be used up.")
