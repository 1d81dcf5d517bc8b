"""How far discovery reaches: the share of the prunable weights that both axes of can move, and what holds the rest.

The architectures of the measured table are in ``test_discover``; here are those whose symmetry is harder to find.
``pytest -s`` prints the table.
"""

import warnings

import pytest
import torch
from rarer_architectures import RARE

from hf_lottery import prunable
from hf_lottery.symmetry.discovery import discover
from hf_lottery.symmetry.verification import verify

ROWS = [pytest.param(name, marks=[pytest.mark.slow] if rare.slow else []) for name, rare in RARE.items()]


@pytest.mark.filterwarnings("ignore:operations without a rule")
@pytest.mark.parametrize("name", ROWS)
def test_coverage(name):
    rare = RARE[name]
    torch.manual_seed(0)
    model = rare.build().eval()
    spec = discover(model, rare.inputs(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that are computed from others, or that training leaves as they are
        names = [*prunable(model, include=".*")]
    both, held = spec.coverage(names=names)[1], spec.held_by(names=names)
    rest = "".join(f"\n    {share:.3f} {why}" for why, share in held.items())
    print(f"\n{name}: {both:.3f} of the prunable weights, {len(spec.free)} groups{rest}")
    assert both >= rare.both and len(spec.free) >= rare.groups, rest
    if spec.free:
        assert verify(spec, model, rare.inputs(1), negative_control=False).error < 1e-8
