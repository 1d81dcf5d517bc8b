import copy

import numpy as np
import pytest
import torch
from hand_made import NETWORKS, network, spec_of
from small_tickets import ticket

from hf_lottery import (
    Mask,
    MaskMismatchError,
    MaskSeries,
    Permutation,
    SignedMask,
    Ticket,
    discover,
    keep_sparse,
    permute_,
)
from hf_lottery.structured import UnitMask
from hf_lottery.symmetry import SpecMismatchError


def units_of(spec, groups=None, seed=0):
    """Cut about half of the units of some groups, as many in every row."""
    generator, units = torch.Generator().manual_seed(seed), {}
    for group in spec.free if groups is None else groups:
        *outer, size = spec.entry_shape(group)
        order = torch.rand(*outer, size, generator=generator).argsort(dim=-1)
        units[group] = order < (size + 1) // 2
    return units


def half(name, groups=None, seed=0):
    model, spec, x = network(name)
    return model, spec, x, UnitMask(units_of(spec, groups, seed), spec)


def stays(spec, units, tensor, place):
    """Whether one weight stays, by looking at every unit that it belongs to."""
    for block in spec.tensors[tensor]:
        found = [np.argwhere(axis.positions == at) for axis, at in zip(block.axes, place, strict=True)]
        if all(map(len, found)):
            index = [int(i) for (one, *_) in found for i in one]
            return all(
                bool(units[slot.group][(*(index[parent] for parent in slot.parents), index[number])])
                for number, slot in enumerate(block.slots(spec.groups))
                if slot.group in units
            )
    raise AssertionError(f"{tensor} has no place {place}")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_weight_stays_if_all_of_its_units_stay(name):
    _, spec, _, mask = half(name)
    assert 0 < mask.sparsity < 1 and list(mask) == [n for n in spec.tensors if len(spec.shapes[n]) > 1]
    for tensor, entry in mask.items():
        wanted = [stays(spec, mask.units, tensor, place) for place in np.ndindex(*entry.shape)]
        assert entry.flatten().tolist() == wanted


def test_a_masked_network_computes_what_the_smaller_one_does():
    model, _, x, mask = half("mlp")
    small = copy.deepcopy(model)
    first, second = mask.units["h1"], mask.units["h2"]
    small[0].weight.data, small[0].bias.data = small[0].weight[first], small[0].bias[first]
    small[2].weight.data, small[2].bias.data = small[2].weight[second][:, first], small[2].bias[second]
    small[4].weight.data = small[4].weight[:, second]
    mask.apply_(model)
    torch.testing.assert_close(model(x), small(x))


def test_a_key_value_head_goes_with_its_queries():
    _, spec, _ = network("gqa")
    mask = UnitMask({"kv": torch.tensor([True, False, True])}, spec)
    rows = mask["qkv.weight"].any(dim=1)
    queries, keys, values = rows[:24].view(3, 2, 4), rows[24:36].view(3, 4), rows[36:].view(3, 5)
    for part in (queries, keys, values):
        assert [bool(head.any()) for head in part] == [True, False, True] and part[0].all()
    assert mask["o.weight"].any(dim=0).view(3, 10).any(dim=1).tolist() == [True, False, True]


def test_names_say_what_is_covered():
    _, spec, _ = network("mlp")
    units = {"h1": torch.arange(16) < 4}
    assert list(UnitMask(units, spec)) == ["0.weight", "2.weight"]
    named = UnitMask(units, spec, names=["4.weight", "2.weight", "0.bias"])
    assert list(named) == ["4.weight", "2.weight", "0.bias"] and named["4.weight"].all()
    assert named["0.bias"].tolist() == units["h1"].tolist()
    whole = UnitMask({"h1": torch.ones(16, dtype=torch.bool)}, spec)
    assert (whole.sparsity, whole.unit_sparsity, whole.unit_count, list(whole)) == (0, 0, 16, ["0.weight", "2.weight"])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_permutation_moves_the_units_too(name):
    _, spec, _, mask = half(name)
    moved = spec.random(3)(mask)
    assert isinstance(moved, UnitMask) and moved.units.keys() == mask.units.keys()
    assert dict(moved).keys() == dict(mask).keys()
    again = UnitMask(moved.units, spec)
    assert all(torch.equal(entry, again[tensor]) for tensor, entry in moved.items()) and moved != mask
    back = spec.random(3).inverse()(moved)
    assert all(torch.equal(back.units[group], kept) for group, kept in mask.units.items()) and back == mask


def test_a_permuted_mask_leaves_the_permuted_network_the_function_of_the_masked_one():
    model, spec, x, mask = half("gqa", ["kv", "vd"])
    p = spec.random(1)
    other = copy.deepcopy(model)
    permute_(other, p)
    mask.apply_(model)
    before = model(x)
    p(mask).apply_(other)
    torch.testing.assert_close(other(x), before)


def test_it_is_a_mask_in_every_way():
    model, _, _, mask = half("mlp")
    plain = Mask(dict(mask))
    assert mask == plain and plain == mask and mask.sha256() == plain.sha256()
    assert mask.overlap(plain).iou == 1 and (mask & plain) == plain and (mask | ~mask).sparsity == 0
    assert type(mask & mask) is Mask and type(mask.shuffled(0)) is Mask  # of weights, not of units
    assert MaskSeries([Mask.dense(dict(mask)), mask])[-1] == mask
    assert type(UnitMask.dense(model)) is Mask
    with keep_sparse(model, mask):
        assert model[0].weight[~mask["0.weight"]].eq(0).all()
    assert repr(mask).startswith("UnitMask(14 of 28 units kept in 2 groups, ")
    assert copy.deepcopy(mask).units.keys() == mask.units.keys()


