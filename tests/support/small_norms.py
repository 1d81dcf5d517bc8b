"""A small network with each kind of norm."""

from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

NORMS = {
    "BatchNorm": nn.BatchNorm1d,
    "LayerNorm": nn.LayerNorm,
    "LayerNorm without bias": lambda size: nn.LayerNorm(size, bias=False),
    "RMSNorm": nn.RMSNorm,
    "GemmaRMSNorm": GemmaRMSNorm,
    "GroupNorm": lambda size: nn.GroupNorm(1, size),
}


def network(kind):
    return nn.Sequential(nn.Linear(6, 7), NORMS[kind](7), nn.Tanh(), nn.Linear(7, 3))
