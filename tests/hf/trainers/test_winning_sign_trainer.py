"""AWS: levels that keep their weights and train with interpolated norms."""

import json
import logging
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file
from small_task import KillAt, Killed, Net, Points, arguments, net
from torch import nn
from transformers import Trainer, TrainerCallback, set_seed

from hf_lottery import (
    LotteryArguments,
    LotteryTrainer,
    SignedMask,
    Snapshot,
    Ticket,
    WinningSignTrainer,
    norm_parameters,
)
from hf_lottery.hf.trainers import winning_sign_trainer


class NoNorms(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.Identity()


def trainer(folder, *, kind=WinningSignTrainer, model=None, kill=None, callbacks=(), extra=None, **changes):
    return kind(
        model=model or net(),
        args=arguments(folder, **changes),
        train_dataset=Points(),
        eval_dataset=Points(20),
        callbacks=[*callbacks, *([KillAt(*kill)] if kill else [])],
        **(extra or {}),
    )


@pytest.fixture
def drawn(monkeypatch):
    """Every alpha that is drawn, in order."""
    alphas = []
    real = winning_sign_trainer.interpolated_norms

    @contextmanager
    def record(model, initial, alpha):
        alphas.append(alpha)
        with real(model, initial, alpha):
            yield

    monkeypatch.setattr(winning_sign_trainer, "interpolated_norms", record)
    return alphas


def weights(model):
    return Snapshot.capture(model).sha256()


def test_a_level_is_a_training_with_interpolated_norms(tmp_path, drawn):
    """Level 0 against a plain Trainer whose network interpolates its own norms by autograd."""
    ours = trainer(tmp_path / "a", levels=1, sparsity=None, optim="sgd")
    start = net()
    ours.train()
    pending = drawn[:6]
    plain = net()

    class Interpolating(Net):
        def forward(self, x, labels=None):
            if not self.training:
                return super().forward(x, labels)
            alpha = pending.pop(0)
            mixed = {
                f"norm.{name}": (1 - alpha) * parameter + alpha * start.norm.get_parameter(name).detach()
                for name, parameter in self.norm.named_parameters()
            }
            own = {name: mixed.get(name, value) for name, value in self.named_parameters()}
            return torch.func.functional_call(plain, {**own, **dict(self.named_buffers())}, (x, labels))

    torch.manual_seed(1)
    model = Interpolating()
    theirs = Trainer(model, arguments(tmp_path / "b", optim="sgd"), train_dataset=Points())
    set_seed(winning_sign_trainer.level_seed(42, 0))
    theirs.train()
    assert not pending
    trained = load_file(tmp_path / "a/level-00/trained/model.safetensors")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(trained[name], parameter.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("interpolation", [None, "step", "micro_batch"])
def test_how_often_alpha_is_drawn(tmp_path, drawn, interpolation, accumulate):
    ours = trainer(
        tmp_path, levels=1, sparsity=None, norm_interpolation=interpolation, gradient_accumulation_steps=accumulate,
        per_device_train_batch_size=4,
    )  # fmt: skip
    ours.train()
    assert len(drawn) == 2 * 2 * 12
    assert all(0 <= alpha < 1 for alpha in drawn)
    assert len(set(drawn)) == len(drawn) // (1 if interpolation == "micro_batch" else accumulate)
    if interpolation != "micro_batch":
        assert drawn == [alpha for alpha in drawn[::accumulate] for _ in range(accumulate)]
    assert 0.3 < sum(drawn) / len(drawn) < 0.7
    again = list(drawn)
    drawn.clear()
    trainer(
        tmp_path / "again", levels=1, sparsity=None, norm_interpolation=interpolation,
        gradient_accumulation_steps=accumulate, per_device_train_batch_size=4,
    ).train()  # fmt: skip
    assert drawn == again


def test_without_norms_it_is_learning_rate_rewinding_and_says_so(tmp_path, caplog):
    torch.manual_seed(1)
    model = NoNorms()
    other = NoNorms()
    other.load_state_dict(model.state_dict())
    with caplog.at_level(logging.WARNING, "hf_lottery"):
        ours = trainer(tmp_path / "a", model=model)
    assert "NoNorms has no norm parameters: AWS is learning-rate rewinding here." in caplog.text
    ours.train()
    theirs = trainer(tmp_path / "b", kind=LotteryTrainer, model=other, rewind="learning_rate")
    theirs.train()
    assert ours.mask == theirs.mask
    assert weights(ours.model) == weights(theirs.model)
    assert [r["metrics"]["eval_loss"] for r in ours.history] == [r["metrics"]["eval_loss"] for r in theirs.history]


def test_the_control_interpolates_nothing(tmp_path, drawn):
    ours = trainer(tmp_path / "a", norm_interpolation="none")
    ours.train()
    theirs = trainer(tmp_path / "b", kind=LotteryTrainer, rewind="learning_rate")
    theirs.train()
    assert not drawn
    assert (ours.mask, weights(ours.model)) == (theirs.mask, weights(theirs.model))
    aws = trainer(tmp_path / "c")
    aws.train()
    assert drawn and weights(aws.model) != weights(ours.model)


def test_what_it_leaves(tmp_path):
    ours = trainer(tmp_path)
    ours.train()
    assert ours.signed == SignedMask.from_model(ours.model, ours.mask)
    assert SignedMask.from_pretrained(tmp_path / "signed") == ours.signed
    assert not any(name.startswith("norm.") for name in ours.signed)
    ticket = Ticket.from_pretrained(tmp_path / "ticket")
    model = net(9)
    ticket.apply_(model)
    assert weights(model) == weights(ours.model)
    flips = [record["metrics"]["sign_flips"] for record in ours.history]
    assert all(0 <= flip < 0.5 for flip in flips) and flips[0] > 0


class Record(TrainerCallback):
    def __init__(self):
        self.rates = {}

    def on_step_end(self, args, state, control, lr_scheduler=None, **kwargs):
        self.rates.setdefault(args.output_dir[-8:], []).append(lr_scheduler.get_last_lr()[0])


def test_a_preset_of_short_levels_and_one_final_run(tmp_path, drawn):
    record = Record()
    ours = trainer(
        tmp_path, callbacks=[record], preset="official", dense_epochs=1, level_epochs=2, num_train_epochs=3,
        lr_scheduler_type="linear",
    )  # fmt: skip
    ours.train()
    assert [record["sparsity"] for record in ours.history] == pytest.approx([0, 0.3, 0.51, 0.6, 0.6], abs=0.01)
    assert [len(rates) for rates in record.rates.values()] == [3, 6, 6, 6, 9]
    *levels, final = record.rates.values()
    assert all(rate == 0.01 for rates in levels for rate in rates)
    assert final[0] < 0.01 and final[-1] == 0
    assert len(drawn) == 3 + 6 + 6 + 6  # none in the final run
    # Signs and ticket are of the network that the final run started from.
    begun = Snapshot.load(tmp_path / "level-04/rewind.safetensors")
    model = net(9)
    begun.restore_(model)
    ours.mask.apply_(model)
    assert weights(model) == weights(ours.model)
    assert ours.signed.agreement(model).overall == 1
    final_weights = load_file(tmp_path / "level-04/trained/model.safetensors")
    assert not torch.equal(final_weights["inner.weight"], ours.model.inner.weight)


def test_steps_of_a_level_beat_max_steps(tmp_path):
    record = Record()
    trainer(tmp_path, callbacks=[record], max_steps=4, level_epochs=1, final_run=True, levels=1, sparsity=None).train()
    assert [len(rates) for rates in record.rates.values()] == [4, 3, 4]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    ours = trainer(tmp_path_factory.mktemp("whole"), final_run=True)
    ours.train()
    return ours


@pytest.mark.parametrize("step", [1, 3, 6])
@pytest.mark.parametrize("level", [0, 2, 4])
def test_killed_at_any_step_and_resumed_is_bit_identical(tmp_path, whole, level, step):
    with pytest.raises(Killed):
        trainer(tmp_path, kill=(level, step), final_run=True).train()
    resumed = trainer(tmp_path, model=net(77), final_run=True)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.signed == whole.signed
    assert weights(resumed.model) == weights(whole.model)
    losses = [[record["metrics"]["eval_loss"] for record in run.history] for run in (resumed, whole)]
    assert losses[0] == losses[1]


def test_a_finished_run_is_read_back(tmp_path):
    first = trainer(tmp_path)
    first.train()
    again = trainer(tmp_path, model=net(77))
    again.train(resume_from_checkpoint=True)
    assert (again.signed, weights(again.model)) == (first.signed, weights(first.model))
    losses = [[metrics["eval_loss"] for _, metrics in run.norm_path(points=3)] for run in (first, again)]
    assert losses[0] == losses[1]


def test_a_level_is_evaluated_and_saved_with_recalibrated_statistics(tmp_path):
    for name, recalibrated in (("step", True), ("none", False)):
        ours = trainer(tmp_path / name, levels=1, sparsity=None, norm_interpolation=name)
        ours.train()
        trained = load_file(tmp_path / name / "level-01/trained/model.safetensors")
        mean = (Points().x @ trained["inner.weight"].T + trained["inner.bias"]).mean(0)
        assert ((trained["norm.running_mean"] - mean).abs().max() < 1e-5) == recalibrated


def test_the_norm_path_changes_nothing(tmp_path):
    ours = trainer(tmp_path)
    ours.train()
    before = weights(ours.model)
    path = ours.norm_path(points=3)
    assert [alpha for alpha, _ in path] == [0, 0.5, 1]
    losses = [metrics["eval_loss"] for _, metrics in path]
    assert len(set(losses)) == 3
    assert weights(ours.model) == before
    assert losses[0] == pytest.approx(ours.history[-1]["metrics"]["eval_loss"], abs=1e-6)


def test_initial_norms_are_those_of_the_model_or_given(tmp_path):
    model = net()
    with torch.no_grad():
        model.norm.weight.fill_(2.0)
    ours = trainer(tmp_path / "a", model=model, levels=1, sparsity=None)
    ours.train()
    assert ours._initial["norm.weight"].tolist() == [2.0] * 20
    given = {"norm.weight": torch.full((20,), 0.5), "norm.bias": torch.zeros(20)}
    ours = trainer(tmp_path / "b", levels=1, sparsity=None, extra={"initial_norms": given})
    ours.train()
    assert ours._initial["norm.weight"].tolist() == [0.5] * 20
    with pytest.raises(ValueError, match=r"initial_norms must have 'norm.bias' of shape \[20\]; received none"):
        trainer(tmp_path / "c", extra={"initial_norms": {"norm.weight": torch.ones(20)}})


def test_patterns_choose_the_norms(tmp_path):
    assert list(trainer(tmp_path, norm_exclude=["bias"]).norms) == ["norm.weight"]
    assert list(trainer(tmp_path, norm_include=["inner.bias"]).norms) == ["inner.bias"]
    with pytest.raises(ValueError, match="include must match the name of a parameter; received 'layer_norm'"):
        trainer(tmp_path, norm_include=["layer_norm"])


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("bf16", [False, True])
def test_under_compile_bf16_and_accumulation(tmp_path, bf16, accumulate):
    ours = trainer(
        tmp_path, torch_compile=True, torch_compile_backend="aot_eager", bf16=bf16,
        gradient_accumulation_steps=accumulate, sparsity=0.5,
    )  # fmt: skip
    ours.train()
    assert SignedMask.from_model(ours.model, ours.mask) == ours.signed
    assert list(ours.signed) == ["inner.weight", "inner.bias", "outer.weight", "outer.bias"]


def test_other_rewinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="found with rewind=learning_rate, which keeps them; received init"):
        trainer(tmp_path, rewind="init")
    with pytest.raises(ValueError, match="norm_interpolation must be left out here; received 'step'"):
        trainer(tmp_path, kind=LotteryTrainer, norm_interpolation="step")


def test_presets_fill_what_is_not_given(tmp_path):
    official = LotteryArguments(str(tmp_path), sparsity=0.5, preset="official", level_epochs=3)
    assert (official.dense_epochs, official.level_epochs, official.final_run) == (10, 3, True)
    assert (official.rewind, official.level_lr_scheduler_type) == ("learning_rate", "constant")
    renda = LotteryArguments(str(tmp_path), sparsity=0.5, preset="renda")
    assert (renda.rewind, renda.level_epochs, renda.final_run) == ("learning_rate", None, None)
    kept = LotteryArguments(str(tmp_path), sparsity=0.5, preset="official", final_run=False)
    assert not kept.final_run and kept.get_sparsities()[-2] < 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "paper"}, "preset must be one of official, renda; received 'paper'"),
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
        trainer(tmp_path, kind=LotteryTrainer, rewind="step:4", level_epochs=1).train()


