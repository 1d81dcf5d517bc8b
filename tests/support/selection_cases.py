"""Scores that are kind to a sample and scores that are not, and what a stable sort makes of them."""

import math

import torch

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def reference(scores, remove, alive=None):
    """The rule itself: sort what competes by (score, name, position) and remove from the front."""
    order = sorted(
        (value, name, position)
        for name, score in scores.items()
        for position, value in enumerate(score.reshape(-1).tolist())
        if alive is None or alive[name].reshape(-1)[position]
    )
    keep = {n: torch.ones(s.shape, dtype=torch.bool) if alive is None else alive[n].clone() for n, s in scores.items()}
    for _, name, position in order[:remove]:
        keep[name].view(-1)[position] = False
    return keep


def assert_same(result, expected, case=None):
    assert list(result) == list(expected)
    for name, entry in expected.items():
        assert result[name].shape == entry.shape
        assert torch.equal(result[name], entry), (name, case)


def kinds(n, generator):
    """Values that a sample describes well, badly, or not at all."""
    normal = torch.randn(n, generator=generator)
    infinite = normal.clone()
    infinite[::3], infinite[1::5] = math.inf, -math.inf
    periodic = normal.clone()
    periodic[:: n // 64 | 1] = 100  # with _SAMPLE = 64 the first sample sees nothing else
    return {
        "normal": normal,
        "integers": normal.round(),
        "equal": torch.full((n,), 2.5),
        "mostly zero": torch.where(torch.rand(n, generator=generator) < 0.9, 0.0, normal.abs()),
        "sorted": normal.sort().values,
        "descending": normal.sort(descending=True).values,
        "infinite": infinite,
        "all infinite": torch.full((n,), math.inf),
        "periodic": periodic,
        "signed zeros": torch.tensor([0.0, -0.0]).repeat(n)[:n],
    }


def split(values, dtype):
    """One flat tensor as the kinds of tensors that occur: empty, scalar, transposed, strided, broadcast."""
    values = values.to(dtype)
    third = len(values) // 3 // 6 * 6
    strided = torch.zeros(2 * third, dtype=dtype)
    strided[::2] = values[third : 2 * third]
    return {
        "m.transposed": values[:third].reshape(6, -1).T,
        "z.strided": strided[::2],
        "a.rest": values[2 * third :],
        "k.empty": torch.empty(0, 7, dtype=dtype),
        "k.scalar": values[0],
        "b.broadcast": values[5].expand(3, 4),
    }