def test_units_are_copied():
    _, spec, _ = network("mlp")
    units = units_of(spec)
    mask = UnitMask(units, spec)
    before = mask.units["h1"].clone()
    units["h1"][:] = True
    assert torch.equal(mask.units["h1"], before)


def test_a_signed_mask_keeps_the_units(tmp_path):
    model, spec, _, mask = half("mlp")
    signed = SignedMask.from_model(model, mask)
    assert signed.mask is mask
    signed.save_pretrained(tmp_path)
    assert SignedMask.from_pretrained(tmp_path) == signed
    loaded = UnitMask.from_pretrained(tmp_path)
    assert loaded == mask and loaded.units.keys() == mask.units.keys()
    moved = SignedMask(spec.random(0)(mask), spec.random(0)(dict(signed)))
    assert isinstance(moved.mask, UnitMask)


def unit_ticket(**fields):
    plain = ticket()
    model = plain.build_model()
    spec = discover(model, {"pixel_values": torch.randn(2, 1, 8, 8)})
    mask = UnitMask(units_of(spec, [next(iter(spec.free))]), spec)
    series = MaskSeries([Mask.dense(dict(mask)), mask]) if fields.get("series") else None
    return Ticket(mask, plain.start, plain.info, plain.model_config, series)


@pytest.mark.parametrize("series", [False, True])
def test_a_ticket_keeps_the_units(tmp_path, series):
    saved = unit_ticket(series=series)
    saved.save_pretrained(tmp_path)
    loaded = Ticket.from_pretrained(tmp_path)
    assert isinstance(loaded.mask, UnitMask) and loaded.mask.spec_fingerprint == saved.mask.spec_fingerprint
    assert all(torch.equal(loaded.mask.units[group], kept) for group, kept in saved.mask.units.items())
    assert loaded.mask == saved.mask == Mask.from_pretrained(tmp_path) == UnitMask.from_pretrained(tmp_path)
    assert type(Mask.from_pretrained(tmp_path)) is Mask
    loaded.save_pretrained(tmp_path / "again")
    assert isinstance(Ticket.from_pretrained(tmp_path / "again").mask, UnitMask)
    assert not isinstance(plain_again(tmp_path, saved).mask, UnitMask)


def plain_again(tmp_path, saved):
    Ticket(Mask(dict(saved.mask)), saved.start, saved.info, saved.model_config).save_pretrained(tmp_path / "plain")
    return Ticket.from_pretrained(tmp_path / "plain")


def test_the_hub_keeps_the_units(hub):
    _, spec, _, mask = half("gqa")
    mask.push_to_hub("alice/units")
    loaded = UnitMask.from_pretrained("alice/units")
    assert loaded == mask == Mask.from_pretrained("alice/units")
    assert all(torch.equal(loaded.units[group], kept) for group, kept in mask.units.items())
    moved = spec.random(0)(loaded)
    assert isinstance(moved, UnitMask) and moved == spec.random(0)(mask)


def test_units_of_another_spec_are_refused():
    _, spec, _, mask = half("mlp")
    other = spec_of({"in": (2, (), "input"), "h1": 3}, {"0.weight": ("h1", "in")})
    with pytest.raises(SpecMismatchError, match="a unit mask must be of the given spec"):
        mask.check_spec(other)
    mask.check_spec(spec.freeze("h2", "for a test"))  # what is frozen does not count
    like = spec_of({"a": (6, (), "input"), "h": 16}, {"0.weight": ("h", "a")})
    part = UnitMask({"h1": mask.units["h1"]}, spec, names=["0.weight"])
    with pytest.raises(SpecMismatchError, match="received one of spec"):
        Permutation(like, {"h": np.roll(np.arange(16), 1)})(part)


BAD = {
    "no group": ({"h9": torch.ones(3, dtype=torch.bool)}, MaskMismatchError, "must name groups of the spec.*'h9'"),
    "frozen": ({"in": torch.ones(6, dtype=torch.bool)}, MaskMismatchError, "'in' must stay, as it is frozen: input"),
    "shape": ({"h1": torch.ones(3, dtype=torch.bool)}, MaskMismatchError, r"the shape \[16\].*received \[3\]"),
    "type": ({"h1": torch.ones(16)}, TypeError, "must be a bool tensor, True keeps; received torch.float32"),
    "list": ({"h1": [True] * 16}, TypeError, "received list"),
    "nothing left": ({"h1": torch.zeros(16, dtype=torch.bool)}, ValueError, "at least one unit of 'h1' must stay"),
    "nothing": ({}, MaskMismatchError, "must cover a tensor with two or more axes; received 0 groups"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_units_are_refused(case):
    units, error, message = BAD[case]
    _, spec, _ = network("mlp")
    with pytest.raises(error, match=message):
        UnitMask(units, spec)


def test_rows_that_keep_different_numbers_are_refused():
    _, spec, _ = network("gqa")
    kept = torch.ones(3, 5, dtype=torch.bool)
    kept[1, 0] = False
    with pytest.raises(ValueError, match=r"as many units of 'vd' must stay for every index of kv.*received \[4, 5\]"):
        UnitMask({"vd": kept}, spec)
    with pytest.raises(MaskMismatchError, match="names must be of tensors of the spec; received 'fc'"):
        UnitMask({"kv": torch.ones(3, dtype=torch.bool)}, spec, names=["fc"])
