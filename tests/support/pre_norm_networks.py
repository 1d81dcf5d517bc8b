"""Small networks with norms before linear layers."""

import torch
from torch import nn
from torch.nn import functional as F


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class OnePlusNorm(nn.Module):
    """As Gemma's, with a shift that is registered first."""

    def __init__(self, size: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size))
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return (x - x.mean(-1, keepdim=True)) * (1 + self.weight) + self.bias  # with the strides of x


class Block(nn.Module):
    def __init__(self, norm: nn.Module, bias: bool = True):
        super().__init__()
        self.norm, self.q, self.k = norm, nn.Linear(4, 4, bias=bias), nn.Linear(4, 4, bias=bias)

    def forward(self, x):
        y = self.norm(x).reshape(-1, 4)
        return x + (self.q(y) * F.dropout(self.k(input=y), 0.5, self.training)).reshape(x.shape)


class Case(nn.Module):
    """A norm that can be folded, and one whose output is read in a way of its own; 4 tokens of 4 features."""

    def __init__(self, read, norm: nn.Module | None = None, reader: nn.Module | None = None):
        super().__init__()
        self.good, self.norm = Block(nn.LayerNorm(4)), norm or nn.LayerNorm(4)
        self.a, self.b, self.read = reader or nn.Linear(4, 4), nn.Linear(4, 4), read

    def forward(self, x):
        return self.good(x), self.read(self, x)
