"""What each row trains: mask, signs and norm parameters of the target, from what the searches left."""

import json
from dataclasses import replace

import pytest
import torch

from hf_lottery import Mask, SignedMask, Snapshot, Ticket, norm_parameters
from hf_lottery.hf.ladder.cells import Cell
from hf_lottery.hf.ladder.rows import ROWS, Reused, Target
from hf_lottery.hf.tasks.models import build_model


@pytest.fixture
def ladder(computed):
    return computed.ladder


@pytest.fixture
def target(ladder):
    """The network of seed 1 where its rows start; the source is that of seed 0."""
    network = build_model(ladder.model_args, ladder.data, 1)
    Ticket.from_pretrained(ladder.searched("imp", 1) / "ticket").start.restore_(network)
    folders = {"searched": ladder.searched, "started": lambda seed: Snapshot.load(ladder.start_file(seed))}
    return Target(network, 1, 0, ladder.level, **folders, matching=None, norms=norm_parameters, spec=None)


def reuse(target, row):
    """What a row reuses, and whether the network is as it was."""
    before = {name: weight.clone() for name, weight in target.network.state_dict().items()}
    found = ROWS[row].reuse(target)
    after = target.network.state_dict()
    return found, all(torch.equal(weight, after[name]) for name, weight in before.items())


def mask_of(ladder, search, seed):
    return Mask.from_pretrained(ladder.searched(search, seed) / "ticket")


@pytest.mark.parametrize(
    ("row", "search", "seed"),
    [("lth", "imp", 1), ("naive", "imp", 0), ("lrr_mask", "lrr", 0), ("aws_mask", "aws", 0)],
)
def test_a_mask_alone_leaves_the_network(ladder, target, row, search, seed):
    found, unchanged = reuse(target, row)
    assert unchanged and found.mask == mask_of(ladder, search, seed) and found.signed is found.match is None


def test_no_mask_and_a_shuffled_one(ladder, target):
    assert reuse(target, "dense") == (Reused(), True)
    found, unchanged = reuse(target, "random")
    naive = mask_of(ladder, "imp", 0)
    assert unchanged and found.mask != naive and found.mask.layer_sparsities() == naive.layer_sparsities()


def test_the_largest_weights_are_those_of_the_target_where_rows_start(ladder, target):
    found, unchanged = reuse(target, "magnitude")
    naive = mask_of(ladder, "imp", 0)
    assert unchanged and found.mask != naive and found.mask.layer_sparsities() == naive.layer_sparsities()
    assert len({*naive.layer_sparsities().values()}) > 1  # it is not only the sparsity of the whole that is kept
    for name, kept in found.mask.items():
        size = target.network.get_parameter(name).abs()
        assert kept.all() or size[kept].min() >= size[~kept].max()


@pytest.mark.parametrize("search", ["lrr", "aws"])
def test_an_own_subnetwork_is_that_of_the_search(ladder, target, search):
    found, _ = reuse(target, search)
    ticket = Ticket.from_pretrained(ladder.searched(search, 1) / "ticket")
    assert found.mask == ticket.mask and found.signed is None
    for name, weight in target.network.state_dict().items():
        assert torch.equal(weight, ticket.start.tensors[name])


@pytest.mark.parametrize(
    ("row", "search"),
    [
        ("lrr_signs", "lrr"), ("lrr_signs_norms", "lrr"), ("aws_signs", "aws"), ("random_signs", "aws"),
        ("shuffled_signs", "aws"), ("dense_signs", "aws"),
    ],
)  # fmt: skip
def test_signs_are_given_to_the_target_with_its_own_magnitudes(ladder, target, row, search):
    before = {name: weight.detach().abs().clone() for name, weight in target.network.named_parameters()}
    found, _ = reuse(target, row)
    assert found.mask == found.signed.mask == mask_of(ladder, search, 0)
    assert found.signed.agreement(target.network).overall == 1
    for name, kept in found.mask.items():
        weight = target.network.get_parameter(name)
        signed = kept & (found.signed[name] != 0)
        assert torch.equal(weight[signed].abs(), before[name][signed]) and not weight[~signed].any()


