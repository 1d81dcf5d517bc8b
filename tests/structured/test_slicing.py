"""Slices: what stays of a tensor when units are cut, also of nested groups and of tensors that are made of parts."""

import numpy as np
import pytest
import torch

from hf_lottery.structured.outgoing import outgoing_axes, zeroed
from hf_lottery.structured.slicing import Slices, UnitError, checked_units
from hf_lottery.symmetry import Axis, Block, Group, PermutationSpec

HEADS, DIMS, IN = 4, 6, 5
GROUPS = [Group("in", IN, frozen="an input"), Group("heads", HEADS), Group("dims", DIMS, parents=("heads",))]


def bools(*rows):
    return np.array(rows, dtype=bool)


def spec_of(positions, *, parts=1):
    """A spec of one weight whose first axis holds heads and their dimensions, once or several times."""
    size = HEADS * DIMS
    blocks = [
        Block((Axis(("heads", "dims"), positions + part * size), Axis(("in",), np.arange(IN)))) for part in range(parts)
    ]
    return PermutationSpec(GROUPS, {"w": blocks, "b": [Block((block.axes[0],)) for block in blocks]}, reads={})


OUTER = np.arange(HEADS * DIMS).reshape(HEADS, DIMS)
INNER = np.arange(HEADS * DIMS).reshape(DIMS, HEADS).T  # the dimensions come first along the axis


def units(seed=0):
    """Two heads, and half of the dimensions, others in each head; a cut head may keep any number of its own."""
    draw = np.random.default_rng(seed)
    dims = np.array([draw.permutation(DIMS) < 3 for _ in range(HEADS)])
    heads = np.array([False, True, True, False])
    dims[0] = False
    return {"heads": heads, "dims": dims}


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("positions", [OUTER, INNER], ids=["heads first", "dimensions first"])
def test_nested_units_are_cut_from_every_part(positions, parts):
    spec, cut = spec_of(positions, parts=parts), units()
    slices = Slices(spec, checked_units(spec, cut))
    weight = torch.randn(parts * HEADS * DIMS, IN)
    order = (lambda x: x) if positions is OUTER else (lambda x: x.transpose(1, 2))
    whole = weight.view(parts, HEADS, DIMS, IN) if positions is OUTER else weight.view(parts, DIMS, HEADS, IN)
    by_head = order(whole)
    kept = torch.stack([by_head[:, h][:, torch.from_numpy(cut["dims"][h])] for h in (1, 2)], 1)
    expected = order(kept).reshape(-1, IN)
    assert torch.equal(slices.cut("w", weight), expected)
    assert slices.shape("w") == tuple(expected.shape) == (parts * 6, IN)
    assert torch.equal(slices.cut("b", weight[:, 0]), expected[:, 0])


def test_a_tensor_that_loses_nothing_is_the_same_object():
    spec = spec_of(OUTER)
    weight = torch.randn(HEADS * DIMS, IN)
    assert Slices(spec, {}).cut("w", weight) is weight
    assert Slices(spec, units()).cut("other", weight) is weight
    assert checked_units(spec, {"heads": np.ones(HEADS, dtype=bool)}) == {}


@pytest.mark.parametrize(
    "cut, message",
    [
        ({"nothing": bools(1, 0)}, "units must be of groups of the spec; received 'nothing'"),
        ({"in": bools(1, 1, 1, 1, 0)}, "must be free; received 'in', frozen: an input"),
        ({"heads": bools(1, 0)}, r"must be bool of shape \[4\].*received bool \[2\]"),
        ({"heads": np.ones(HEADS)}, r"must be bool of shape \[4\].*received float64"),
        ({"heads": bools(0, 0, 0, 0)}, r"must keep at least one unit.*received \[0\] of 4"),
        (
            {"dims": np.arange(6) >= np.array([[1], [2], [2], [2]])},
            r"equally many for every index.*received \[4, 5\] of 6",
        ),
    ],
)
def test_units_that_do_not_fit_are_refused(cut, message):
    with pytest.raises(UnitError, match=message):
        checked_units(spec_of(OUTER), cut)


def test_parts_that_would_be_of_different_width_are_refused():
    groups = [Group("a", 4), Group("b", 4), Group("in", 2, frozen="an input"), Group("two", 2, frozen="parts")]
    columns = [Block((Axis((name,), np.arange(4)), Axis(("in",), np.arange(2) + 2 * k))) for k, name in enumerate("ab")]
    spec = PermutationSpec(groups, {"w": columns})
    half = bools(1, 0, 1, 0)
    weight = torch.arange(16.0).view(4, 4)
    both = Slices(spec, {"a": half, "b": ~half}).cut("w", weight)
    assert torch.equal(both, torch.cat([weight[::2, :2], weight[1::2, 2:]], 1))
    with pytest.raises(UnitError, match="'w' that share an axis must keep equally many"):
        Slices(spec, {"a": half}).cut("w", weight)


def test_zeros_are_where_cut_units_send():
    spec = PermutationSpec(GROUPS, spec_of(INNER, parts=2).tensors, reads={"w": [0]})
    cut = units()
    sends = outgoing_axes(spec, {name: name for name in spec.tensors})
    assert sends["heads"] == [("w", 0)] and sends["in"] == [("w", 1)]
    quiet = zeroed("w", torch.ones(2 * HEADS * DIMS, IN), Slices(spec, cut), sends).view(2, DIMS, HEADS, IN)
    alive = torch.from_numpy(cut["dims"] & cut["heads"][:, None]).T
    assert torch.equal(quiet.bool(), alive[None, :, :, None].expand(2, -1, -1, IN))
    assert sends["dims"] == [("w", 0)]


def test_units_that_no_weight_reads_send_through_all_that_makes_them():
    spec = spec_of(OUTER)
    assert outgoing_axes(spec, {"w": "w", "b": "b"})["dims"] == [("w", 0), ("b", 0)]
    with pytest.raises(UnitError, match="must know which axes of weights are read"):
        outgoing_axes(PermutationSpec(GROUPS, spec.tensors), {})
