"""Verification: the proof by computation that a spec leaves a model's function as it is."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ..networks.display import html_table, text_table
from ..networks.names import plain_name, unwrap
from ..networks.numbers import check_numbers
from .changes import Baseline
from .errors import SymmetryError, SymmetryVerificationError
from .inputs import Inputs, checked_inputs, describe, other_inputs
from .outputs import chosen_outputs
from .permutation import permute_, random_permutation
from .structure import SHOWN, Structure
from .trace import call, plain_kernels

Outputs = dict[str, Tensor]
RTOL = 1e-8
_HEADER = ("group", "change", "proof is empty for")


@dataclass(repr=False)
class VerifyReport:
    """What a verification found; prints as a table.

    Attributes:
        error: Largest change of an output when all groups are permuted at once: of a float relative to its own size or
            to the typical size of its output, of integers as the share of them that differ.
        errors: The same for each group alone.
        inert: ``(group, tensor, axis)`` whose lone permutation changes nothing, such as a key bias under softmax. The
            proof is empty for these.
        visible: How many (group, tensor, axis) change an output when permuted alone, as they must.
        inputs: Name and shape of the inputs that the proof ran on: those that were given, and those of another length,
            size or batch if the model takes any.
    """

    error: float
    errors: dict[str, float] = field(default_factory=dict)
    inert: list[tuple[str, str, int]] = field(default_factory=list)
    visible: int = 0
    inputs: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        """Return a table with one line per group, the largest change first; a long table is cut."""
        return f"{self._title()}\n{text_table(_HEADER, self._rows(), limit=SHOWN)}"

    def _repr_html_(self) -> str:
        return f"<p>{self._title()}</p>\n{html_table(_HEADER, self._rows(), limit=SHOWN)}"

    def _title(self) -> str:
        axes = self.visible + len(self.inert)
        control = f", control: {self.visible} of {axes} axes matter" if axes else ""
        more = "" if len(self.inputs) > 1 else ", and no other length, size or batch could be tried"
        where = f", inputs: {' and '.join(self.inputs)}{more}" if self.inputs else ""
        return (
            f"VerifyReport(groups: {len(self.errors)}, largest change of an output: {self.error:.1e}{control}{where})"
        )

    def _rows(self) -> list[tuple[str, ...]]:
        empty: dict[str, list[str]] = {}
        for group, tensor, axis in self.inert:
            empty.setdefault(group, []).append(f"{tensor}[{axis}]")
        rows = []
        for name, error in sorted(self.errors.items(), key=lambda item: -item[1]):
            places = empty.get(name, [])
            more = f" and {len(places) - 2} more" if len(places) > 2 else ""
            rows.append((name, f"{error:.1e}", ", ".join(places[:2]) + more))
        return rows


class _InDouble(TorchDispatchMode):
    """Gives float64 where a network asks for less (in norms or softmax), as rounding would hide errors."""

    _LOW = (torch.float32, torch.float16, torch.bfloat16)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        args, kwargs = tree_map(lambda v: torch.float64 if isinstance(v, torch.dtype) and v in self._LOW else v,
                                (args, kwargs or {}))  # fmt: skip
        return func(*args, **kwargs)


@contextmanager
def _double_by_default() -> Iterator[None]:
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


class Prover:
    """A randomised float64 copy of a model, and its outputs on some inputs.

    Initial values of zero and one make checks empty (a bias of zero moves nowhere), so every parameter gets noise.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        *,
        outputs: Sequence[str] | None = None,
        seed: int = 0,
        moved: Collection[str] | None = None,
    ):
        check_numbers(model)
        self.outputs = outputs
        self.state: dict[str, Tensor] = {}
        self.model = copy.deepcopy(unwrap(model)).to("cpu", torch.float64)
        self._randomise(torch.Generator().manual_seed(seed))
        self.before = self._outputs_on(inputs)
        if self.before.change(self.run()) != 0:
            raise SymmetryError(
                "the model must give the same output twice in evaluation mode; received another one. "
                "Make it deterministic: fix what it samples, or pass that as an input."
            )
        if moved is None or moved:
            self.before.measure(self._outputs_after(lambda m: self._disturb(moved)))

    def _outputs_on(self, inputs: Inputs) -> Baseline:
        """Go on with these inputs, and return the outputs."""
        self.inputs = tree_map(
            lambda v: (v.cpu().double() if v.is_floating_point() else v.cpu()) if isinstance(v, Tensor) else v, inputs
        )
        try:
            before = Baseline(self.run())
        except SymmetryError:
            raise
        except Exception as error:
            raise SymmetryError(
                "the model must run in float64 on the CPU to be verified; received an error from its forward pass: "
                f"{type(error).__name__}: {error}"
            ) from error
        # A model may extend its tables while it runs, so the state is what the first pass leaves.
        buffers = dict(self.model.named_buffers())
        for name, tensor in self._tensors().items():
            if name in buffers or name not in self.state:
                self.state[name] = tensor.clone()
        return before

    def take_others(self) -> list[str]:
        """Go on with inputs of another length or size if the model takes any; describe the inputs that were taken."""
        given, shapes = self.inputs, self._shapes()
        for others in other_inputs(given):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # such as of a length that the model was not trained for
                    before = self._outputs_on(others)
            except SymmetryError:
                continue
            if self._shapes() != shapes:
                break  # it has extended a table for good, which the spec does not know
            before.scales |= {name: self.before.scales[name] for name in before.scales if name in self.before.scales}
            self.before = before
            return describe(given, others)
        return describe(given)

    @torch.no_grad()
    def _randomise(self, generator: torch.Generator) -> None:
        for parameter in self.model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            spread = parameter.std().item() if parameter.numel() > 1 else 0.0
            parameter.add_(noise * (0.3 if parameter.ndim < 2 else max(spread, 0.02)))
        for name, buffer in self.model.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
            elif name.endswith(("running_mean", "correction_bias")):
                buffer.copy_(torch.randn(buffer.shape, generator=generator, dtype=torch.float64) * 0.1)

    @torch.no_grad()
    def _disturb(self, names: Collection[str] | None) -> None:
        """Shift and scale tensors, each by its own amount, which is no symmetry and costs less than new noise."""
        tensors = dict(self.model.named_parameters()) if names is None else self._tensors()
        for k, (name, tensor) in enumerate(tensors.items()):
            if (names is None or plain_name(name) in names) and tensor.is_floating_point():
                tensor.copy_(tensor.flatten().roll(1 + k).view_as(tensor)).mul_(1 + 0.1 * (1 + k % 7))

    def _tensors(self) -> dict[str, Tensor]:
        """Return parameters and buffers, including those that a state dict leaves out."""
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def _shapes(self) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in self._tensors().items()}

    def run(self) -> Outputs:
        """Return the outputs of the model as it is now."""
        with plain_kernels(self.model), _double_by_default(), _InDouble():
            return chosen_outputs(call(self.model, self.inputs), self.outputs)

    def try_out(self, alter: Callable[[nn.Module], None]) -> float:
        """Alter the model, return the change of its outputs (see :class:`Baseline`), and restore it."""
        return self.before.change(self._outputs_after(alter))

    def _outputs_after(self, alter: Callable[[nn.Module], None]) -> Outputs:
        alter(self.model)
        try:
            return {name: tensor.clone() for name, tensor in self.run().items()}
        finally:
            with torch.no_grad():
                for name, tensor in self._tensors().items():
                    if name in self.state:
                        tensor.copy_(self.state[name])


