"""PermutationSpec: which axes of which tensors may be permuted together without changing the function.

A *group* is one class of axes that move together: the channels of a residual stream, the heads of one attention, the
units of one feed-forward layer. An inner group (the dimensions of each head) has *parents*: its permutation may be
another one for every index of them. A tensor is a set of disjoint *blocks* (the fused ``q|k|v`` is three), and every
axis of a block is a product of groups, outermost first, with the positions that the product takes along the axis.

References:
    Ainsworth, Hayase and Srinivasa, 2023, "Git Re-Basin", arXiv:2209.04836 (the flat specification, without nesting).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..networks.generators import kept_generators
from ..networks.selection import Patterns
from .permutation import Permutation, random_permutation
from .structure import Structure
from .verification import VerifyReport, verify


class PermutationSpec(Structure):
    """The permutation symmetries of one architecture.

    Args:
        groups: The groups, free and frozen.
        tensors: Name of a parameter or buffer (every name of a tied one) -> the blocks that make it up.
        network: Which network it is of, beyond names and shapes, as :func:`hf_lottery.networks.identity.identity_of`
            says. Without it, models are compared with names and shapes alone.
        proof: How it was proven, as in ``discover``: "full" or "fast"; "later" if it was not proven yet; None if that
            is not known, as for specs that were written by hand and files of older versions.
        reads: Name of a tensor -> its axes that the pass summed over in products of it with an activation. What units
            send leaves through these; what units receive arrives through the other axes of such a tensor. None if that
            is not known, as for specs that were written by hand and files of older versions.
        mixed: Group -> what combines its units with each other, other than a weight: the operation of a norm, softmax
            or ranking, or "a product of activations". None if that is not known, as for ``reads``.

    Attributes:
        groups: Name -> group.
        tensors: Name -> blocks.
        shapes: Name -> shape of the tensor, as the blocks add up to.
        network: As given.
        proof: As given; "full" after a verification that found no error.
        reads: As given, without tensors that have no such axis.
        mixed: As given. Specs that differ in proof, reads or mixed alone are equal.
        inputs: The inputs that ``discover`` ran on, as copies on the CPU; None if they take more than 64 MiB or have no
            numbers, and for specs from files and those that were written by hand. Neither saved nor compared.
        outputs: The output fields that ``discover`` was given, if any; kept as ``inputs`` are.

    Raises:
        SymmetryError: The data contradict themselves. The message names the group or tensor.

    Example:
        A hidden layer of three units between four frozen inputs and two frozen outputs:

        >>> import numpy as np
        >>> from hf_lottery.symmetry.groups import Axis, Block, Group
        >>> groups = [Group("in", 4, frozen="input"), Group("hidden", 3), Group("out", 2, frozen="output")]
        >>> axis = {group.name: Axis((group.name,), np.arange(group.size)) for group in groups}
        >>> spec = PermutationSpec(groups, {"fc1.weight": [Block((axis["hidden"], axis["in"]))],
        ...                                 "fc2.weight": [Block((axis["out"], axis["hidden"]))]})
        >>> list(spec.free), spec.shapes["fc2.weight"], spec.coverage()
        (['hidden'], (2, 3), (1.0, 0.0))
        >>> spec.random(0)
        Permutation(1 of 1 free groups move, 3 indices)
    """

    def identity(self) -> Permutation:
        """Return the permutation that moves nothing."""
        return Permutation(self, {})

    def random(self, seed: int, *, include: Patterns | None = None) -> Permutation:
        """Draw a legal permutation without fixed points: one n-cycle per group and parent index.

        Args:
            seed: The same seed gives the same permutation.
            include: Move only these groups, as for :meth:`select`. They must be free. By default all free groups move.

        Raises:
            SymmetryError: A pattern matches no group, or matches a frozen one.
        """
        return random_permutation(self, seed, self.free if include is None else self.select(include))

    def verify(self, model: nn.Module, inputs: Mapping[str, Any] | tuple[Any, ...], **options: Any) -> VerifyReport:
        """Prove on a randomised float64 copy of ``model`` that legal permutations leave its outputs as they are.

        The spec then says that it is proven, and saves that too.

        Args:
            model: The model; not changed.
            inputs: One call's arguments. Others than ``discover`` had, of another length, make a better proof.
            options: The options of :func:`hf_lottery.symmetry.verification.verify`.

        Raises:
            SymmetryVerificationError: An output changed. The message names the group.
            SymmetryError: The model is random in evaluation mode.
            SpecMismatchError: The spec is for another model.
        """
        with kept_generators(accelerators=torch.cuda.is_initialized()):
            report = verify(self, model, inputs, **options)
        self.proof = "full"
        return report
