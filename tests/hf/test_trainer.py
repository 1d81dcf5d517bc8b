import itertools
import json
import shutil

import pytest
import torch
from small_task import KillAt, Killed, Net, Points, arguments, net
from torch import nn
from torch.func import functional_call
from transformers import Trainer, TrainerCallback, ViTConfig, ViTForImageClassification

from hf_lottery import (
    LotteryTrainer,
    Mask,
    MaskMismatchError,
    Snapshot,
    SparseTrainer,
    SparsityCallback,
    SparsityLeakError,
    Ticket,
    prunable,
)


def mask_for(model):
    generator = torch.Generator().manual_seed(2)
    return Mask({n: torch.rand(p.shape, generator=generator) > 0.6 for n, p in prunable(model).items()})


def trainer(folder, *, kill=None, own_score=None, model=None, **changes):
    callbacks = [KillAt(*kill)] if kill else []
    return LotteryTrainer(
        model=model or net(),
        args=arguments(folder, **changes),
        train_dataset=Points(),
        eval_dataset=Points(20),
        callbacks=callbacks,
        score=own_score,
    )


def weights_of(folder):
    return Snapshot.load(folder).sha256()


def state(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Record(TrainerCallback):
    def __init__(self):
        self.rates, self.logs = [], []

    def on_step_end(self, args, state, control, lr_scheduler=None, **kwargs):
        self.rates.append(lr_scheduler.get_last_lr()[0])

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


# --- SparseTrainer and SparsityCallback ---------------------------------------------------------------------------


@pytest.mark.parametrize("as_callback", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd", "adafactor"])
def test_trains_like_the_masked_forward(tmp_path, optim, bf16, accumulate, as_callback):
    args = arguments(
        tmp_path, optim=optim, max_grad_norm=0.1, bf16=bf16, gradient_accumulation_steps=accumulate, weight_decay=0.1
    )
    mask = mask_for(net())
    mask.save_pretrained(tmp_path / "mask")
    record, model = Record(), net()
    if as_callback:
        ours = Trainer(model, args, train_dataset=Points(), callbacks=[record, SparsityCallback(mask)])
    else:
        ours = SparseTrainer(model, args, train_dataset=Points(), callbacks=[record], mask=tmp_path / "mask")
    ours.train()

    class MaskedForward(Net):
        def forward(self, x, labels=None):
            keep = {name: p * mask[name] if name in mask else p for name, p in self.named_parameters()}
            return functional_call(super(), {}, (x, labels)) if not keep else _call(self, keep, x, labels)

    def _call(model, weights, x, labels):
        return functional_call(_Plain(model), {f"net.{n}": p for n, p in weights.items()}, (x, labels))

    class _Plain(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.net = inner

        def forward(self, x, labels):
            return Net.forward(self.net, x, labels)

    torch.manual_seed(1)
    reference = MaskedForward()
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


def test_first_step_resumes_the_schedule(tmp_path):
    rates = {}
    for first in (0, 4):
        record = Record()
        SparseTrainer(
            net(), arguments(tmp_path, warmup_steps=2), train_dataset=Points(), mask=mask_for(net()), first_step=first,
            callbacks=[record],
        ).train()  # fmt: skip
        rates[first] = record.rates
    assert len(rates[0]) == 6 and rates[4] == rates[0][4:]


def test_bad_masks_and_models(tmp_path):
    with pytest.raises(MaskMismatchError, match="'x' must name a parameter"):
        SparseTrainer(net(), arguments(tmp_path), mask=Mask({"x": torch.ones(2, dtype=torch.bool)}))
    with pytest.raises(FileNotFoundError, match="must hold mask_config.json"):
        SparseTrainer(net(), arguments(tmp_path), mask="no/such/folder")
    with pytest.raises(ValueError, match="step to start from must lie within training; received step 6 of 6"):
        SparseTrainer(net(), arguments(tmp_path), train_dataset=Points(), first_step=6).train()


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


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP"])
def test_sharded_training_is_refused(tmp_path, monkeypatch, kind):
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    ours = SparseTrainer(net(), arguments(tmp_path), train_dataset=Points())
    finder = trainer(tmp_path)
    monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType(kind))
    for refused in (
        lambda: SparsityCallback(mask_for(net())).on_train_begin(ours.args, ours.state, ours.control, model=net()),
        lambda: setattr(ours, "mask", mask_for(net())),
        finder.train,
    ):
        with pytest.raises(NotImplementedError, match=f"must be held on whole parameters; received {kind}"):
            refused()
    assert not list(tmp_path.iterdir())


# --- LotteryTrainer: levels -----------------------------------------------------------------------------------------


def test_levels_nest_hit_the_target_and_leave_a_ticket(tmp_path):
    ours = trainer(tmp_path)
    output = ours.train()
    n = prunable(net()).weights
    masks = [Mask.from_pretrained(tmp_path / f"level-{level:02d}") for level in range(4)]
    assert [mask.kept for mask in masks] == [n, n - round(0.3 * n), n - round(0.51 * n), n - round(0.6 * n)]
    assert all(a & b == b for a, b in itertools.pairwise(masks))
    ticket = Ticket.from_pretrained(tmp_path / "ticket")
    assert ticket.mask == masks[-1] == ours.mask == Mask.from_model(prunable(ours.model))
    assert [record["level"] for record in ours.history] == [0, 1, 2, 3]
    assert all("eval_loss" in record["metrics"] for record in ours.history)
    assert output.global_step == 6 and ours.args.output_dir == str(tmp_path)
    assert not list((tmp_path / "ticket").glob("*.bin"))


def test_init_rewinds_to_the_initial_weights_bit_for_bit(tmp_path):
    model = net()
    initial = Snapshot.capture(model)
    trainer(tmp_path, model=model).train()
    for level in range(4):
        assert weights_of(tmp_path / f"level-{level:02d}/rewind.safetensors") == initial.sha256()
    assert Ticket.from_pretrained(tmp_path / "ticket").rewind.step == 0


@pytest.mark.parametrize(("rewind", "step"), [("step:2", 2), ("epoch:1", 3), ("step:5", 5)])
def test_late_rewinding_restores_the_moment_and_its_schedule(tmp_path, rewind, step):
    moments, record = {}, Record()

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            moments.setdefault(state.global_step, Snapshot.capture(model).sha256())

    ours = trainer(tmp_path, rewind=rewind, warmup_steps=1)
    ours.add_callback(Watch())
    ours.add_callback(record)
    ours.train()
    for level in (1, 2, 3):
        assert weights_of(tmp_path / f"level-{level:02d}/rewind.safetensors") == moments[step]
    assert len(record.rates) == 6 + 3 * (6 - step)
    assert record.rates[6 : 6 + 6 - step] == record.rates[step:6]
    assert Ticket.from_pretrained(tmp_path / "ticket").rewind.step == step


def test_learning_rate_rewinding_keeps_weights_and_replays_the_schedule(tmp_path):
    ours, record = trainer(tmp_path, rewind="learning_rate"), Record()
    ours.add_callback(record)
    ours.train()
    assert record.rates[:6] == record.rates[6:12]
    for level in (1, 2, 3):
        trained = Net()
        trained.load_state_dict(_safetensors(tmp_path / f"level-{level - 1:02d}/trained"))
        assert weights_of(tmp_path / f"level-{level:02d}/rewind.safetensors") == Snapshot.capture(trained).sha256()


@pytest.mark.parametrize(("rate", "expected"), [(None, 0.001), (0.004, 0.004)])
def test_fine_tuning_trains_at_a_constant_rate(tmp_path, rate, expected):
    ours, record = trainer(tmp_path, rewind="none", fine_tuning_learning_rate=rate), Record()
    ours.add_callback(record)
    ours.train()
    assert record.rates[6:] == [pytest.approx(expected)] * 18
    assert ours.args.learning_rate == 0.01 and ours.args.lr_scheduler_type == "linear"


def test_every_log_record_says_level_and_sparsity(tmp_path):
    ours, record = trainer(tmp_path), Record()
    ours.add_callback(record)
    ours.train()
    assert {(log["level"], log["sparsity"]) for log in record.logs} == {(0, 0.0), (1, 0.3), (2, 0.51), (3, 0.6)}
    assert [log["level"] for log in record.logs if "eval_loss" in log] == [0, 1, 2, 3]


def test_the_progress_bar_says_the_level(tmp_path, capsys):
    trainer(tmp_path, disable_tqdm=False).train()
    shown = capsys.readouterr().err
    for level, sparsity in enumerate(("0.000", "0.300", "0.510", "0.600")):
        assert f"level {level}/3, sparsity {sparsity}" in shown


def test_data_order_differs_between_levels_and_repeats_between_runs(tmp_path):
    class Order(Points):
        def __init__(self):
            super().__init__()
            self.order = []

        def __getitem__(self, i):
            self.order.append(i)
            return super().__getitem__(i)

    orders = []
    for name in ("a", "b"):
        data = Order()
        LotteryTrainer(model=net(), args=arguments(tmp_path / name), train_dataset=data).train()
        orders.append([data.order[i : i + 96] for i in range(0, 96 * 4, 96)])
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders[0]}) == 4


