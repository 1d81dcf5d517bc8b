"""Overlap of masks in parts."""

import pytest
import torch
from hand_made import network
from notebook_view import as_html

from hf_lottery.connectivity.overlap import overlap_by_group, overlap_by_head, overlap_by_parameter
from hf_lottery.masks.mask import Mask, MaskMismatchError, Overlap
from hf_lottery.symmetry.errors import SymmetryError


def masks(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [Mask({n: torch.rand(shape, generator=generator) < p for n, shape in shapes.items()}) for p in (0.4, 0.7)]


def part(a, b):
    """The overlap of one part, as that of a mask of its own."""
    return Mask({"part": a}).overlap(Mask({"part": b}))


def test_by_parameter():
    a, b = masks({"x": (5, 7), "y": (6,), "none": (4, 4)})
    a = Mask({**a, "none": torch.zeros(4, 4, dtype=torch.bool)})
    found = overlap_by_parameter(a, b)
    assert found == {name: part(a[name], b[name]) for name in a}
    assert found["none"].iou == 0.0
    assert overlap_by_parameter(a, b, include="x|y", exclude="y") == {"x": found["x"]}
    empty = ~Mask.dense({"x": torch.ones(3)})
    assert overlap_by_parameter(empty, empty) == {"x": Overlap(1.0, 1.0)}


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_by_head(axis):
    a, b = masks({"layer.0.query": (6, 9), "layer.0.key": (6, 9), "ffn": (5, 5)})
    found = overlap_by_head(a, b, 3, include=r"query|key", axis=axis)
    assert list(found) == ["layer.0.query", "layer.0.key"]
    for name, heads in found.items():
        wide = 2 if axis == 0 else 3
        cut = [(slice(wide * h, wide * h + wide), slice(None))[:: 1 if axis == 0 else -1] for h in range(3)]
        assert heads == tuple(part(a[name][where], b[name][where]) for where in cut)
    assert overlap_by_head(a, b, 3, include="query|key", exclude="query", axis=axis) == {
        "layer.0.key": found["layer.0.key"]
    }


def test_by_group_counts_all_weights_of_a_head_together():
    model, spec, _ = network("gqa")  # 3 key-value heads of 2 query heads each; queries and keys of 4, values of 5
    a, b = masks({name: model.get_parameter(name).shape for name in ("qkv.weight", "o.weight", "norm.weight")})
    (heads,) = overlap_by_group(a, b, spec, include="^kv$").values()
    assert len(heads) == 3
    for h, found in enumerate(heads):
        places = [
            ("qkv.weight", (slice(8 * h, 8 * h + 8),)), ("qkv.weight", (slice(24 + 4 * h, 28 + 4 * h),)),
            ("qkv.weight", (slice(36 + 5 * h, 41 + 5 * h),)), ("o.weight", (slice(None), slice(10 * h, 10 * h + 10))),
        ]  # fmt: skip
        split = [Mask({str(k): mask[name][at] for k, (name, at) in enumerate(places)}) for mask in (a, b)]
        assert found == pytest.approx(split[0].overlap(split[1]))


def test_parts_that_cannot_be():
    a, b = masks({"qkv.weight": (51, 12)})
    _, spec, _ = network("gqa")
    for function, rest in ((overlap_by_parameter, ()), (overlap_by_head, (3,)), (overlap_by_group, (spec,))):
        with pytest.raises(MaskMismatchError, match="received 'other' in one only"):
            function(a, Mask({**b, "other": b["qkv.weight"]}), *rest, include="kv")
    for include in ("value", ["value"]):
        with pytest.raises(ValueError, match="include must match the name of a parameter; received 'value'"):
            overlap_by_head(a, b, 3, include=include)
    for include, exclude in (([], None), ("qkv", "qkv")):
        with pytest.raises(ValueError, match="include and exclude must leave a parameter of the masks"):
            overlap_by_head(a, b, 3, include=include, exclude=exclude)
    for heads, axis in ((2, 0), (0, 0), (3, 2)):
        with pytest.raises(ValueError, match=f"axis {axis} of 'qkv.weight' must be a multiple of the heads; received"):
            overlap_by_head(a, b, heads, include="qkv", axis=axis)
    with pytest.raises(SymmetryError, match=r"group 'rep' must have no parents; received \('kv',\)"):
        overlap_by_group(a, b, spec, include="rep")
    with pytest.raises(SymmetryError, match="group 'vocab' must lie on a parameter of the masks"):
        overlap_by_group(a, b, spec, include="vocab")
    with pytest.raises(SymmetryError, match="include must match the name of a group; received 'none'"):
        overlap_by_group(a, b, spec, include="none")


def test_print_in_a_few_lines():
    a, b = masks({f"layer.{n}": (4, 6) for n in range(100)})
    found = overlap_by_parameter(a, b)
    lines = repr(found).splitlines()
    assert lines[0].split() == ["parameter", "overlap", "chance"] and lines[-1] == "... and 80 more"
    assert lines[1].split() == ["layer.0", *(f"{number:.4f}" for number in found["layer.0"])]
    heads = overlap_by_head(a, b, 2, include="layer.0")
    low, high = sorted(head.iou for head in heads["layer.0"])
    assert repr(heads).splitlines()[1].split()[:2] == ["layer.0", "2"]
    assert f"<td>{low:.4f}</td><td>{high:.4f}</td>" in as_html(heads)
