"""Searches that were interrupted go on as if they had not been, and no run is overwritten."""

import json
import shutil

import pytest
from small_searches import Images, Record, dropout_vit, equal, eval_losses, quick, state, trainer, weights_of
from small_task import KillAt, Killed, Points, arguments, net

from hf_lottery import LotteryTrainer, Mask, Ticket, prunable


def one_of(first, *others):
    """The first value in the default run, the others among the slow tests."""
    return [first, *(pytest.param(value, marks=pytest.mark.slow) for value in others)]


# A level that was rewound to step 2 has four steps.
KILLS = [
    (rewind, level, step)
    for rewind in ("init", "step:2", "learning_rate")
    for level in (0, 2)
    for step in range(1, 5 if (rewind, level) == ("step:2", 2) else 7)
]
# One before the first checkpoint, one after the moment to rewind to, one at the end of a later level.
QUICK_KILLS = [("init", 0, 1), ("step:2", 0, 5), ("learning_rate", 2, 6)]


@pytest.mark.parametrize(
    ("rewind", "level", "step"),
    [kill if kill in QUICK_KILLS else pytest.param(*kill, marks=pytest.mark.slow) for kill in KILLS],
)
def test_killed_at_any_step_and_resumed_is_bit_identical(tmp_path, finished, rewind, level, step):
    folder, expected = finished(rewind).folder, finished(rewind).search
    with pytest.raises(Killed):
        trainer(tmp_path, kill=(level, step), rewind=rewind).train()
    resumed = trainer(tmp_path, model=net(77), rewind=rewind, resume_with_other=["weights"])
    resumed.train(resume_from_checkpoint=True)
    assert resumed.mask == expected.mask
    assert equal(state(resumed.model), state(expected.model))
    assert weights_of(tmp_path / "ticket/rewind.safetensors") == weights_of(folder / "ticket/rewind.safetensors")
    assert eval_losses(resumed) == eval_losses(expected)


@pytest.mark.parametrize("rewind", one_of("step:2", "init", "learning_rate"))
def test_a_checkpoint_cut_off_while_it_was_written_is_passed_over(tmp_path, finished, rewind):
    expected = finished(rewind).search
    with pytest.raises(Killed):
        trainer(tmp_path, kill=(1, 4), rewind=rewind).train()
    last = sorted((tmp_path / "level-01").glob("checkpoint-*"))[-1]
    shutil.copytree(last, tmp_path / "level-01/checkpoint-99")
    (tmp_path / "level-01/checkpoint-99/lottery_checkpoint.json").unlink()
    (tmp_path / "level-01/checkpoint-99/model.safetensors").write_bytes(b"half")
    resumed, record, steps = trainer(tmp_path, rewind=rewind), Record(), 4 if rewind == "step:2" else 6
    resumed.add_callback(record)
    resumed.train(resume_from_checkpoint=True)
    assert len(record.rates) == steps - 2 + 2 * steps  # it went on from checkpoint-2
    assert equal(state(resumed.model), state(expected.model))


@pytest.mark.parametrize("rewind", one_of("learning_rate", "init", "step:2"))
def test_weights_only_checkpoints_restart_the_level(tmp_path, finished, rewind):
    expected = finished(rewind).search
    with pytest.raises(Killed):
        trainer(tmp_path, kill=(1, 4), rewind=rewind, save_only_model=True).train()
    assert list((tmp_path / "level-01").glob("checkpoint-*"))
    resumed = trainer(tmp_path, rewind=rewind)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.mask == expected.mask and equal(state(resumed.model), state(expected.model))


