"""Masks, snapshots, norms and searches on the shards of two processes: what they are on whole weights."""

import pytest
import sharded_training
from process_group import run_on


@pytest.fixture(scope="module")
def found():
    """What each check found on each of two processes."""
    ranks = run_on(2, sharded_training.run_all, 2)
    return {name: [rank[name] for rank in ranks] for name in ranks[0]}


@pytest.mark.parametrize(
    "check", ["columns", "loaded_state", "masks", "snapshots", "tickets", "beside_whole_ones", "replicas"]
)
def test_shards_are_as_whole_weights(found, check):
    assert found[check] == [True, True]


def test_scores_that_differ_between_processes_give_one_mask(found):
    assert found["drawn_apart"][0] == found["drawn_apart"][1]


def test_a_sharded_network_trains_like_a_whole_one(found):
    assert found["training"] == pytest.approx([0, 0], abs=1e-5)


def test_gradients_of_interpolated_norms(found):
    assert found["norm_gradients"] == pytest.approx([0, 0], abs=1e-5)


def test_norm_path_leaves_the_network_as_it_was(found):
    for apart, back in found["norms_on_a_path"]:
        assert apart == pytest.approx(0, abs=1e-5) and back


def test_searches_find_the_masks_of_whole_weights(found):
    assert found["searches"] == [[], []]


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ("sharded_too_late", "must be held on the parameters that the model has; received a model whose 'block.0.weig"),
        ("unstorable", "'odd' must be of a type that safetensors stores; received torch.complex128"),
        ("refused", "must lie in blocks, as fully_shard lays it; received (Partial(sum),). "),
        ("refused", "all scores must be sharded over the same mesh; received 2 meshes."),
        ("refused", "remove must be from 0 to 8, the competing weights; received 99."),
        ("norms_written", "norm parameters must not be written while they are interpolated; 'block.1.weight' was"),
    ],
)
def test_every_process_hears_of_an_error(found, check, message):
    assert all(message in error for error in found[check])
