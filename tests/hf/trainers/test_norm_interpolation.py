"""A Winning Sign: how the levels interpolate their norm parameters."""

from contextlib import contextmanager

import pytest
import torch
from small_searches import aws, quick, quick_aws, trained_weights, weights
from small_task import Killed, Net, Points, arguments, net
from transformers import Trainer, TrainerCallback, set_seed

from hf_lottery import Snapshot, norm_parameters
from hf_lottery.hf.trainers import winning_sign_trainer


class Drawn(list):
    towards = None


class RatesOfLevels(TrainerCallback):
    """Keeps the learning rates of every level."""

    def __init__(self):
        self.rates = {}

    def on_step_end(self, args, state, control, lr_scheduler=None, **kwargs):
        self.rates.setdefault(args.output_dir[-8:], []).append(lr_scheduler.get_last_lr()[0])


@pytest.fixture
def drawn(monkeypatch):
    """Every alpha that is drawn, in order; ``towards`` is what the last one interpolated towards."""
    alphas = Drawn()
    real = winning_sign_trainer.interpolated_norms

    @contextmanager
    def record(model, initial, alpha):
        alphas.append(alpha)
        alphas.towards = initial
        with real(model, initial, alpha):
            yield

    monkeypatch.setattr(winning_sign_trainer, "interpolated_norms", record)
    return alphas


def test_a_level_is_a_training_with_interpolated_norms(tmp_path, drawn):
    """Level 0 against a plain Trainer whose network interpolates its own norms by autograd."""
    ours = aws(tmp_path / "a", levels=1, sparsity=None, optim="sgd")
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
    trained = trained_weights(tmp_path / "a/level-00/trained")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(trained[name], parameter.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("interpolation", "accumulate"),
    [
        (None, 3),
        ("micro_batch", 3),
        *(
            pytest.param(*values, marks=pytest.mark.slow)
            for values in ((None, 1), ("step", 1), ("step", 3), ("micro_batch", 1))
        ),
    ],
)
def test_how_often_alpha_is_drawn(tmp_path, drawn, interpolation, accumulate):
    ours = quick_aws(
        tmp_path, norm_interpolation=interpolation, gradient_accumulation_steps=accumulate,
        per_device_train_batch_size=4,
    )  # fmt: skip
    ours.train()
    assert len(drawn) == 2 * 12
    assert all(0 <= alpha < 1 for alpha in drawn)
    assert len(set(drawn)) == len(drawn) // (1 if interpolation == "micro_batch" else accumulate)
    if interpolation != "micro_batch":
        assert drawn == [alpha for alpha in drawn[::accumulate] for _ in range(accumulate)]
    assert 0.3 < sum(drawn) / len(drawn) < 0.7
    again = list(drawn)
    drawn.clear()
    quick_aws(
        tmp_path / "again", norm_interpolation=interpolation,
        gradient_accumulation_steps=accumulate, per_device_train_batch_size=4,
    ).train()  # fmt: skip
    assert drawn == again


def test_the_control_interpolates_nothing(tmp_path, drawn):
    ours = quick_aws(tmp_path / "a", norm_interpolation="none")
    ours.train()
    theirs = quick(tmp_path / "b", rewind="learning_rate")
    theirs.train()
    assert not drawn
    assert (ours.mask, weights(ours.model)) == (theirs.mask, weights(theirs.model))
    interpolating = quick_aws(tmp_path / "c")
    interpolating.train()
    assert drawn and weights(interpolating.model) != weights(ours.model)


def test_a_preset_of_short_levels_and_one_final_run(tmp_path, drawn):
    record = RatesOfLevels()
    ours = aws(
        tmp_path, callbacks=[record], preset="official", dense_epochs=1, level_epochs=2, num_train_epochs=3,
        save_strategy="no", lr_scheduler_type="linear",
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
    final_weights = trained_weights(tmp_path / "level-04/trained")
    assert not torch.equal(final_weights["inner.weight"], ours.model.inner.weight)


def test_steps_of_a_level_beat_max_steps(tmp_path):
    record = RatesOfLevels()
    quick_aws(
        tmp_path, callbacks=[record], max_steps=4, level_epochs=1, final_run=True, levels=1, sparsity=None
    ).train()
    assert [len(rates) for rates in record.rates.values()] == [4, 3, 4]


def test_initial_norms_are_those_of_the_model_or_given(tmp_path, drawn):
    model = net()
    with torch.no_grad():
        model.norm.weight.fill_(2.0)
    ours = quick_aws(tmp_path / "a", model=model)
    ours.train()
    assert drawn.towards["norm.weight"].tolist() == [2.0] * 20
    given = {"norm.weight": torch.full((20,), 0.5), "norm.bias": torch.zeros(20)}
    ours = quick_aws(tmp_path / "b", extra={"initial_norms": given})
    ours.train()
    assert drawn.towards["norm.weight"].tolist() == [0.5] * 20
    with pytest.raises(ValueError, match=r"initial_norms must have 'norm.bias' of shape \[20\]; received none"):
        aws(tmp_path / "c", extra={"initial_norms": {"norm.weight": torch.ones(20)}})


def test_other_seeds_draw_other_alphas_and_micro_batches_begin_anew(tmp_path, drawn):
    one_step = {"gradient_accumulation_steps": 3}
    quick_aws(tmp_path / "a", norm_interpolation="micro_batch", **one_step).train()
    first = list(drawn)
    drawn.clear()
    quick_aws(tmp_path / "b", norm_interpolation="micro_batch", seed=7, **one_step).train()
    assert not set(first) & set(drawn)
    drawn.clear()
    quick_aws(tmp_path / "c", norm_interpolation="step", **one_step).train()
    assert [first[0], first[3]] == [drawn[0], drawn[3]]  # the first micro-batch of each level is that of the step


def test_every_level_interpolates_towards_the_fresh_norms(tmp_path, drawn):
    fresh = net().norm.weight.detach().clone()
    with pytest.raises(Killed):
        aws(tmp_path, kill=(1, 2), levels=1, sparsity=None).train()
    resumed = aws(tmp_path, model=net(77), levels=1, sparsity=None, resume_with_other=["weights"])
    with torch.no_grad():
        resumed.model.norm.weight.fill_(5.0)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(drawn.towards["norm.weight"], fresh)
    assert not torch.equal(resumed.model.norm.weight, fresh)


def test_live_parameters_are_copied_and_other_initial_norms_are_another_run(tmp_path, drawn):
    model = net()
    given = {"initial_norms": norm_parameters(model)}
    ours = quick_aws(tmp_path, model=model, extra=given)
    ours.train()
    assert torch.equal(drawn.towards["norm.weight"], torch.ones(20))
    other = {"initial_norms": {name: torch.full((20,), 7.0) for name in ours.norms}}
    with pytest.raises(ValueError, match="must have the settings it began with; received initial_norms="):
        quick_aws(tmp_path, extra=other).train(resume_from_checkpoint=True)


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

    ours = quick_aws(tmp_path, extra={"optimizer_cls_and_kwargs": (Preparing, {"lr": 0.01})})
    ours.train()
