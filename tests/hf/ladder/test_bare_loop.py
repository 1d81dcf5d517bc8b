"""The bare loop trains as the Trainer does, where both see the samples in one order."""

import pytest
import torch
from small_searches import equal, mask_for, state
from small_task import Points, arguments, net
from transformers import TrainerCallback

from hf_lottery import LotteryTrainer, SparseTrainer, WinningSignTrainer, interpolated_norms
from hf_lottery.hf.ladder.bare_loop import BareLotteryTrainer, BareSparseTrainer, BareWinningSignTrainer

# A Trainer orders the samples by data_seed in the same way.
SHARED = {"save_strategy": "no", "optim": "adamw_torch_fused", "data_seed": 3}


def without_dropout():
    """A network that draws no numbers: those of the two loops would differ."""
    model = net()
    model.dropout.p = 0.0
    return model


def trained(kind, folder, *, samples=48, callbacks=(), masked=True, **changes):
    """Train a network, or search with one."""
    own = {name: changes.pop(name) for name in ("first_step",) if name in changes}
    model = without_dropout()
    if issubclass(kind, SparseTrainer) and not issubclass(kind, LotteryTrainer):
        own["mask"] = mask_for(model) if masked else None
    data = {"train_dataset": Points(samples), "eval_dataset": Points(20)}
    trainer = kind(model=model, args=arguments(folder, **(SHARED | changes)), callbacks=[*callbacks], **data, **own)
    trainer.train()
    return trainer


def logged(trainer):
    """Losses, rates and evaluations, step by step, without the times and the gradient norms."""
    keys = ("loss", "learning_rate", "epoch", "step", "eval_loss")
    return [{key: entry[key] for key in keys if key in entry} for entry in trainer.state.log_history[:-1]]


def assert_close(bare, plain):
    """Compare parameters, except a bias that the norm after it takes away, whose gradient is noise."""
    theirs = dict(plain.model.named_parameters())
    for name, mine in bare.model.named_parameters():
        if name != "inner.bias":
            torch.testing.assert_close(mine, theirs[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"masked": False, "per_device_train_batch_size": 48},
        {"samples": 50, "max_grad_norm": 0.01},  # the last batch has two samples
        {"samples": 50, "dataloader_drop_last": True, "lr_scheduler_type": "cosine", "warmup_steps": 2},
        {"max_steps": 4, "max_grad_norm": 0.0, "weight_decay": 0.1},
        {"first_step": 2, "num_train_epochs": 3, "lr_scheduler_type": "cosine"},
        {"num_train_epochs": 1.5, "eval_strategy": "steps", "eval_steps": 2, "logging_steps": 2},
        {"eval_strategy": "epoch", "logging_strategy": "epoch", "samples": 34},
    ],
    ids=str,
)
def test_weights_and_rates_are_those_of_the_plain_trainer(tmp_path, changes):
    bare, plain = (trained(kind, tmp_path, **changes) for kind in (BareSparseTrainer, SparseTrainer))
    assert equal(state(bare.model), state(plain.model))
    assert not equal(state(bare.model), state(without_dropout()))
    assert logged(bare) == logged(plain) and len(logged(bare)) > 1
    assert bare.state.global_step == plain.state.global_step
    assert bare.state.epoch == plain.state.epoch


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_an_optimizer_that_can_be_fused_is(tmp_path, optim):
    given = {"optim": optim, "optim_args": "momentum=0.9" if optim == "sgd" else None}
    bare, plain = (trained(kind, tmp_path, **given) for kind in (BareSparseTrainer, SparseTrainer))
    for kind, fused in ((bare, True), (plain, None)):
        assert kind.optimizer.param_groups[0]["fused"] is fused
    assert_close(bare, plain)


def test_pruned_weights_are_zero_after_every_step(tmp_path):
    leaks = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            mask = mask_for(without_dropout())
            leaks.append(sum(model.get_parameter(n)[~keep].count_nonzero().item() for n, keep in mask.items()))

    bare = trained(BareSparseTrainer, tmp_path, callbacks=[Look()])
    assert leaks == [0] * 6 and bare.model.inner.weight.count_nonzero() > 10


