"""What a search says: how to go on, where it goes on, that it is finished, and what it cannot begin with."""

import pytest
import torch
from small_searches import quick, trainer
from small_task import KillAt, Killed, Points, arguments, net
from transformers import TrainerCallback

from hf_lottery import LotteryArguments, LotteryTrainer, WinningSignTrainer


class Interrupt(TrainerCallback):
    """What a notebook's stop button does, in the evaluation of a level."""

    def on_evaluate(self, args, state, control, **kwargs):
        if args.output_dir.endswith("level-01"):
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", [LotteryTrainer, WinningSignTrainer])
def test_a_search_says_how_and_where_it_goes_on_and_that_it_is_finished(tmp_path, caplog, kind):
    with pytest.raises(Killed):
        trainer(tmp_path, kind=kind, kill=(1, 5)).train()
    how = "Call train(resume_from_checkpoint=True), or run the same command again, to go on from its last checkpoint."
    assert f"The search in {tmp_path} stopped at level 1, step 5. {how}" in caplog.text
    assert "goes on at" not in caplog.text
    caplog.clear()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, kind=kind, callbacks=[Interrupt()]).train(resume_from_checkpoint=True)
    assert f"The search in {tmp_path} goes on at level 1, after step 4." in caplog.text
    assert f"stopped at level 1, step 6. {how}" in caplog.text and caplog.text.count("goes on at") == 1
    trainer(tmp_path, kind=kind).train(resume_from_checkpoint=True)
    caplog.clear()
    trainer(tmp_path, kind=kind).train(resume_from_checkpoint=True)
    assert f"The search in {tmp_path} is finished: its ticket is loaded, and nothing is trained." in caplog.text
    assert "goes on at" not in caplog.text and "stopped" not in caplog.text


def test_a_level_without_a_checkpoint_goes_on_from_its_start(tmp_path, caplog):
    with pytest.raises(Killed):
        quick(tmp_path, callbacks=[KillAt(1, 2)]).train()
    quick(tmp_path).train(resume_from_checkpoint=True)
    assert f"The search in {tmp_path} goes on at level 1, from its start." in caplog.text


def test_what_is_refused_says_nothing_of_going_on(tmp_path, caplog):
    quick(tmp_path).train()
    caplog.clear()
    with pytest.raises(FileExistsError, match="must not hold a run already"):
        quick(tmp_path).train()
    with pytest.raises(ValueError, match="initial weights"):
        quick(tmp_path, model=net(3)).train(resume_from_checkpoint=True)
    assert "stopped" not in caplog.text and "go on from" not in caplog.text


@pytest.mark.parametrize("below", ["", "run", "deep/run"])
def test_an_output_folder_that_is_a_file(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match=r"output_dir must be a folder; received .*, but .*file is a file. Choose"):
        LotteryArguments(output_dir=str(file / below), sparsity=0.5)
    assert file.read_text() == "mine"
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "to a folder")
    (tmp_path / "to a folder").mkdir()
    assert LotteryArguments(output_dir=str(link), sparsity=0.5, use_cpu=True).output_dir == str(link)


def test_epochs_of_a_stream_are_refused_before_anything_is_written(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from (Points()[i] for i in range(48))

    args = arguments(tmp_path, max_steps=4, rewind="epoch:1")
    with pytest.raises(ValueError, match="rewind must be in steps for a stream.*epoch:1. Pass rewind='step:K'"):
        LotteryTrainer(model=net(), args=args, train_dataset=Stream()).train(resume_from_checkpoint=True)
    assert not list(tmp_path.iterdir())
