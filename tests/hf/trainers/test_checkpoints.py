"""A training is resumed from whole checkpoints only, and takes the steps that are left."""

import shutil

import pytest
from small_searches import Record, equal, mask_for, quick, state
from small_task import Points, arguments, net
from transformers import Trainer

from hf_lottery import SparseTrainer
from hf_lottery.hf.trainers.checkpoints import RECORD_NAME, checkpoints_in, read_place
from hf_lottery.storage.checksums import DamagedFileError


def sparse(folder, *, kind=SparseTrainer, **changes):
    settings = {"save_steps": 2, "max_steps": 5, "lr_scheduler_type": "constant"} | changes
    own = {"mask": mask_for(net())} if kind is SparseTrainer else {}
    return kind(net(), arguments(folder, **settings), train_dataset=Points(), **own)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a training of five steps in epochs of three, and its weights."""
    folder = tmp_path_factory.mktemp("trained") / "level-09"
    ours = sparse(folder)
    ours.train()
    return folder, state(ours.model)


@pytest.fixture
def copied(tmp_path, trained):
    return shutil.copytree(trained[0], tmp_path / "level-09")


def resumed(folder, given=True, **changes):
    ours, record = sparse(folder, **changes), Record()
    ours.add_callback(record)
    ours.train(resume_from_checkpoint=given)
    return ours, len(record.rates)


def test_checkpoints_say_where_training_stood(trained):
    places = {path.name: read_place(path) for path in checkpoints_in(trained[0])}
    assert [(name, p.epoch, p.steps, p.training_stops) for name, p in places.items()] == [
        ("checkpoint-5", 1, 2, True),
        ("checkpoint-4", 1, 1, False),
        ("checkpoint-2", 0, 2, False),
    ]


@pytest.mark.parametrize(("given", "steps"), [(True, 0), ("checkpoint-4", 1), ("checkpoint-2", 3)])
def test_only_the_steps_that_are_left_are_trained(copied, trained, given, steps):
    ours, found = resumed(copied, given if given is True else str(copied / given))
    assert found == steps and ours.state.global_step == 5 and equal(state(ours.model), trained[1])


def test_a_longer_training_goes_on(copied):
    ours, steps = resumed(copied, max_steps=7)
    assert (ours.state.global_step, steps) == (7, 2)


@pytest.mark.parametrize(("file", "steps"), [("optimizer.pt", 1), (RECORD_NAME, 1)])
def test_a_damaged_checkpoint_is_passed_over_or_refused(copied, trained, caplog, file, steps):
    (copied / "checkpoint-5" / file).unlink()
    ours, found = resumed(copied)
    assert found == steps and equal(state(ours.model), trained[1])
    assert "checkpoint-5 is passed over, and training goes on from an older checkpoint" in caplog.text
    assert f"checkpoint-5/{file} must be as it was written; received no such file" in caplog.text


def test_a_damaged_checkpoint_that_was_asked_for_is_refused(copied):
    (copied / "checkpoint-4/scheduler.pt").write_bytes(b"")
    with pytest.raises(DamagedFileError, match="scheduler.pt must be as it was written; received other bytes"):
        resumed(copied, str(copied / "checkpoint-4"))
    for checkpoint in checkpoints_in(copied):
        (checkpoint / "scheduler.pt").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="must be a whole checkpoint to resume from; received .*, with 3 that are cut"):
        resumed(copied)


def test_a_checkpoint_of_a_plain_trainer_goes_on_where_it_is_complete(tmp_path, caplog):
    folder = tmp_path / "level-09"
    plain = sparse(folder, kind=Trainer)
    plain.train()
    ours, steps = resumed(folder, str(folder / "checkpoint-5"))
    assert (ours.state.global_step, steps) == (5, 0)
    assert "checkpoint-5 has no checksums, so damage to its files would not be noticed" in caplog.text
    ours, steps = resumed(folder, str(folder / "checkpoint-4"))
    assert (ours.state.global_step, steps) == (5, 1)
    (folder / "checkpoint-4/rng_state.pth").unlink()
    with pytest.raises(DamagedFileError, match="must hold all that training goes on from; received .* without rng_st"):
        resumed(folder, str(folder / "checkpoint-4"))


def test_a_search_whose_best_model_must_have_been_saved_keeps_its_saves(tmp_path):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps"}
    quick(tmp_path, save_steps=1, **best).train()
    with pytest.raises(ValueError, match="settings it began with; received save_steps=3 instead of 1"):
        quick(tmp_path, save_steps=3, **best).train(resume_from_checkpoint=True)


def test_a_search_does_not_end_levels_early_on_sigterm(tmp_path):
    with pytest.raises(ValueError, match="enable_jit_checkpoint must be off"):
        quick(tmp_path, enable_jit_checkpoint=True)