@pytest.mark.parametrize(
    ("rewind", "levels", "kills"),
    [
        ("step:2", 1, [(1, 3)]),
        pytest.param("step:2", 3, [(0, 5), (2, 3)], marks=pytest.mark.slow),
        pytest.param("learning_rate", 3, [(0, 5), (2, 3)], marks=pytest.mark.slow),
    ],
)
def test_a_model_that_is_saved_under_other_names_resumes_too(tmp_path, rewind, levels, kills):
    def run(name, model, kill=None):
        allowed = {"resume_with_other": ["weights"]}  # the stored weights are loaded, under whatever names
        return LotteryTrainer(
            model=model,
            args=arguments(tmp_path / name, rewind=rewind, sparsity=None, levels=levels, **allowed),
            train_dataset=Images(),
            eval_dataset=Images(),
            callbacks=[KillAt(*kill)] if kill else [],
        )

    whole = run("whole", dropout_vit())
    whole.train()
    assert Ticket.from_pretrained(tmp_path / "whole/ticket").model_config.hidden_size == 16
    for kill in kills:
        with pytest.raises(Killed):
            run(f"killed-{kill}", dropout_vit(), kill).train()
        resumed = run(f"killed-{kill}", dropout_vit(9))
        resumed.train(resume_from_checkpoint=True)
        assert resumed.mask == whole.mask and equal(state(resumed.model), state(whole.model))
    again = run("whole", dropout_vit(7))
    again.train(resume_from_checkpoint=True)
    assert equal(state(again.model), state(whole.model))


@pytest.fixture
def copied(tmp_path, finished):
    """The folder of a finished run, to do with as a test likes."""
    return shutil.copytree(finished("init").folder, tmp_path / "run")


def test_finished_levels_and_runs_are_skipped(copied):
    tmp_path = copied
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("level-*/*.safetensors")}
    again, record = trainer(tmp_path, model=net(5), resume_with_other=["weights"]), Record()
    again.add_callback(record)
    output = again.train(resume_from_checkpoint=True)
    assert not record.rates and output.global_step == 6 and len(again.history) == 4
    assert Mask.from_model(prunable(again.model)) == again.mask
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("level-*/*.safetensors")}


def test_a_run_is_never_overwritten(copied):
    tmp_path = copied
    before = (tmp_path / "lottery_state.json").read_text()
    with pytest.raises(FileExistsError, match="must not hold a run already"):
        trainer(tmp_path).train()
    with pytest.raises(ValueError, match=r"settings it began with; received sparsity=0.7 instead of 0.6"):
        trainer(tmp_path, sparsity=0.7).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="learning_rate=0.5 instead of 0.01"):
        trainer(tmp_path, learning_rate=0.5).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="must be resumed from its output_dir"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "level-01/checkpoint-6"))
    assert (tmp_path / "lottery_state.json").read_text() == before


def test_a_run_that_was_killed_in_its_first_level_is_a_run(tmp_path):
    with pytest.raises(Killed):
        trainer(tmp_path, kill=(0, 1)).train()
    with pytest.raises(FileExistsError, match="must not hold a run already"):
        trainer(tmp_path).train()


def test_the_state_file_says_what_is_finished(finished):
    state = json.loads((finished("init").folder / "lottery_state.json").read_text())
    assert len(state["finished"]) == 4 and state["settings"]["score"] == "magnitude"


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The folder of a short finished run, which no test changes."""
    folder = tmp_path_factory.mktemp("short")
    quick(folder, sparsity=0.3).train()
    return folder


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"weight_decay": 0.5}, "weight_decay"),
        ({"adam_beta1": 0.5}, "adam_beta1"),
        ({"adam_epsilon": 1e-3}, "adam_epsilon"),
        ({"include": ["inner"]}, "include"),
    ],
)
def test_every_setting_that_changes_weights_is_compared(short, changes, name):
    with pytest.raises(ValueError, match=f"settings it began with; received {name}="):
        quick(short, sparsity=0.3, **changes).train(resume_from_checkpoint=True)
    again = trainer(short, num_train_epochs=1, sparsity=0.3, logging_steps=7, save_steps=50, disable_tqdm=True)
    again.train(resume_from_checkpoint=True)


def test_settings_of_the_caller_are_compared_too(tmp_path):
    def run(name):
        return LotteryTrainer(
            model=net(),
            args=arguments(tmp_path, num_train_epochs=1, sparsity=0.3),
            train_dataset=Points(),
            settings={"dataset_name": name},
        )

    run("digits").train()
    with pytest.raises(ValueError, match="received dataset_name='letters' instead of 'digits'"):
        run("letters").train(resume_from_checkpoint=True)


def test_levels_without_a_state_are_refused(copied):
    tmp_path = copied
    (tmp_path / "lottery_state.json").unlink()
    with pytest.raises(FileExistsError, match=r"must not hold levels without lottery_state.json; received .*level-00"):
        trainer(tmp_path).train(resume_from_checkpoint=True)
