"""Masks, snapshots, norms and searches on shards: what they are on whole weights, on one process and on two."""

import pytest
import sharded_training
from process_group import run_on
from sharded_cases import alone

slow = pytest.mark.slow
TRUE = ("columns", "loaded_state", "masks", "snapshots", "tickets", "beside_whole_ones")
NEAR_ZERO = ("training", "norm_gradients")
ERRORS = [
    (
        "sharded_too_late",
        "must still have the parameters that the mask was bound to; received one whose 'block.0.weight' was replaced",
    ),
    ("unstorable", "'odd' must be of a type that safetensors stores; received torch.complex128"),
    ("norms_written", "norm parameters must not be written while they are interpolated; 'block.1.weight' was"),
]
ERRORS_OF_SEVERAL = [
    *ERRORS,
    ("refused", "must lie in blocks, as with fully_shard; received (Partial(sum),). "),
    ("refused", "all scores must be sharded over the same mesh; received 2 meshes."),
    ("refused", "remove must be from 0 to 8, the number of competing weights; received 99."),
]


@pytest.fixture(scope="module")
def group():
    with alone():
        yield


@pytest.fixture
def on_one(group):
    """Run a check on a group of this process alone."""
    return lambda check: getattr(sharded_training, check)(sharded_training.Twins(0, 1))


@pytest.fixture(scope="module")
def found():
    """What each check found on each of two processes."""
    ranks = run_on(2, sharded_training.run_all, 2)
    return {name: [rank[name] for rank in ranks] for name in ranks[0]}


one_process = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")


@one_process
@pytest.mark.filterwarnings("ignore:1 frozen parameters are covered")
@pytest.mark.parametrize("check", TRUE)
def test_shards_of_one_process_are_as_whole_weights(on_one, check):
    assert on_one(check) is True


@one_process
@pytest.mark.parametrize("check", NEAR_ZERO)
def test_a_network_sharded_on_one_process_trains_like_a_whole_one(on_one, check):
    assert on_one(check) == pytest.approx(0, abs=1e-5)


@one_process
def test_norm_path_and_searches_on_one_process(on_one):
    apart, back = on_one("norms_on_a_path")
    assert apart == pytest.approx(0, abs=1e-5) and back
    assert on_one("searches") == []


@one_process
@pytest.mark.parametrize(("check", "message"), ERRORS)
def test_errors_on_one_process(on_one, check, message):
    assert message in on_one(check)


@slow
@pytest.mark.parametrize("check", [*TRUE, "replicas"])
def test_shards_are_as_whole_weights(found, check):
    assert found[check] == [True, True]


@slow
def test_scores_that_differ_between_processes_give_one_mask(found):
    assert found["drawn_apart"][0] == found["drawn_apart"][1]


@slow
@pytest.mark.parametrize("check", NEAR_ZERO)
def test_a_sharded_network_trains_like_a_whole_one(found, check):
    assert found[check] == pytest.approx([0, 0], abs=1e-5)


@slow
def test_norm_path_leaves_the_network_as_it_was(found):
    for apart, back in found["norms_on_a_path"]:
        assert apart == pytest.approx(0, abs=1e-5) and back


@slow
def test_searches_find_the_masks_of_whole_weights(found):
    assert found["searches"] == [[], []]


@slow
@pytest.mark.parametrize(("check", "message"), ERRORS_OF_SEVERAL)
def test_every_process_hears_of_an_error(found, check, message):
    assert all(message in error for error in found[check])