@pytest.mark.parametrize("score", ["saliency", "wanda", "movement", "random"])
@pytest.mark.parametrize("scope", ["uniform", "erk", "global"])
@pytest.mark.parametrize("rewind", ["init", "learning_rate"])
def test_scores_and_scopes_and_rewinds_in_pairs(tmp_path, score, scope, rewind):
    ours = trainer(tmp_path, score=score, scope=scope, rewind=rewind, num_train_epochs=1, sparsity=0.4)
    ours.train()
    assert ours.mask.kept == pytest.approx(ours.mask.weights * 0.6, abs=1)


def test_own_score_min_density_include_and_2_of_4(tmp_path):
    upside_down = trainer(tmp_path / "a", own_score=lambda w, e: -w.detach().abs(), sparsity=0.5, schedule="one_shot")
    upside_down.train()
    plain = trainer(tmp_path / "b", sparsity=0.5, schedule="one_shot")
    plain.train()
    assert upside_down.mask == ~plain.mask
    floor = trainer(tmp_path / "c", sparsity=0.9, schedule="one_shot", min_density=0.1)
    floor.train()
    assert max(floor.mask.layer_sparsities().values()) <= 0.9
    two = trainer(tmp_path / "d", sparsity=0.5, schedule="one_shot", scope="2:4", include=["outer"])
    two.train()
    assert list(two.mask) == ["outer.weight"]
    assert (two.mask["outer.weight"].view(3, 5, 4).sum(2) == 2).all()