def test_the_state_file_says_how_it_was_found(tmp_path):
    trainer(tmp_path, levels=1, sparsity=None).train()
    settings = json.loads((tmp_path / "lottery_state.json").read_text())["settings"]
    assert settings["rewind"] == "learning_rate"
    assert norm_parameters(net()).keys() == {"norm.weight", "norm.bias"}


def test_other_seeds_draw_other_alphas_and_micro_batches_begin_anew(tmp_path, drawn):
    one_step = {"num_train_epochs": 1, "gradient_accumulation_steps": 3, "levels": 1, "sparsity": None}
    trainer(tmp_path / "a", norm_interpolation="micro_batch", **one_step).train()
    first = list(drawn)
    drawn.clear()
    trainer(tmp_path / "b", norm_interpolation="micro_batch", seed=7, **one_step).train()
    assert not set(first) & set(drawn)
    drawn.clear()
    trainer(tmp_path / "c", norm_interpolation="step", **one_step).train()
    assert [first[0], first[3]] == [drawn[0], drawn[3]]  # the first micro-batch of each level is that of the step


def test_every_level_interpolates_towards_the_fresh_norms(tmp_path):
    fresh = net().norm.weight.detach().clone()
    with pytest.raises(Killed):
        trainer(tmp_path, kill=(1, 2)).train()
    resumed = trainer(tmp_path, model=net(77))
    with torch.no_grad():
        resumed.model.norm.weight.fill_(5.0)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(resumed._initial["norm.weight"], fresh)
    assert not torch.equal(resumed.model.norm.weight, fresh)