def verify(
    spec: Structure,
    model: nn.Module,
    inputs: Mapping[str, Any] | tuple[Any, ...],
    *,
    outputs: Sequence[str] | None = None,
    rtol: float = RTOL,
    negative_control: bool = True,
    seed: int = 0,
) -> VerifyReport:
    """Permute a randomised float64 copy of the model by the spec and compare its outputs.

    Args:
        spec: The spec to prove.
        model: The model; not changed.
        inputs: One call's arguments. Others than ``discover`` had make a better proof. Inputs of another length or
            size are made from them, and are tried as well if the model takes them.
        outputs: Output fields that must not change, as for ``discover``.
        rtol: Allowed change of an output, measured as :attr:`VerifyReport.error`.
        negative_control: Also permute each tensor's axis alone and report those that change nothing.
        seed: Seed of the noise and the permutations.

    Raises:
        TypeError: ``inputs`` is of the wrong kind.
        SymmetryVerificationError: An output changed. The message names the group.
        SymmetryError: The model does not take the inputs, or is random in evaluation mode; or its outputs prove
            nothing: they hold NaN, nothing finite, only integers, or do not depend on the weights that move.
        SpecMismatchError: The spec is for another model.
    """
    inputs = checked_inputs(unwrap(model), inputs)
    spec.check_fits(model)
    prover = Prover(model, inputs, outputs=outputs, seed=seed, moved=moved_by(spec))

    def error_of(groups: Collection[str]) -> float:
        return prover.try_out(lambda m: permute_(m, random_permutation(spec, seed, groups)))

    report = VerifyReport(error_of(spec.free), {name: error_of([name]) for name in spec.free})
    _check(report.error, report.errors, rtol)
    if negative_control:
        for name, tensor, axis in ties(spec):
            changed = prover.try_out(lambda m, t=(name, tensor, axis): _permute_alone(m, spec, *t, seed=seed))
            if changed > 1e-12:
                report.visible += 1
            else:
                report.inert.append((name, tensor, axis))
    report.inputs = prover.take_others()
    if len(report.inputs) > 1:
        report.error = max(report.error, error_of(spec.free))
        if not report.error <= rtol:
            _check(report.error, {name: error_of([name]) for name in spec.free}, rtol, report.inputs)
    return report