def test_model_init_is_called_once(tmp_path):
    calls = []

    def model_init():
        calls.append(1)
        return Net()

    LotteryTrainer(model_init=model_init, args=arguments(tmp_path), train_dataset=Points()).train()
    assert len(calls) == 1


def test_old_level_models_can_be_dropped(tmp_path):
    trainer(tmp_path, save_level_models=False).train()
    assert [(tmp_path / f"level-{level:02d}/trained").exists() for level in range(4)] == [False, False, False, True]


# --- LotteryTrainer: resuming ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["init", "step:2", "learning_rate"])
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    ours = trainer(folder, rewind=request.param)
    ours.train()
    return request.param, folder, ours


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("level", [0, 2])
def test_killed_at_any_step_and_resumed_is_bit_identical(tmp_path, whole, level, step):
    rewind, folder, expected = whole
    if rewind == "step:2" and level == 2 and step > 4:
        pytest.skip("a rewound level has four steps")
    with pytest.raises(Killed):
        trainer(tmp_path, kill=(level, step), rewind=rewind).train()
    resumed = trainer(tmp_path, model=net(77) if level else None, rewind=rewind)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.mask == expected.mask
    assert equal(state(resumed.model), state(expected.model))
    assert weights_of(tmp_path / "ticket/rewind.safetensors") == weights_of(folder / "ticket/rewind.safetensors")
    losses = [[record["metrics"]["eval_loss"] for record in run.history] for run in (resumed, expected)]
    assert losses[0] == losses[1]


def test_a_checkpoint_cut_off_while_it_was_written_is_passed_over(tmp_path, whole):
    rewind, _, expected = whole
    with pytest.raises(Killed):
        trainer(tmp_path, kill=(1, 4), rewind=rewind).train()
    last = sorted((tmp_path / "level-01").glob("checkpoint-*"))[-1]
    shutil.copytree(last, tmp_path / "level-01/checkpoint-99")
    (tmp_path / "level-01/checkpoint-99/trainer_state.json").unlink()
    (tmp_path / "level-01/checkpoint-99/model.safetensors").write_bytes(b"half")
    resumed = trainer(tmp_path, rewind=rewind)
    resumed.train(resume_from_checkpoint=True)
    assert equal(state(resumed.model), state(expected.model))


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, i):
        image = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(i))
        return {"pixel_values": image, "labels": int(image.mean() > 0)}


def vit(seed=1):
    """transformers saves a ViT under other names than its parameters have."""
    torch.manual_seed(seed)
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=8,
            patch_size=4,
            num_channels=1,
            hidden_dropout_prob=0.1,
        )
    )


@pytest.mark.parametrize("rewind", ["step:2", "learning_rate"])
def test_a_model_that_is_saved_under_other_names_resumes_too(tmp_path, rewind):
    def run(name, model, kill=None):
        return LotteryTrainer(
            model=model,
            args=arguments(tmp_path / name, rewind=rewind),
            train_dataset=Images(),
            eval_dataset=Images(),
            callbacks=[KillAt(*kill)] if kill else [],
        )

    whole = run("whole", vit())
    whole.train()
    for kill in ((0, 5), (2, 3)):
        with pytest.raises(Killed):
            run(f"killed-{kill}", vit(), kill).train()
        resumed = run(f"killed-{kill}", vit(9))
        resumed.train(resume_from_checkpoint=True)
        assert resumed.mask == whole.mask and equal(state(resumed.model), state(whole.model))
    again = run("whole", vit(7))
    again.train(resume_from_checkpoint=True)
    assert equal(state(again.model), state(whole.model))


