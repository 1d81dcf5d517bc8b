import pytest
import torch
from torch import nn

from hf_lottery import Mask, MaskMismatchError


def mask_of(*rows: str, name: str = "w") -> Mask:
    return Mask({name: torch.tensor([[cell == "1" for cell in row] for row in rows])})


def test_mask_counts():
    mask = Mask({"a": torch.tensor([True, False, False, False]), "b": torch.ones(2, 2, dtype=torch.bool)})
    assert (mask.weights, mask.kept, mask.sparsity, mask.density) == (8, 5, 3 / 8, 5 / 8)
    assert mask.layer_sparsities() == {"a": 0.75, "b": 0.0}
    assert list(mask) == ["a", "b"] and len(mask) == 2


def test_mask_clones_what_it_is_given():
    entry = torch.ones(3, dtype=torch.bool)
    mask = Mask({"a": entry})
    entry[0] = False
    assert mask.sparsity == 0.0


@pytest.mark.parametrize("entry", [torch.ones(2), torch.ones(2, dtype=torch.uint8), [True, False]])
def test_mask_refuses_other_types(entry):
    with pytest.raises(TypeError, match=r"the mask of 'a' must be a bool tensor; received (torch\.|list)"):
        Mask({"a": entry})


@pytest.mark.parametrize("entries", [{}, {"a": torch.ones(0, dtype=torch.bool)}])
def test_mask_refuses_nothing(entries):
    with pytest.raises(ValueError, match=f"must cover at least one weight; received {len(entries)} entries"):
        Mask(entries)


def test_set_algebra():
    a, b = mask_of("1100"), mask_of("1010")
    assert a & b == mask_of("1000")
    assert a | b == mask_of("1110")
    assert ~a == mask_of("0011")
    assert ~(a & b) == ~a | ~b


def test_equality_is_by_value_and_name():
    assert mask_of("10") == mask_of("10")
    assert mask_of("10") != mask_of("01")
    assert mask_of("10") != mask_of("10", name="v")
    assert mask_of("10") != mask_of("100")
    assert mask_of("10") != "10"


@pytest.mark.parametrize(
    "other", [mask_of("10", name="v"), mask_of("100"), Mask({"w": mask_of("10")["w"], "v": mask_of("10")["w"]})]
)
def test_algebra_refuses_another_structure(other):
    with pytest.raises(MaskMismatchError, match="'w'|'v'"):
        mask_of("10") & other
    with pytest.raises(MaskMismatchError):
        mask_of("10").overlap(other)


def test_algebra_refuses_what_is_no_mask():
    with pytest.raises(TypeError, match="unsupported operand"):
        mask_of("10") & {"w": torch.ones(1, 2, dtype=torch.bool)}


def test_overlap_with_itself_and_its_complement():
    mask = mask_of("1100")
    assert mask.overlap(mask).iou == 1.0
    assert mask.overlap(~mask).iou == 0.0
    # two halves of four weights: expected intersection 1, expected union 3
    assert mask.overlap(~mask).chance == pytest.approx(1 / 3)
    # two of four and one of four: expected intersection 1/2, expected union 5/2
    assert mask.overlap(mask_of("1000")) == (0.5, 0.2)


def test_an_overlap_prints_in_a_few_digits():
    found = mask_of("1100").overlap(mask_of("0110"))
    assert repr(found) == "Overlap(iou 0.3333, by chance 0.3333)" and found.iou == 1 / 3


def test_overlap_of_masks_that_keep_nothing():
    empty = Mask({"w": torch.zeros(4, dtype=torch.bool), "none": torch.zeros(0, 3, dtype=torch.bool)})
    assert empty.overlap(empty) == (1.0, 1.0)
    assert empty.overlap(~empty) == (0.0, 0.0)


def test_overlap_chance_is_what_shuffling_gives():
    generator = torch.Generator().manual_seed(0)
    mask = Mask(
        {"a": torch.rand(300, 100, generator=generator) > 0.8, "b": torch.rand(5000, generator=generator) > 0.3}
    )
    assert mask.overlap(mask.shuffled(1)).iou == pytest.approx(mask.overlap(mask).chance, abs=0.01)


