"""A run folder that was damaged while nobody used it: the same ticket or one clear error, never another ticket."""

import json
import os
import shutil

import pytest
from small_searches import equal, state, trainer, weights_of
from small_task import Killed

from hf_lottery.hf.trainers.checkpoints import checkpoints_in
from hf_lottery.storage.checksums import DamagedFileError

SETTINGS = {"sparsity": None, "levels": 2, "rewind": "step:2", "save_steps": 1, "num_train_epochs": 1.67}


def missing(file):
    file.unlink()


def cut(file):
    os.truncate(file, file.stat().st_size // 2)


def empty(file):
    os.truncate(file, 0)


def flipped(file):
    data = bytearray(file.read_bytes())
    place = sum(map(ord, file.name)) * 7919 % len(data)
    data[place] ^= 1 << place % 8
    file.write_bytes(bytes(data))


DAMAGES = (missing, cut, empty, flipped)


def search(folder, **changes):
    return trainer(folder, **(SETTINGS | changes))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a search that was killed in the middle of level 1, and how the whole search ends."""
    whole, folder = (tmp_path_factory.mktemp(name) for name in ("whole", "killed"))
    ours = search(whole)
    ours.train()
    with pytest.raises(Killed):
        trainer(folder, kill=(1, 3), **SETTINGS).train()
    assert [path.name for path in checkpoints_in(folder / "level-01")] == ["checkpoint-2", "checkpoint-1"]
    return folder, ours.mask, state(ours.model), weights_of(whole / "ticket/rewind.safetensors")


def outcome(folder, killed):
    """Resume, and say whether the ticket is the same or which file is damaged; nothing else may happen."""
    _, mask, weights, start = killed
    resumed = search(folder)
    try:
        resumed.train(resume_from_checkpoint=True)
    except (DamagedFileError, FileExistsError) as error:
        return str(error)
    assert resumed.mask == mask and equal(state(resumed.model), weights)
    assert weights_of(folder / "ticket/rewind.safetensors") == start
    return "the same"


def files_of(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_damaged_in_every_way(tmp_path, killed, damage):
    outcomes = {}
    for file in files_of(killed[0]):
        folder = shutil.copytree(killed[0], tmp_path / str(len(outcomes)))
        damage(folder / file)
        found = outcomes[str(file)] = outcome(folder, killed)
        assert found == "the same" or file.name in found, file
        shutil.rmtree(folder)
    errors = {name for name, found in outcomes.items() if found != "the same"}
    starts = {f"level-0{n}/{name}" for n in (0, 1) for name in START}
    assert errors == {"lottery_state.json", *starts}
    assert len(outcomes) > 30


START = ("lottery_files.json", "mask.safetensors", "mask_config.json", "rewind.safetensors")
# One file of each kind, each damaged in one way.
EXAMPLES = [
    ("level-01/checkpoint-2/optimizer.pt", missing, "level-01/checkpoint-2 is passed over"),
    ("level-01/checkpoint-2/rng_state.pth", flipped, "received other bytes, with sha256"),
    ("level-01/checkpoint-2/lottery_checkpoint.json", cut, "checkpoint-2/lottery_checkpoint.json must be JSON"),
    ("level-01/rewind.safetensors", flipped, None),
    ("lottery_state.json", empty, None),
]


@pytest.mark.parametrize(("name", "damage", "said"), EXAMPLES)
def test_damage_is_passed_over_or_said(tmp_path, killed, caplog, name, damage, said):
    folder = shutil.copytree(killed[0], tmp_path / "run")
    damage(folder / name)
    found = outcome(folder, killed)
    if said:
        assert found == "the same" and said in caplog.text
        assert "goes on at level 1, after step 1" in caplog.text
    else:
        assert found.startswith(f"{folder / name} must be")


@pytest.mark.slow
def test_files_that_levels_share_are_damaged_together(tmp_path, killed):
    shared = shutil.copytree(killed[0], tmp_path / "run", copy_function=os.link)
    inode = (shared / "rewind.safetensors").stat().st_ino
    assert inode == (shared / "level-01/rewind.safetensors").stat().st_ino
    whole = (shared / "rewind.safetensors").read_bytes()
    try:
        with open(shared / "rewind.safetensors", "r+b") as file:
            file.seek(-5, os.SEEK_END)
            file.write(b"\0\1")
        assert "level-01/rewind.safetensors must be as it was written" in outcome(shared, killed)
    finally:
        (shared / "rewind.safetensors").write_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_weights_to_rewind_to_are_captured_again(tmp_path, damage):
    whole = search(tmp_path / "whole")
    whole.train()
    with pytest.raises(Killed):
        trainer(tmp_path / "run", kill=(0, 4), **SETTINGS).train()
    damage(tmp_path / "run/rewind.safetensors")  # of step 2, which checkpoint-1 precedes
    resumed = search(tmp_path / "run")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.mask == whole.mask and equal(state(resumed.model), state(whole.model))


@pytest.mark.slow
def test_every_file_of_a_finished_run(tmp_path, killed):
    whole = tmp_path / "whole"
    search(whole).train()
    for number, file in enumerate(files_of(whole)):
        folder = shutil.copytree(whole, tmp_path / str(number))
        DAMAGES[number % len(DAMAGES)](folder / file)
        found = outcome(folder, killed)
        assert found == "the same" or file.name in found, file
        shutil.rmtree(folder)


BEST = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.2}


@pytest.mark.parametrize("damage", [missing, *(pytest.param(d, marks=pytest.mark.slow) for d in DAMAGES[1:])])
def test_the_checkpoint_with_the_best_model_is_needed_too(tmp_path, damage):
    whole = search(tmp_path / "whole", num_train_epochs=2, **BEST)
    whole.train()
    with pytest.raises(Killed):
        trainer(tmp_path / "run", kill=(1, 4), **(SETTINGS | BEST | {"num_train_epochs": 2})).train()
    newest = checkpoints_in(tmp_path / "run/level-01")[0]
    best = json.loads((newest / "trainer_state.json").read_text())["best_model_checkpoint"]
    damage(tmp_path / "run/level-01" / os.path.basename(best) / "model.safetensors")
    resumed = search(tmp_path / "run", num_train_epochs=2, **BEST)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.mask == whole.mask and equal(state(resumed.model), state(whole.model))


def test_a_folder_that_was_moved_finds_its_best_model(tmp_path):
    whole = search(tmp_path / "whole", **BEST)
    whole.train()
    with pytest.raises(Killed):
        trainer(tmp_path / "run", kill=(1, 3), **(SETTINGS | BEST)).train()
    (tmp_path / "run").rename(tmp_path / "moved")
    resumed = search(tmp_path / "moved", **BEST)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.mask == whole.mask and equal(state(resumed.model), state(whole.model))