def _check(error: float, errors: Mapping[str, float], rtol: float, inputs: Sequence[str] = ()) -> None:
    wrong = [name for name, alone in errors.items() if not alone <= rtol]
    if wrong or not error <= rtol:
        where = f" on inputs of another length ({inputs[1]} instead of {inputs[0]})" if inputs else ""
        raise SymmetryVerificationError(
            f"a legal permutation must leave every output within {rtol:g}; received {max(error, *errors.values()):.2g} "
            f"by {wrong[:3] or 'all groups together'}{where}. Freeze them, or report the architecture."
        )


def moved_by(spec: Structure) -> set[str]:
    """Return the tensors that the free groups of a spec move."""
    return {tensor for name in spec.free for tensor, _ in spec.members[name]}


def ties(spec: Structure) -> Iterable[tuple[str, str, int]]:
    """Yield every (free group, tensor, axis) of a spec."""
    for tensor, blocks in spec.tensors.items():
        yield from sorted(
            {(leaf, tensor, i) for block in blocks for i, axis in enumerate(block.axes) for leaf in axis.leaves}
            & {(name, tensor, i) for name in spec.free for i in range(len(blocks[0].axes))}
        )


@torch.no_grad()
def _permute_alone(model: nn.Module, spec: Structure, group: str, tensor: str, axis: int, *, seed: int) -> None:
    """Permute one axis of one tensor by one group, and nothing else."""
    elsewhere = replace(spec.groups[group], name=f"{group} elsewhere", frozen="not part of the control")
    blocks = [
        replace(block, axes=tuple(
            part if i == axis
            else replace(part, leaves=tuple(elsewhere.name if leaf == group else leaf for leaf in part.leaves))
            for i, part in enumerate(block.axes)
        ))
        for block in spec.tensors[tensor]
    ]  # fmt: skip
    alone = Structure([*spec.groups.values(), elsewhere], {tensor: blocks})
    state = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    state[tensor].copy_(random_permutation(alone, seed, [group]).move(tensor, state[tensor].detach()))


def culprits(spec: Structure, prover: Prover, rtol: float, *, seed: int = 0) -> list[str]:
    """Return the groups that change an output, each alone; if only several together do, the last one it takes."""

    def fails(groups: list[str]) -> bool:
        return not prover.try_out(lambda m: permute_(m, random_permutation(spec, seed, groups))) <= rtol

    names = list(spec.free)
    found = [name for name in names if fails([name])]
    if found:
        return found
    low, high = 0, len(names)  # the first `low` groups are fine together, the first `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(names[:middle]) else (middle, high)
    return names[high - 1 : high]
