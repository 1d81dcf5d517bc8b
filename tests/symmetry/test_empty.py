"""Parameters and buffers without elements: there is nothing to permute, and nothing fails."""

import torch
from architectures import TwoLayers
from torch import nn

from hf_lottery.symmetry.discovery import discover
from hf_lottery.symmetry.permutation import permute_


class WithoutRegisters(TwoLayers):
    """Rows that a model may put before its inputs, of which its configuration asks for none."""

    def __init__(self):
        super().__init__()
        self.registers, self.unused = nn.Parameter(torch.empty(1, 0, 8)), nn.Parameter(torch.empty(0))
        self.register_buffer("rows", torch.empty(0, 3))

    def forward(self, x):
        x = self.a(x).relu()
        return self.head(torch.cat([self.registers.expand(len(x), -1, -1), x], 1).mean(1))


def test_tensors_without_elements():
    model, x = WithoutRegisters(), torch.randn(3, 7, 6)
    spec = discover(model, (x,))
    assert list(spec.free) == ["a.weight[0]"] and "registers" not in spec.tensors
    assert spec.verify(model, (torch.randn(2, 9, 6),)).error < 1e-10
    before, p = model(x), spec.random(0)
    permute_(model, p)
    assert torch.allclose(model(x), before, atol=1e-5)
    assert set(p(model.state_dict())) == set(model.state_dict())