def test_excluded_norms_have_signs(tmp_path):
    ours = trainer(tmp_path, norm_exclude=["bias"], levels=1, sparsity=None)
    ours.train()
    assert "norm.bias" in ours.signed and "norm.weight" not in ours.signed


def test_live_parameters_are_copied_and_other_initial_norms_are_another_run(tmp_path):
    model = net()
    given = {"initial_norms": norm_parameters(model)}
    ours = trainer(tmp_path, model=model, levels=1, sparsity=None, extra=given)
    ours.train()
    assert torch.equal(ours._initial["norm.weight"], torch.ones(20))
    other = {"initial_norms": {name: torch.full((20,), 7.0) for name in ours.norms}}
    with pytest.raises(ValueError, match="must have the settings it began with; received initial_norms="):
        trainer(tmp_path, levels=1, sparsity=None, extra=other).train(resume_from_checkpoint=True)


def test_a_norm_path_needs_training_and_leaves_the_generators(tmp_path):
    ours = trainer(tmp_path, levels=1, sparsity=None)
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

    args = arguments(tmp_path, levels=1, sparsity=None, recalibration_batches=2, remove_unused_columns=False)
    Own(model=net(), args=args, train_dataset=Extra(), eval_dataset=Points(20)).train()
    assert seen == [2, 2]


def test_a_parameter_is_norm_or_prunable(tmp_path):
    with pytest.raises(ValueError, match=r"a norm must not be prunable; received 'inner.weight', which is both"):
        trainer(tmp_path, norm_include=["weight"])


def test_a_stream_has_no_epochs(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([Points()[i] for i in range(48)])

    args = arguments(tmp_path, max_steps=4, level_epochs=1)
    ours = WinningSignTrainer(model=net(), args=args, train_dataset=Stream())
    with pytest.raises(ValueError, match="epochs must be of a data set that knows its length; received a stream"):
        ours.train()


def test_an_optimizer_that_prepares_itself_does_so_before_the_norms_move(tmp_path):
    """A schedule-free optimizer writes its weights when it is put into training mode."""

    class Preparing(torch.optim.SGD):
        training = False

        def train(self):
            if self.training:
                return
            self.training = True
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.add_(0.0)

        def eval(self):
            self.training = False

    ours = trainer(tmp_path, levels=1, sparsity=None, extra={"optimizer_cls_and_kwargs": (Preparing, {"lr": 0.01})})
    ours.train()
