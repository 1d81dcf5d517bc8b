"""Weights that have no sign, or not one that can be read or written, are refused."""

import pytest
import torch
from torch import nn

from hf_lottery import Mask, SignedMask

STORED = {
    "complex": lambda: torch.eye(4, dtype=torch.complex64),
    "float8": lambda: torch.eye(4).to(torch.float8_e4m3fn),
    "int8": lambda: torch.eye(4).to(torch.int8),
    "sparse": lambda: torch.eye(4).to_sparse(),
}


@pytest.mark.parametrize("stored", STORED)
def test_weights_without_signs_are_refused(stored):
    plain, model = (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)) for _ in range(2))
    mask = Mask.dense({"1.weight": plain[1].weight})
    signed = SignedMask.from_model(plain, mask)
    model[0].weight = nn.Parameter(STORED[stored](), requires_grad=False)
    with pytest.raises(ValueError, match=r"0.weight' (must have real weights|in the layout|of .* codes)"):
        SignedMask.from_model(model, mask)
    before = model[1].weight.detach().clone()
    with pytest.raises(ValueError, match=r"0.weight' (must have real weights|in the layout|of .* codes)"):
        signed.transfer_(model)
    assert torch.equal(model[1].weight, before)
    assert "0.weight" not in SignedMask.from_model(model, mask, norms={"0.weight": model[0].weight})