class Noting(BareSparseTrainer):
    """A Trainer that notes the samples of every step."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.seen = [*getattr(self, "seen", []), inputs["x"]]
        return super().training_step(model, inputs, num_items_in_batch)


@pytest.mark.parametrize("data_seed", [None, 5])
def test_all_trainings_share_an_order_if_they_are_told_to(tmp_path, data_seed):
    orders = []
    for seed in (1, 2):
        seen = trained(Noting, tmp_path, seed=seed, data_seed=data_seed, logging_strategy="no").seen
        epochs = [torch.cat(seen[:3]), torch.cat(seen[3:])]
        assert not torch.equal(*epochs)
        for epoch in epochs:  # every sample once
            assert torch.equal(epoch.sort(0).values, Points().x.sort(0).values)
        orders.append(torch.cat(epochs))
    assert torch.equal(*orders) == (data_seed is not None)


def test_a_callback_may_stop_a_training(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 4

    bare, plain = (trained(kind, tmp_path, callbacks=[Stop()]) for kind in (BareSparseTrainer, SparseTrainer))
    assert bare.state.global_step == 4 and equal(state(bare.model), state(plain.model))


def test_other_data_are_read_again(tmp_path):
    bare = trained(Noting, tmp_path, num_train_epochs=1)
    bare.train_dataset = Points(20)
    bare.train_dataset.x += 100
    bare.train()
    assert [x.mean() > 90 for x in bare.seen] == [False] * 3 + [True] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"save_strategy": "epoch"}, "save_strategy must be no in a bare loop; received epoch. Use the plain"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps must be 1 in a bare loop; received 2"),
    ],
)
def test_what_needs_the_loop_of_the_trainer_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trained(BareSparseTrainer, tmp_path, **changes)


def test_data_that_are_no_tensors_are_refused(tmp_path):
    def collate(samples):
        return {"x": torch.stack([sample["x"] for sample in samples]), "labels": [0 for _ in samples]}

    data = {"train_dataset": Points(), "data_collator": collate}
    bare = BareSparseTrainer(model=net(), args=arguments(tmp_path, **SHARED), **data)
    with pytest.raises(ValueError, match="training data must be tensors .* received 'labels' of list"):
        bare.train()


@pytest.mark.parametrize("rewind", ["init", "epoch:1", "none"])
def test_a_search_finds_the_same_ticket(tmp_path, rewind):
    bare, plain = (
        trained(kind, tmp_path / kind.__name__, rewind=rewind, levels=2, sparsity=None)
        for kind in (BareLotteryTrainer, LotteryTrainer)
    )
    assert bare.ticket.mask == plain.ticket.mask and bare.ticket.mask.sparsity > 0.5
    assert equal(state(bare.model), state(plain.model))


@pytest.mark.parametrize("interpolation", ["step", "micro_batch", "none"])
def test_signs_are_found_with_the_same_alphas(tmp_path, interpolation, monkeypatch):
    drawn = []

    def noting(norms, initial, alpha):
        drawn.append(float(alpha))
        return interpolated_norms(norms, initial, alpha)

    monkeypatch.setattr("hf_lottery.hf.trainers.winning_sign_trainer.interpolated_norms", noting)
    found = {}
    for kind in (BareWinningSignTrainer, WinningSignTrainer):
        drawn.clear()
        given = {"levels": 1, "sparsity": None, "norm_interpolation": interpolation}
        found[kind] = trained(kind, tmp_path / kind.__name__, **given), drawn.copy()
    (bare, alphas), (plain, expected) = found.values()
    assert alphas == pytest.approx(expected, abs=1e-7)  # those of the bare loop have single precision
    assert len({*alphas}) == (0 if interpolation == "none" else 2 * 6)
    assert bare.signed.mask == plain.signed.mask
    assert_close(bare, plain)
