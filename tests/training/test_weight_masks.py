"""Masks of one tensor: numbers and bits do the same, on contiguous tensors and others, on the CPU and elsewhere."""

import pytest
import torch

from hf_lottery.training import weight_masks
from hf_lottery.training.weight_masks import BitMask, NumberMask

SHAPES = {
    "vector": (13,),
    "matrix": (5, 7),
    "kernels": (4, 3, 3, 3),
    "large": (70, 1001),
    "scalar": (),
    "empty": (0, 3),
}


@pytest.fixture(params=["numbers", "bits", "bits elsewhere"])
def make(request, monkeypatch):
    """A way to make a mask; the last unpacks on the device of the weight, as on a GPU, in small pieces."""
    if request.param == "bits elsewhere":
        monkeypatch.setattr(weight_masks, "_PIECE", 64)
        monkeypatch.setattr(weight_masks, "clear_on_cpu_", weight_masks.clear_elsewhere_)
    return NumberMask if request.param == "numbers" else BitMask


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_pruned_and_kept_entries_are_cleared(make, shape, dtype):
    entry = torch.rand(shape) > 0.5
    weight = torch.ones(shape).to(dtype)
    mask = make(entry, weight)
    cleared, leaked = weight.clone(), weight.clone()
    mask.clear_pruned_(cleared)
    mask.clear_kept_(leaked)
    assert torch.equal(cleared.to(torch.complex64), entry.to(torch.complex64))
    assert torch.equal(leaked.to(torch.complex64), (~entry).to(torch.complex64))


def test_a_tensor_of_another_layout_is_cleared_in_place(make):
    entry = torch.rand(8, 6) > 0.5
    mask = make(entry, torch.ones(8, 6))
    columns = torch.full((6, 8), float("nan"))
    mask.clear_pruned_(columns.T)
    assert torch.equal(columns.T.isnan(), entry) and bool((columns.T[~entry] == 0).all())


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_entries_at_places_of_the_first_axes(make, axes):
    entry = torch.rand(4, 5, 6) > 0.5
    indices = torch.stack([torch.randint(size, (9,)) for size in entry.shape[:axes]])
    assert torch.equal(make(entry, torch.ones(entry.shape)).at(indices), entry[tuple(indices)])