def test_the_best_model_is_loaded_whole(tmp_path):
    args = arguments(
        tmp_path, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, metric_for_best_model="loss",
        greater_is_better=True, learning_rate=0.003,
    )  # fmt: skip
    ours = SparseTrainer(vit(), args, train_dataset=Images(), eval_dataset=Images(), mask=mask_for(vit()))
    ours.train()
    assert ours.state.best_global_step == 2  # the worst, so it is not where training ended
    best = ViTForImageClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert equal(state(ours.model), state(best))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    other = ViTForImageClassification(ViTConfig(**(vit().config.to_dict() | {"num_hidden_layers": 2})))
    for name, model in (("one", vit()), ("two", other)):
        Trainer(model, arguments(tmp_path / name, max_steps=2), train_dataset=Images()).train()
    (tmp_path / "one/checkpoint-2/config.json").write_text((tmp_path / "two/checkpoint-2/config.json").read_text())
    with pytest.raises(ValueError, match="must hold every weight; received none for"):
        SparseTrainer(vit(), arguments(tmp_path / "one"), train_dataset=Images()).train(resume_from_checkpoint=True)


def test_finished_levels_and_runs_are_skipped(tmp_path):
    trainer(tmp_path).train()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("level-*/*.safetensors")}
    again, record = trainer(tmp_path, model=net(5)), Record()
    again.add_callback(record)
    output = again.train(resume_from_checkpoint=True)
    assert not record.rates and output.global_step == 6 and len(again.history) == 4
    assert Mask.from_model(prunable(again.model)) == again.mask
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("level-*/*.safetensors")}


def test_a_run_is_never_overwritten(tmp_path):
    trainer(tmp_path).train()
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


def test_interrupted_state_file_is_never_half_written(tmp_path):
    trainer(tmp_path).train()
    state = json.loads((tmp_path / "lottery_state.json").read_text())
    assert len(state["finished"]) == 4 and state["settings"]["score"] == "magnitude"


@pytest.mark.parametrize("rewind", ["step:6", "step:100", "epoch:2"])
def test_rewind_beyond_training(tmp_path, rewind):
    with pytest.raises(ValueError, match="must lie within training; received step (6|100) of 6"):
        trainer(tmp_path, rewind=rewind).train()
    assert not list(tmp_path.iterdir())


def test_training_that_stops_before_the_rewind_step(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    ours = trainer(tmp_path, rewind="step:5")
    ours.add_callback(Stop())
    with pytest.raises(ValueError, match="received step 5, but training stopped at step 3"):
        ours.train()


def test_a_stream_of_data(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([Points()[i] for i in range(48)])

    def ours(name, **changes):
        return LotteryTrainer(model=net(), args=arguments(tmp_path / name, **changes), train_dataset=Stream())

    streamed = ours("a", max_steps=4, rewind="step:2")
    streamed.train()
    assert streamed.mask.sparsity == pytest.approx(0.6, abs=0.01)
    with pytest.raises(ValueError, match="epoch:1 must be given in steps here"):
        ours("c", max_steps=4, rewind="epoch:1").train()


def test_an_optimizer_for_all_levels_is_refused(tmp_path):
    model = net()
    with pytest.raises(ValueError, match="every level must make an optimizer and a schedule of its own"):
        LotteryTrainer(model=model, args=arguments(tmp_path), optimizers=(torch.optim.SGD(model.parameters()), None))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("bf16", [False, True])
def test_levels_under_compile_bf16_and_accumulation(tmp_path, bf16, accumulate):
    ours = trainer(
        tmp_path, torch_compile=True, torch_compile_backend="aot_eager", bf16=bf16, rewind="step:1",
        gradient_accumulation_steps=accumulate, sparsity=0.5,
    )  # fmt: skip
    ours.train()
    assert Mask.from_model(prunable(ours.model)) == ours.mask
    assert sorted(_safetensors(tmp_path / "level-02/trained")) == sorted(net().state_dict())


def test_a_schedule_that_cannot_be_resumed(tmp_path):
    with pytest.raises(ValueError, match="must be a function of the step to resume at step 2"):
        trainer(tmp_path, rewind="step:2", lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="epoch").train()


def test_plain_arguments_are_refused(tmp_path):
    from transformers import TrainingArguments

    with pytest.raises(TypeError, match="args must be LotteryArguments; received TrainingArguments"):
        LotteryTrainer(model=net(), args=TrainingArguments(output_dir=str(tmp_path)))
    with pytest.raises(ValueError, match="exactly one of sparsity and levels"):
        trainer(tmp_path, sparsity=None)
    with pytest.raises(NotImplementedError, match="hyperparameter search"):
        trainer(tmp_path).train(trial={"x": 1})


def _safetensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
