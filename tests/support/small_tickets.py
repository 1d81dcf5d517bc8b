"""Masks and tickets of a small vision transformer."""

import torch
from small_task import vit

from hf_lottery import Mask, Snapshot, Ticket, discover, prunable


def mask(seed=0, keep=0.3):
    generator = torch.Generator().manual_seed(seed)
    return Mask({name: torch.rand(p.shape, generator=generator) < keep for name, p in prunable(vit(0)).items()})


def ticket(seed=0, **info):
    model = vit(0)
    return Ticket(
        mask(seed), Snapshot.capture(model, step=5), {"architecture": type(model).__name__, **info}, model.config
    )


def permutation():
    model = vit(0, hidden_dropout_prob=0.0)
    spec = discover(model, {"pixel_values": torch.randn(2, 1, 8, 8)})
    return spec.random(1), spec
