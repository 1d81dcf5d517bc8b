"""Layouts: the algebra that ties, splits, cuts and joins the parts of axes."""

from hf_lottery.symmetry.layout import child_of, concatenate, cut, regroup, unify
from hf_lottery.symmetry.nodes import atom, factors, find, freeze, frozen, is_frozen, size_of, wild


def sizes(axis):
    return [node.size for node in factors(axis)]


# The algebra.


def test_unify_ties_two_axes_for_good():
    a, b, c = atom(6), atom(6), atom(6)
    unify(a, b)
    unify(b, c)
    assert find(a[0]) is find(c[0])


def test_unify_passes_a_freeze_on():
    a, b = atom(6), atom(6)
    freeze(a, "reason")
    unify(b, a)
    assert is_frozen(b[0]) and find(b[0]).frozen == "reason"


def test_unify_splits_the_larger():
    a, b, c = atom(6), atom(2), atom(3)
    unify(a, (*b, *c))
    assert sizes(a) == [2, 3] and factors(a) == [find(b[0]), find(c[0])]


def test_what_is_split_is_split_everywhere():
    a, b = atom(12), atom(12)
    unify(a, b)
    unify(a, (*atom(3), *atom(4)))
    unify(b, (*atom(3), *atom(2), *atom(2)))
    assert sizes(a) == sizes(b) == [3, 2, 2]


def test_axes_that_do_not_align_freeze():
    a, b = (*atom(2), *atom(3)), (*atom(3), *atom(2))
    known = unify(a, b)
    assert all(map(is_frozen, (*a, *b, *known))) and size_of(known) == 6


def test_what_is_constant_takes_on_the_other_axis():
    a = atom(6)
    assert unify(wild(6), a) == a and unify(a, wild(6)) == a and not is_frozen(a[0])
    b = (*atom(2), *atom(3))
    assert unify(wild(6), b) == b


def test_cut_makes_a_sum_and_cuts_it_again():
    a = atom(10)
    first, _ = cut(a, 2, 6)
    assert sizes(first) == [4] and [part.size for part in find(a[0]).parts] == [2, 4, 4]
    second, _ = cut(a, 2, 4)
    assert [part.size for part in find(a[0]).parts] == [2, 2, 2, 4] and sizes(second) == [2]


def test_cut_between_the_inner_parts_of_a_product_cuts_the_outer():
    a = (*atom(6), *atom(4))
    block, _ = cut(a, 8, 24)
    assert sizes(block) == [4, 4] and [part.size for part in find(a[0]).parts] == [2, 4]


def test_axes_that_are_cut_at_different_places():
    a, b = atom(10), atom(10)
    cut(a, 0, 3)
    cut(b, 0, 6)
    unify(a, b)
    assert [part.size for part in find(a[0]).parts] == [3, 3, 4] and find(a[0]) is find(b[0])


def test_concatenate_keeps_its_pieces():
    a, b = atom(3), (*atom(2), *atom(2))
    whole = concatenate([a, b])
    assert size_of(whole) == 7
    block, _ = cut(whole, 3, 7)
    assert factors(block) == list(b)
    block, _ = cut(concatenate([whole, a]), 7, 10)
    assert factors(block) == list(a)


def test_frozen_pieces_make_one_frozen_axis():
    (joined,) = concatenate([frozen(3, "an order"), frozen(1, "one"), wild(2)])
    assert (joined.kind, joined.size, joined.frozen, joined.parts) == ("atom", 6, "an order", [])
    (free,) = concatenate([frozen(3, "an order"), atom(2)])
    assert free.kind == "sum" and [part.frozen for part in free.parts] == ["an order", None]
    (constant,) = concatenate([wild(3), wild(2)])
    assert constant.frozen is None


def test_a_constant_piece_takes_part_in_ties():
    """Pitfall: the constant part of one sum must not hide what the other has there."""
    a, b = atom(3), atom(3)
    left = concatenate([wild(3), atom(4)])
    unify(concatenate([a, atom(4)]), left)
    unify(concatenate([b, atom(4)]), left)
    assert find(a[0]) is find(b[0])


def test_regroup_deals_out_factors():
    a, b = atom(12), atom(5)
    assert [sizes(axis) for axis in regroup([a, b], [3, 4, 5])] == [[3], [4], [5]]
    assert [sizes(axis) for axis in regroup([a, b], [60])] == [[3, 4, 5]]
    assert regroup([a, b], [4, 15]) is None


def test_children_stand_for_an_axis_in_one_block():
    whole, inner = atom(6), atom(4)
    cut(whole, 0, 3)
    (sum_,), offset = whole, 0
    child = child_of(inner[0], sum_, offset)
    assert child_of(inner[0], sum_, offset) is child and child is not inner[0]
    assert child_of(inner[0], sum_, 3) is not child
    unify(inner, (*atom(2), *atom(2)))
    assert sizes((child,)) == [2, 2]  # structure is passed on
    freeze(inner, "reason")
    assert is_frozen(child)  # and so is a freeze


def test_children_freeze_with_an_axis_that_is_tied_to_a_frozen_one():
    whole, inner = atom(6), atom(4)
    cut(whole, 0, 3)
    child = child_of(inner[0], whole[0], 0)
    unify(inner, frozen(4, "reason"))
    assert is_frozen(child)


# Shuffled channels: rows of a concatenation.


def test_a_concatenation_of_equal_parts_is_a_product_of_rows():
    a, b = atom(4), atom(4)
    rows, common_ = regroup([concatenate([a, b])], [2, 4])
    assert (sizes(rows), sizes(common_)) == ([2], [4])
    assert [find(child_of(common_[0], rows[0], at)) for at in (0, 1)] == [find(a[0]), find(b[0])]
    assert regroup([concatenate([atom(3), atom(5)])], [2, 4]) is None  # rows that begin inside a part


def test_a_cut_may_end_inside_a_row():
    a, b = atom(5), atom(5)
    rows, inner = regroup([concatenate([a, b])], [2, 5])
    block, _ = cut((*inner, *rows), 0, 5)  # x0 y0 x1 y1 x2
    assert size_of(block) == 5 and [part.size for part in find(block[0]).parts] == [4, 1]
    last, _ = cut(a, 2, 3)
    assert factors(last) == factors([find(block[0]).parts[1]])  # x2 is a part of its own, also in a


def test_a_sum_is_tied_to_a_product_block_by_block():
    a, b, product = atom(4), atom(6), (*atom(5), *atom(2))
    known = unify(concatenate([a, b]), product)
    assert size_of(known) == 10 and not any(map(is_frozen, (*a, *b, *product)))
    assert sizes(a) == [2, 2] and sizes(b) == [3, 2]


def test_blocks_of_several_parts_keep_what_stands_for_other_axes():
    """Pitfall: what stands in the second part is not what stands in the first."""
    whole, other = atom(6), atom(3)
    (_, first), (_, second) = cut(whole, 0, 2), cut(whole, 2, 4)
    one, two = first(other[0]), second(other[0])
    block, both = cut(whole, 0, 4)
    base = both(other[0])
    assert [find(child_of(base[0], block[0], at)) for at in (0, 2)] == [find(one[0]), find(two[0])]


def test_a_node_with_children_in_two_sums_that_turn_out_to_be_one():
    """Pitfall: both are its child in that block, and must be tied."""
    first, second, other = atom(4), atom(4), atom(3)
    children = [child_of(other[0], cut(axis, 1, 4) and axis[0], 1) for axis in (first, second)]
    unify(first, second)
    assert find(children[0]) is find(children[1])