def test_the_controls_of_signs_differ_in_their_signs_alone(ladder, target):
    signs = {row: reuse(target, row)[0].signed for row in ("aws_signs", "random_signs", "shuffled_signs")}
    found = SignedMask.from_pretrained(ladder.searched("aws", 0) / "signed")
    assert signs["aws_signs"] == found
    for row in ("random_signs", "shuffled_signs"):
        assert 0.3 < found.agreement(signs[row]).overall < 0.8
    for name, sign in signs["shuffled_signs"].items():
        assert sign.sum() == found[name].sum()  # as many of each kind


def test_dense_signs_are_those_of_the_dense_network(ladder, target):
    """With the dense network of another seed, as training has flipped no sign of the source's own."""
    swapped = replace(target, searched=lambda kind, seed: ladder.searched(kind, 1 - seed if kind == "imp" else seed))
    found, _ = reuse(swapped, "dense_signs")
    assert found.signed == SignedMask.from_model(target.dense(1), mask_of(ladder, "aws", 0))
    assert 0.3 < found.signed.agreement(target.signs("aws")).overall < 0.8


def test_norms_are_the_trained_ones_only_where_the_row_says_so(ladder, target):
    start = {name: norm.clone() for name, norm in norm_parameters(target.network).items()}
    reuse(target, "lrr_signs")
    assert all(torch.equal(norm, start[name]) for name, norm in norm_parameters(target.network).items())
    reuse(target, "lrr_signs_norms")
    trained = Ticket.from_pretrained(ladder.searched("lrr", 0) / "ticket").start.tensors
    norms = norm_parameters(target.network)
    assert norms and all(torch.equal(norm, trained[name]) for name, norm in norms.items())
    assert any(not torch.equal(norm, start[name]) for name, norm in norms.items())


def test_networks_are_matched_after_training_or_where_rows_start(target):
    pairs = {}

    def matching(how, source, aim):
        pairs[how] = source, aim
        raise InterruptedError

    watched = replace(target, matching=matching)
    for row in ("permuted_weight", "permuted_activation", "permuted_early", "permuted_learned_residual"):
        with pytest.raises(InterruptedError):
            ROWS[row].reuse(watched)
    assert list(pairs) == ["weight", "activation", "early", "learned_residual"]
    with pytest.raises(InterruptedError):
        ROWS["permuted_signs"].reuse(watched)
    pairs["signs"] = pairs.pop("weight")
    for how, pair in pairs.items():
        for seed, network in enumerate(pair):
            own = watched.early(seed) if how == "early" else watched.dense(seed)
            if how == "signs":
                own = watched.trained("aws", seed, level=0)
            assert all(torch.equal(x, y) for x, y in zip(network.parameters(), own.parameters(), strict=True))
            assert all(network is not other for other in (target.network, *pair[:seed]))


def test_results_of_cells_say_what_was_measured(ladder):
    cells = {str(cell): ladder.result(cell) for cell in ladder.cells}
    assert all(result["cell"] == name for name, result in cells.items())
    rows = {name: result for name, result in cells.items() if not name.startswith("search_")}
    assert len({result["steps"] for result in rows.values()}) == 1  # the same budget for every row
    assert cells["lth-0"]["overlap"] == 1 > cells["permuted_activation-0"]["overlap"] > 0
    assert cells["naive-0"].keys() >= {"barrier", "sparsity"} and "correlation" not in cells["naive-0"]
    match = cells["permuted_activation-0"]["match"]
    assert cells["permuted_activation-0"]["correlation"] == pytest.approx(
        sum(matched for _, matched in match.values()) / len(match)
    )
    assert all(identity < matched for identity, matched in match.values())
    assert cells["lrr_signs_norms-1"]["kept_signs"] > 0.9  # a few steps flip few signs
    assert 0 < cells["permuted_activation-0"]["match_seconds"] < cells["permuted_activation-0"]["cpu_seconds"]
    measured = {name for name, result in rows.items() if "dense_barrier" in result}
    assert measured == {f"{row}-{seed}" for row in ("naive", "permuted_activation") for seed in (0, 1)}
    assert {name for name, result in cells.items() if "initial_norms" in result} == {"search_lrr-0", "search_lrr-1"}
    assert not ladder.solution(Cell("naive", 0)).exists() and ladder.solution(Cell("lrr", 0)).exists()
    assert json.loads(ladder.file(Cell("lth", 0)).read_text())["sparsity"] == pytest.approx(0.3, abs=1e-3)
