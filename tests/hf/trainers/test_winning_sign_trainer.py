"""A Winning Sign: what WinningSignTrainer finds and leaves, and what it refuses."""

import json
import logging
from pathlib import Path

import pytest
import torch
from small_searches import aws, eval_losses, quick, quick_aws, trained_weights, trainer, weights
from small_task import Killed, Net, Points, arguments, net
from torch import nn

from hf_lottery import (
    LotteryArguments,
    SignedMask,
    Ticket,
    WinningSignTrainer,
    norm_parameters,
)
from hf_lottery.hf.trainers import winning_sign_trainer


class NoNorms(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.Identity()


def test_without_norms_it_is_learning_rate_rewinding_and_says_so(tmp_path, caplog):
    torch.manual_seed(1)
    model = NoNorms()
    other = NoNorms()
    other.load_state_dict(model.state_dict())
    with caplog.at_level(logging.WARNING, "hf_lottery"):
        ours = quick_aws(tmp_path / "a", model=model)
    assert "NoNorms has no norm parameters: AWS is learning-rate rewinding here." in caplog.text
    ours.train()
    theirs = quick(tmp_path / "b", model=other, rewind="learning_rate")
    theirs.train()
    assert ours.mask == theirs.mask
    assert weights(ours.model) == weights(theirs.model)
    assert eval_losses(ours) == eval_losses(theirs)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A finished search in the folder ``args.output_dir``, which tests share."""
    ours = aws(tmp_path_factory.mktemp("found"))
    ours.train()
    return ours


def test_what_it_leaves(found):
    ours, tmp_path = found, Path(found.args.output_dir)
    assert ours.signed == SignedMask.from_model(ours.model, ours.mask)
    assert SignedMask.from_pretrained(tmp_path / "signed") == ours.signed
    assert not any(name.startswith("norm.") for name in ours.signed)
    ticket = Ticket.from_pretrained(tmp_path / "ticket")
    model = net(9)
    ticket.apply_(model)
    assert weights(model) == weights(ours.model)
    flips = [record["metrics"]["sign_flips"] for record in ours.history]
    assert all(0 <= flip < 0.5 for flip in flips) and flips[0] > 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    ours = aws(tmp_path_factory.mktemp("whole"), final_run=True)
    ours.train()
    return ours


@pytest.mark.parametrize(
    ("level", "step"),
    [
        (2, 3),
        *(
            pytest.param(*kill, marks=pytest.mark.slow)
            for kill in ((0, 1), (0, 3), (0, 6), (2, 1), (2, 6), (4, 1), (4, 3), (4, 6))
        ),
    ],
)
def test_killed_at_any_step_and_resumed_is_bit_identical(tmp_path, whole, level, step):
    with pytest.raises(Killed):
        aws(tmp_path, kill=(level, step), final_run=True).train()
    resumed = aws(tmp_path, model=net(77), final_run=True, resume_with_other=["weights"])
    resumed.train(resume_from_checkpoint=True)
    assert resumed.signed == whole.signed
    assert weights(resumed.model) == weights(whole.model)
    assert eval_losses(resumed) == eval_losses(whole)


def test_a_finished_run_is_read_back(found):
    first = found
    again = aws(first.args.output_dir, model=net(77), resume_with_other=["weights"])
    again.train(resume_from_checkpoint=True)
    assert (again.signed, weights(again.model)) == (first.signed, weights(first.model))
    losses = [[metrics["eval_loss"] for _, metrics in run.norm_path(points=3)] for run in (first, again)]
    assert losses[0] == losses[1]


def test_a_level_is_evaluated_and_saved_with_recalibrated_statistics(tmp_path):
    for name, recalibrated in (("step", True), ("none", False)):
        ours = quick_aws(tmp_path / name, norm_interpolation=name)
        ours.train()
        trained = trained_weights(tmp_path / name / "level-01/trained")
        mean = (Points().x @ trained["inner.weight"].T + trained["inner.bias"]).mean(0)
        assert ((trained["norm.running_mean"] - mean).abs().max() < 1e-5) == recalibrated


def test_the_norm_path_changes_nothing(found):
    ours = found
    before = weights(ours.model)
    path = ours.norm_path(points=3)
    assert [alpha for alpha, _ in path] == [0, 0.5, 1]
    losses = [metrics["eval_loss"] for _, metrics in path]
    assert len(set(losses)) == 3
    assert weights(ours.model) == before
    assert losses[0] == pytest.approx(ours.history[-1]["metrics"]["eval_loss"], abs=1e-6)


def test_patterns_choose_the_norms(tmp_path):
    assert list(aws(tmp_path, norm_exclude=["bias"]).norms) == ["norm.weight"]
    assert list(aws(tmp_path, norm_include=["inner.bias"]).norms) == ["inner.bias"]
    with pytest.raises(ValueError, match="include must match the name of a parameter; received 'layer_norm'"):
        aws(tmp_path, norm_include=["layer_norm"])


@pytest.mark.parametrize(
    ("bf16", "accumulate"),
    [(True, 2), *(pytest.param(*values, marks=pytest.mark.slow) for values in ((False, 1), (False, 2), (True, 1)))],
)
def test_under_compile_bf16_and_accumulation(tmp_path, bf16, accumulate):
    ours = aws(
        tmp_path, torch_compile=True, torch_compile_backend="aot_eager", bf16=bf16,
        gradient_accumulation_steps=accumulate, sparsity=0.5,
    )  # fmt: skip
    ours.train()
    assert SignedMask.from_model(ours.model, ours.mask) == ours.signed
    assert list(ours.signed) == ["inner.weight", "inner.bias", "outer.weight", "outer.bias"]


def test_other_rewinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="found with rewind=learning_rate, which keeps them; received init"):
        aws(tmp_path, rewind="init")
    with pytest.raises(ValueError, match="norm_interpolation must be left out here; received 'step'"):
        trainer(tmp_path, norm_interpolation="step")


def test_presets_fill_what_is_not_given(tmp_path):
    official = LotteryArguments(str(tmp_path), sparsity=0.5, preset="official", level_epochs=3)
    assert (official.dense_epochs, official.level_epochs, official.final_run) == (10, 3, True)
    assert (official.rewind, official.level_lr_scheduler_type) == ("learning_rate", "constant")
    renda = LotteryArguments(str(tmp_path), sparsity=0.5, preset="renda")
    assert (renda.rewind, renda.level_epochs, renda.final_run) == ("learning_rate", None, None)
    tuned = LotteryArguments(str(tmp_path), sparsity=0.5, preset="imp_ft", level_epochs=5)
    assert (tuned.rewind, tuned.level_epochs, tuned.fine_tuning_learning_rate) == ("none", 5, 0.01)
    kept = LotteryArguments(str(tmp_path), sparsity=0.5, preset="official", final_run=False)
    assert not kept.final_run and kept.get_sparsities()[-2] < 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "paper"}, "preset must be one of imp_ft, official, renda; received 'paper'"),
        ({"dense_epochs": 0}, "dense_epochs must be positive; received 0"),
        ({"level_epochs": -1}, "level_epochs must be positive; received -1"),
        ({"level_lr_scheduler_type": "flat"}, "flat"),
        ({"norm_interpolation": "epoch"}, "must be one of step, micro_batch, none; received 'epoch'"),
        ({"recalibration_batches": 0}, "recalibration_batches must be at least 1; received 0"),
    ],
)
def test_settings_out_of_range(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        LotteryArguments(str(tmp_path), sparsity=0.5, **settings)


def test_a_rewind_step_must_lie_within_every_level(tmp_path):
    with pytest.raises(ValueError, match="must lie within training; received step 4 of 3"):
        trainer(tmp_path, rewind="step:4", level_epochs=1).train()


def test_the_state_file_says_how_it_was_found(tmp_path):
    quick_aws(tmp_path).train()
    settings = json.loads((tmp_path / "lottery_state.json").read_text())["settings"]
    assert settings["rewind"] == "learning_rate"
    assert norm_parameters(net()).keys() == {"norm.weight", "norm.bias"}


def test_excluded_norms_have_signs(tmp_path):
    ours = quick_aws(tmp_path, norm_exclude=["bias"])
    ours.train()
    assert "norm.bias" in ours.signed and "norm.weight" not in ours.signed


def test_a_norm_path_needs_training_and_leaves_the_generators(tmp_path):
    ours = quick_aws(tmp_path)
    with pytest.raises(ValueError, match="must start from trained norms"):
        ours.norm_path()
    ours.train()
    torch.manual_seed(3)
    ours.norm_path(points=2)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    assert ours.norm_path(points=2) != [] and _losses(ours) == _losses(ours)


def _losses(ours):
    return [metrics["eval_loss"] for _, metrics in ours.norm_path(points=2)]


def test_batches_of_the_recalibration_and_a_loss_of_ones_own(tmp_path, monkeypatch):
    seen = []
    real = winning_sign_trainer.recalibrate_batch_norm_

    def count(model, batches, *, forward):
        batches = list(batches)
        seen.append(len(batches))
        real(model, batches, forward=forward)

    monkeypatch.setattr(winning_sign_trainer, "recalibrate_batch_norm_", count)

    class Own(WinningSignTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return super().compute_loss(model, {k: v for k, v in inputs.items() if k != "extra"}, return_outputs)

    class Extra(Points):
        def __getitem__(self, i):
            return {**super().__getitem__(i), "extra": 1.0}

    args = arguments(
        tmp_path, levels=1, sparsity=None, save_strategy="no", recalibration_batches=2, remove_unused_columns=False
    )
    Own(model=net(), args=args, train_dataset=Extra(), eval_dataset=Points(20)).train()
    assert seen == [2, 2]


def test_a_parameter_is_norm_or_prunable(tmp_path):
    with pytest.raises(ValueError, match=r"a norm must not be prunable; received 'inner.weight', which is both"):
        aws(tmp_path, norm_include=["weight"])


def test_a_stream_has_no_epochs(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([Points()[i] for i in range(48)])

    args = arguments(tmp_path, max_steps=4, level_epochs=1)
    ours = WinningSignTrainer(model=net(), args=args, train_dataset=Stream())
    with pytest.raises(ValueError, match="epochs need a data set with a length; received a stream"):
        ours.train()