def test_shuffled_keeps_layer_sparsities_and_repeats():
    mask = Mask({"a": torch.arange(100) < 30, "b": torch.arange(50).view(5, 10) < 40})
    assert mask.shuffled(3).layer_sparsities() == mask.layer_sparsities()
    assert mask.shuffled(3) == mask.shuffled(3) != mask.shuffled(4)
    assert mask.shuffled(3) != mask


def test_dense_and_from_model():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    with torch.no_grad():
        model[0].weight[0, 0] = 0
    assert Mask.dense(model).sparsity == 0.0
    assert list(Mask.from_model(model)) == ["0.weight"]
    assert Mask.from_model(model)["0.weight"].tolist() == [[False, True, True], [True, True, True]]
    assert Mask.from_model({"0.weight": model[0].weight}) == Mask.from_model(model)


def test_apply_zeroes_exactly_the_pruned():
    model = nn.Linear(4, 1, bias=False)
    before = model.weight.detach().clone()
    mask_of("1001", name="weight").apply_(model)
    assert model.weight[0].tolist() == [before[0, 0].item(), 0.0, 0.0, before[0, 3].item()]
    assert not torch.signbit(model.weight[0, 1:3]).any()


def test_check_fits_names_near_misses():
    with pytest.raises(MaskMismatchError, match=r"'weigth' must name a parameter.*Near names: weight"):
        mask_of("10", name="weigth").check_fits(nn.Linear(2, 1))
    with pytest.raises(MaskMismatchError, match=r"received no such name\. It is a mask for another model\."):
        mask_of("10", name="other").check_fits(nn.Linear(2, 1))
    for rows, shape in ((["100"], r"\[1, 3\]"), (["1", "0"], r"\[2, 1\]")):
        with pytest.raises(MaskMismatchError, match=rf"'weight' must .* shape \[1, 2\]; received {shape}"):
            mask_of(*rows, name="weight").check_fits(nn.Linear(2, 1))


def test_a_mask_that_does_not_fit_changes_nothing():
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
    before = [p.clone() for p in model.parameters()]
    mask = Mask({"0.weight": torch.zeros(1, 2, dtype=torch.bool), "9.weight": torch.zeros(1, 1, dtype=torch.bool)})
    with pytest.raises(MaskMismatchError, match=r"9\.weight"):
        mask.apply_(model)
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_names_are_plain_under_wrappers():
    model = nn.Sequential(nn.Linear(2, 1))
    mask = Mask.dense(model)
    mask.check_fits(torch.compile(model))
    mask.check_fits(nn.DataParallel(model))
    assert list(Mask.dense(torch.compile(model))) == list(mask)


def test_tied_weight_fits_under_both_names():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    assert list(Mask.dense(model)) == ["0.weight"]
    Mask({"1.weight": torch.ones(2, 2, dtype=torch.bool)}).check_fits(model)


def test_repr_says_the_sparsity():
    assert repr(mask_of("1000")) == "Mask(1 parameters, 1 of 4 weights kept, sparsity 0.7500)"


def test_a_parameter_without_elements_has_sparsity_zero():
    empty = torch.zeros(0, 3, dtype=torch.bool)
    assert Mask({"a": torch.ones(2, dtype=torch.bool), "e": empty}).layer_sparsities() == {"a": 0.0, "e": 0.0}


def test_tensors_are_copied_unless_they_are_handed_over():
    entry, other = torch.tensor([True, False]), torch.tensor([[True, False], [True, True]]).T
    assert Mask({"a": entry})["a"].data_ptr() != entry.data_ptr()
    mask = Mask({"a": entry, "b": other}, copy=False)
    assert mask["a"].data_ptr() == entry.data_ptr()
    assert mask["b"].is_contiguous() and torch.equal(mask["b"], other)
