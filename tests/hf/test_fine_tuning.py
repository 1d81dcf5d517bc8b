"""Fine-tuning of a sparse model with the trainers of transformers and trl, with and without an adapter of PEFT."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig
from small_task import Killed
from small_texts import alive, fine_tuner, llama, mask_of, t5, tokenizer

from hf_lottery import Snapshot
from hf_lottery.hf import keep_update_sparse, merge_adapter

# What the frameworks say of each other, and merge_adapter of the part of an update that it drops.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("FutureWarning", "UserWarning")]
TRL = pytest.mark.skipif(sys.version_info < (3, 11), reason="trl needs Python 3.11")
WITHIN = "lora within the mask"
CASES = [
    pytest.param("SFT", "lora", marks=TRL),
    pytest.param("DPO", None, marks=TRL),
    pytest.param("SFT", "dora", marks=[TRL, pytest.mark.slow]),
    pytest.param("SFT", WITHIN, marks=[TRL, pytest.mark.slow]),
    pytest.param("Seq2Seq", WITHIN, marks=pytest.mark.slow),
    pytest.param("DPO", "lora", marks=[TRL, pytest.mark.slow]),
    pytest.param("GRPO", "lora", marks=[TRL, pytest.mark.slow]),
    pytest.param("GRPO", None, marks=[TRL, pytest.mark.slow]),
    pytest.param("Seq2Seq", "lora", marks=pytest.mark.slow),
    pytest.param("plain", "lora", marks=pytest.mark.slow),
    pytest.param("plain", None, marks=pytest.mark.slow),
]
# In another process: the hashes of the merged model, of that model under its mask, and of the adapter merged there.
LOAD = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from hf_lottery import Mask, Snapshot
from hf_lottery.hf import merge_adapter
loader = AutoModelForSeq2SeqLM if sys.argv[1] == "Seq2Seq" else AutoModelForCausalLM
model, mask = loader.from_pretrained("alice/tuned"), Mask.from_pretrained("alice/tuned")
print(Snapshot.capture(model).sha256())
mask.apply_(model)
print(Snapshot.capture(model).sha256())
if sys.argv[2:] == ["adapter"]:
    adapted = PeftModel.from_pretrained(loader.from_pretrained("alice/base"), "alice/adapter")
    print(Snapshot.capture(merge_adapter(adapted, mask)).sha256())
"""


def adapter(name, kind):
    targets = ["q", "wo"] if kind == "Seq2Seq" else ["q_proj", "down_proj"]
    dropout = 0.0 if name == WITHIN else 0.1
    return name and LoraConfig(r=2, lora_dropout=dropout, target_modules=targets, use_dora=name == "dora")


def fine_tuner_of(kind, name, base, folder, mask, **settings):
    trainer = fine_tuner(kind, base, folder, mask, adapter=adapter(name, kind), **settings)
    if name == WITHIN:
        keep_update_sparse(trainer.model, mask)
    return trainer


def sparse_base(folder, kind):
    model = t5() if kind == "Seq2Seq" else llama()
    mask = mask_of(model)
    mask.apply_(model)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model, mask


def train_with_a_kill(tmp_path, kind, name):
    """Train once, and once with a kill. Return both trainers, and the mask."""
    base, (_, mask) = tmp_path / "base", sparse_base(tmp_path / "base", kind)
    whole = fine_tuner_of(kind, name, base, tmp_path / "whole", mask)
    whole.train()
    killed = fine_tuner_of(kind, name, base, tmp_path / "killed", mask, kill_at=3)
    with pytest.raises(Killed):
        killed.train()
    resumed = fine_tuner_of(kind, name, base, tmp_path / "killed", mask)
    resumed.train(resume_from_checkpoint=True)
    for trainer, steps in (whole, 4), (killed, 3), (resumed, 2):
        assert watch(trainer).alive == [0] * steps
    return whole, resumed, mask


def watch(trainer):
    return next(callback for callback in trainer.callback_handler.callbacks if type(callback).__name__ == "Watch")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_pruned_weights_stay_zero_and_a_kill_changes_nothing(tmp_path, kind, name):
    whole, resumed, mask = train_with_a_kill(tmp_path, kind, name)
    assert same(whole.model.state_dict(), resumed.model.state_dict())
    trained = whole.model
    if name is not None:
        before = Snapshot.capture(trained).sha256()
        trained = merge_adapter(trained, mask)
        assert Snapshot.capture(trained).sha256() != before
    assert alive(trained, mask) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [pytest.param(*case.values[:2], marks=case.marks) for case in CASES])
def test_what_is_pushed_is_loaded_by_another_process(tmp_path, hub, kind, name):
    """As people do it: the trained model and its mask in one repository; and the adapter in one of its own."""
    base, mask = sparse_base(tmp_path / "base", kind)
    base.push_to_hub("alice/base")
    trainer = fine_tuner_of(kind, name, tmp_path / "base", tmp_path / "run", mask)
    trainer.train()
    trained = trainer.model
    if name is not None:
        trained.push_to_hub("alice/adapter")
        trained = merge_adapter(trained, mask)
    trained.push_to_hub("alice/tuned")
    mask.push_to_hub("alice/tuned")
    words = [sys.executable, "-c", LOAD, kind, *(["adapter"] if name else [])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(done.stdout.split()) == {Snapshot.capture(trained).sha256()}
    assert len(done.stdout.split()) == (3 if name else 2)


@TRL
@pytest.mark.slow
@pytest.mark.parametrize("precompute_ref_log_probs", [False, True])
@pytest.mark.parametrize(("start", "equal"), [("sparse", True), ("dense", False), ("given", True)])
def test_the_reference_of_dpo_is_the_model_that_the_trainer_finds(tmp_path, start, equal, precompute_ref_log_probs):
    """The first loss is log 2 where reference and policy are one; a mask at the first step alone comes too late."""
    model, _ = sparse_base(tmp_path / "sparse", "DPO")
    dense = llama()
    for parameter in dense.parameters():
        parameter.data *= 4  # far enough from the sparse model to be seen
    dense.save_pretrained(tmp_path / "dense")
    mask = mask_of(model)
    settings = {"max_steps": 1, "precompute_ref_log_probs": precompute_ref_log_probs}
    if start == "given":
        settings["ref_model"] = copy.deepcopy(dense)
        mask.apply_(settings["ref_model"])
    folder = tmp_path / ("sparse" if start == "sparse" else "dense")
    trainer = fine_tuner("DPO", folder, tmp_path / "run", mask, **settings)
    trainer.train()
    assert (trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)) == equal
