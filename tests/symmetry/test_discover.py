"""discover(): every architecture of the measured table, what a user gets from it, and each refusal."""

import copy
import time
import warnings

import pytest
import torch
from architectures import ARCHITECTURES, SEQUENCE, TwoLayers, add  # noqa: F401
from torch import nn

from hf_lottery import Mask, prunable
from hf_lottery.permutation import SymmetryError, permute_
from hf_lottery.symmetry.discover import discover
from hf_lottery.symmetry.verify import verify


def randomised(architecture):
    """A model whose parameters are all different from their initial zeros and ones."""
    torch.manual_seed(0)
    model = architecture.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim < 2 else 0.1))
    return model


ROWS = [
    pytest.param(name, marks=[pytest.mark.slow] if architecture.slow else [])
    for name, architecture in ARCHITECTURES.items()
]


@pytest.mark.parametrize("name", ROWS)
def test_architecture(name):
    architecture = ARCHITECTURES[name]
    model = randomised(architecture)
    spec = discover(model, architecture.inputs(0))  # a rule that is missing or wrong would warn
    report = verify(spec, model, architecture.inputs(1), negative_control=False)
    assert report.error < 1e-8 and max(report.errors.values()) < 1e-8
    nested = sum(bool(group.parents) for group in spec.free.values())
    assert (len(spec.free), nested) == (architecture.groups, architecture.nested), spec
    some, both = spec.coverage(prunable(model, include=".*"))
    assert some >= architecture.some - 1e-9 and both >= architecture.both, (some, both)
