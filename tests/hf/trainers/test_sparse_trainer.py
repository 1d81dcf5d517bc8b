"""SparseTrainer: training with a mask that is held."""

import pytest
import torch
from small_searches import Images, Record, dropout_vit, equal, mask_for, state
from small_task import KillAt, Killed, Net, Points, arguments, net
from torch.func import functional_call
from transformers import Trainer, TrainerCallback, ViTConfig, ViTForImageClassification

from hf_lottery import (
    LotteryArguments,
    Mask,
    MaskMismatchError,
    SparseTrainer,
    SparsityCallback,
    SparsityLeakError,
    prunable,
)


class MaskedForward(Net):
    """The small network with the mask in its forward, which needs no help in training."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask
        self.plain = [Net()]  # a list, so that its parameters are not among those of this network

    def forward(self, x, labels=None):
        weights = {name: p * self.mask[name] if name in self.mask else p for name, p in self.named_parameters()}
        return functional_call(self.plain[0], {**weights, **dict(self.named_buffers())}, (x, labels))


@pytest.mark.parametrize(
    ("optim", "bf16", "accumulate", "as_callback"),  # every pair of two values occurs
    [
        ("adamw_torch_fused", False, 1, True),
        ("adamw_torch_fused", True, 2, False),
        ("sgd", False, 2, True),
        ("sgd", True, 1, False),
        ("adafactor", False, 2, False),
        ("adafactor", True, 1, True),
    ],
)
def test_trains_like_the_masked_forward(tmp_path, optim, bf16, accumulate, as_callback):
    args = arguments(
        tmp_path,
        optim=optim,
        max_grad_norm=0.1,
        bf16=bf16,
        gradient_accumulation_steps=accumulate,
        weight_decay=0.1,
        save_strategy="no",
    )
    mask = mask_for(net())
    mask.save_pretrained(tmp_path / "mask")
    record, model = Record(), net()
    if as_callback:
        ours = Trainer(model, args, train_dataset=Points(), callbacks=[record, SparsityCallback(mask)])
    else:
        ours = SparseTrainer(model, args, train_dataset=Points(), callbacks=[record], mask=tmp_path / "mask")
    ours.train()
    torch.manual_seed(1)
    reference = MaskedForward(mask)
    mask.apply_(reference)
    expected = Record()
    Trainer(reference, args, train_dataset=Points(), callbacks=[expected]).train()
    norms = [log["grad_norm"] for log in record.logs if "grad_norm" in log]
    assert norms and norms == [log["grad_norm"] for log in expected.logs if "grad_norm" in log]
    mask.apply_(reference)
    assert equal(state(model), state(reference))
    assert Mask.from_model(prunable(model)) == mask


def test_the_mask_is_saved_beside_the_model(tmp_path):
    mask = mask_for(net())
    ours = SparseTrainer(net(), arguments(tmp_path), train_dataset=Points(), mask=mask)
    ours.train()
    ours.save_model()
    assert Mask.from_pretrained(tmp_path) == Mask.from_pretrained(tmp_path / "checkpoint-6") == mask
    assert not any("mask" in name or "orig" in name for name in ours.model.state_dict())


def test_first_step_resumes_the_schedule(tmp_path):
    rates = {}
    for first in (0, 4):
        record = Record()
        args = arguments(tmp_path, warmup_steps=2, save_strategy="no")
        SparseTrainer(
            net(), args, train_dataset=Points(), mask=mask_for(net()), first_step=first, callbacks=[record]
        ).train()
        rates[first] = record.rates
    assert len(rates[0]) == 6 and rates[4] == rates[0][4:]


def test_bad_masks_and_models(tmp_path):
    with pytest.raises(MaskMismatchError, match="'x' must name a parameter"):
        SparseTrainer(net(), arguments(tmp_path), mask=Mask({"x": torch.ones(2, dtype=torch.bool)}))
    with pytest.raises(FileNotFoundError, match="must be a folder or the id of a repository on the Hub"):
        SparseTrainer(net(), arguments(tmp_path), mask="no/such/folder")
    for first in (6, -1):
        with pytest.raises(ValueError, match=f"start from must lie within training; received step {first} of 6"):
            SparseTrainer(net(), arguments(tmp_path), train_dataset=Points(), first_step=first).train()


def test_the_guard_speaks_at_the_end_of_training(tmp_path):
    class Tamper(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            with torch.no_grad():
                model.inner.weight.add_(1)

    ours = SparseTrainer(net(), arguments(tmp_path), train_dataset=Points(), mask=mask_for(net()), callbacks=[Tamper()])
    with pytest.raises(SparsityLeakError, match="'inner.weight' must be exactly 0"):
        ours.train()
    with pytest.raises(SparsityLeakError, match="must remove at least one weight"):
        SparseTrainer(net(), arguments(tmp_path), train_dataset=Points(), mask=Mask.dense(net())).train()


def test_another_mask_takes_the_place_of_the_first(tmp_path):
    first, model = mask_for(net()), net()
    ours = SparseTrainer(model, arguments(tmp_path), train_dataset=Points(), mask=first)
    ours.mask = ~first
    ours.train()
    assert Mask.from_model(prunable(model)) == ours.mask == ~first
    ours.mask = None
    ours.train()
    assert ours.mask is None and Mask.from_model(prunable(model)).sparsity < 0.1  # dead units keep their zeros


def test_only_the_process_that_saves_writes_the_mask(tmp_path, monkeypatch):
    ours = SparseTrainer(net(), arguments(tmp_path), mask=mask_for(net()))
    monkeypatch.setattr(LotteryArguments, "should_save", False)
    ours.save_model(tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (3, 6)),
        ({"num_train_epochs": 1.5}, (3, 5)),
        ({"gradient_accumulation_steps": 2}, (2, 4)),
        ({"max_steps": 4}, (3, 4)),
    ],
)
def test_steps_are_those_that_the_trainer_takes(tmp_path, changes, expected):
    ours = SparseTrainer(net(), arguments(tmp_path, save_strategy="no", **changes), train_dataset=Points())
    assert ours.count_steps() == expected
    assert ours.train().global_step == expected[1]


def test_the_best_model_is_loaded_whole(tmp_path):
    args = arguments(
        tmp_path, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, metric_for_best_model="loss",
        greater_is_better=True, learning_rate=0.003,
    )  # fmt: skip
    ours = SparseTrainer(
        dropout_vit(), args, train_dataset=Images(), eval_dataset=Images(), mask=mask_for(dropout_vit())
    )
    ours.train()
    assert ours.state.best_global_step == 2  # the worst, so it is not where training ended
    best = ViTForImageClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert equal(state(ours.model), state(best))


def test_weights_that_the_class_has_in_another_size_are_loaded(tmp_path, caplog):
    def model():
        made = dropout_vit()
        mlp = made.vit.layers[0].mlp  # narrower than its configuration says
        mlp.fc1, mlp.fc2 = torch.nn.Linear(16, 5), torch.nn.Linear(5, 16)
        return made

    trained = SparseTrainer(model(), arguments(tmp_path, max_steps=2), train_dataset=Images(), mask=mask_for(model()))
    trained.train()
    resumed = SparseTrainer(model(), arguments(tmp_path, max_steps=2), train_dataset=Images(), mask=mask_for(model()))
    resumed.train(resume_from_checkpoint=True)
    assert equal(state(resumed.model), state(trained.model))
    assert "MISMATCH" not in caplog.text


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    deeper = ViTForImageClassification(ViTConfig(**(dropout_vit().config.to_dict() | {"num_hidden_layers": 2})))
    Trainer(dropout_vit(), arguments(tmp_path, max_steps=2), train_dataset=Images()).train()
    with pytest.raises(ValueError, match="must hold every weight; received none for"):
        SparseTrainer(deeper, arguments(tmp_path), train_dataset=Images()).train(resume_from_checkpoint=True)


def test_a_resumed_sparse_training_is_the_same(tmp_path):
    mask, models = mask_for(net()), []
    for name, kill in (("whole", None), ("killed", 3)):
        model = net()
        args = arguments(tmp_path / name)
        callbacks = [KillAt(0, kill)] if kill else []
        args.output_dir = str(tmp_path / name / "level-00")
        sparse = SparseTrainer(model, args, train_dataset=Points(), mask=mask, callbacks=callbacks)
        if kill:
            with pytest.raises(Killed):
                sparse.train()
            model = net(9)
            SparseTrainer(model, args, train_dataset=Points(), mask=mask).train(resume_from_checkpoint=True)
        else:
            sparse.train()
        models.append(model)
    assert equal(state(models[0]), state(models[1]))


def test_an_interrupted_training_lets_go(tmp_path):
    model = net()
    sparse = SparseTrainer(
        model, arguments(tmp_path / "level-00"), train_dataset=Points(), mask=mask_for(model), callbacks=[KillAt(0, 2)]
    )
    with pytest.raises(Killed):
        sparse.train()
    sparse.mask = None
    sparse.remove_callback(KillAt)
    sparse.train()
    assert Mask.from_model(prunable(model)).sparsity < 0.1  # a dead unit may keep a few zeros


def test_an_optimizer_made_elsewhere_is_refused_with_shards(tmp_path, monkeypatch):
    class Mine(SparseTrainer):
        def create_optimizer(self, model=None):
            self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
            return self.optimizer

    ours = Mine(net(), arguments(tmp_path), train_dataset=Points())
    ours.create_optimizer()
    monkeypatch.setattr(ours, "is_fsdp_enabled", True)
    with pytest.raises(NotImplementedError, match=r"must call super\(\).create_optimizer\(\) with sharded parameters;"):
        ours.create_scheduler(6)
