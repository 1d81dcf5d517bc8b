import itertools
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from small_task import KillAt, Killed, Net, Points, arguments, net, vit
from torch import nn
from torch.func import functional_call
from transformers import Trainer, TrainerCallback, ViTConfig, ViTForImageClassification

from hf_lottery import (
    LotteryArguments,
    LotteryTrainer,
    Mask,
    MaskMismatchError,
    Snapshot,
    SparseTrainer,
    SparsityCallback,
    SparsityLeakError,
    Ticket,
    gather_evidence,
    movement,
    needs,
    prunable,
    prune,
    saliency,
    score_weights,
    wanda,
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


def test_a_finished_training_lets_go_also_after_an_interrupted_one(tmp_path):
    kill, model = KillAt(0, 2), net()
    sparse = SparsityCallback(mask_for(net()))
    ours = Trainer(model, arguments(tmp_path / "level-00"), train_dataset=Points(), callbacks=[kill, sparse])
    with pytest.raises(Killed):
        ours.train()
    ours.remove_callback(kill)
    ours.train()
    assert not model.inner.weight._post_accumulate_grad_hooks and not model.outer.weight._post_accumulate_grad_hooks


def test_another_mask_takes_the_place_of_the_first(tmp_path):
    first, model = mask_for(net()), net()
    ours = SparseTrainer(model, arguments(tmp_path), train_dataset=Points(), mask=first)
    ours.mask = ~first
    ours.train()
    assert Mask.from_model(prunable(model)) == ours.mask == ~first
    ours.mask = None
    ours.train()
    assert ours.mask is None and Mask.from_model(prunable(model)).sparsity < 0.1  # dead units keep their zeros


def test_a_callback_can_keep_one_bit_a_weight():
    for packed, kind in ((True, "_PackedMask"), (False, "_FloatMask")):
        callback = SparsityCallback(mask_for(net()), packed=packed)
        callback.on_train_begin(None, None, None, model=net())
        assert {type(kept).__name__ for _, kept in callback.handle.bound.values()} == {kind}
        callback.release()


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
    ours = SparseTrainer(net(), arguments(tmp_path, **changes), train_dataset=Points())
    assert ours.count_steps() == expected
    assert ours.train().global_step == expected[1]


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP version 1", "MEGATRON_LM"])
def test_weights_out_of_their_shapes_are_refused(tmp_path, monkeypatch, kind):
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    ours = SparseTrainer(net(), arguments(tmp_path), train_dataset=Points())
    finder = trainer(tmp_path)
    if kind == "FSDP version 1":
        monkeypatch.setitem(AcceleratorState._shared_state, "fsdp_plugin", SimpleNamespace(fsdp_version=1))
    else:
        monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType(kind))
    for refused in (
        lambda: SparsityCallback(mask_for(net())).on_train_begin(ours.args, ours.state, ours.control, model=net()),
        lambda: setattr(ours, "mask", mask_for(net())),
        finder.train,
    ):
        with pytest.raises(NotImplementedError, match=f"in their own shapes; received {kind}"):
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
    assert output.metrics == ours.history[-1]["metrics"] and output.training_loss == output.metrics["train_loss"]
    assert ticket.info == {
        "level": 3, "architecture": "Net", "settings": ours.get_settings(), "history": ours.history,
    }  # fmt: skip
    assert not list((tmp_path / "ticket").glob("*.bin"))
    assert len(list(tmp_path.glob("level-*/checkpoint-6"))) == 4 and not list(tmp_path.glob("checkpoint-*"))


def test_init_rewinds_to_the_initial_weights_bit_for_bit(tmp_path):
    model = net()
    initial = Snapshot.capture(model)
    trainer(tmp_path, model=model).train()
    for level in range(4):
        assert weights_of(tmp_path / f"level-{level:02d}/rewind.safetensors") == initial.sha256()
    assert Ticket.from_pretrained(tmp_path / "ticket").start.step == 0


@pytest.mark.parametrize("rewind", ["init", "step:2", "learning_rate"])
def test_every_level_trains_from_its_ticket(tmp_path, rewind):
    starts = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 0:
                starts.append(Snapshot.capture(model).sha256())

    ours = trainer(tmp_path, rewind=rewind)
    ours.add_callback(Watch())
    ours.train()
    for level in range(4):
        expected = Net()
        Ticket.from_pretrained(tmp_path / f"level-{level:02d}").apply_(expected)
        assert starts[level] == Snapshot.capture(expected).sha256()
    assert len(starts) == 4


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
    assert Ticket.from_pretrained(tmp_path / "ticket").start.step == step


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
    assert len(set(record.rates[:6])) == 6 and record.rates[6:] == [pytest.approx(expected)] * 18
    assert ours.args.learning_rate == 0.01 and ours.args.lr_scheduler_type == "linear"


def test_every_log_record_says_level_and_sparsity(tmp_path):
    ours, record = trainer(tmp_path), Record()
    ours.add_callback(record)
    ours.train()
    found = {(log["level"], round(log["sparsity"], 2)) for log in record.logs}
    assert found == {(0, 0.0), (1, 0.3), (2, 0.51), (3, 0.6)}
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
    assert Mask.from_pretrained(tmp_path / "level-01") & ours.mask == ours.mask


@pytest.mark.parametrize("score", [movement, saliency, wanda])
def test_scores_are_of_the_trained_model_and_the_start_of_its_level(tmp_path, score):
    ours = trainer(tmp_path, score=score.__name__, sparsity=0.5, schedule="one_shot")
    ours.train()
    model, data = Net(), Points()
    model.load_state_dict(_safetensors(tmp_path / "level-00/trained"))
    weights, start = prunable(model), Snapshot.load(tmp_path / "level-00/rewind.safetensors")
    batch = {"x": data.x, "labels": data.labels}
    evidence = gather_evidence(model, [batch], lambda m, b: m(**b)["loss"], within=weights)
    evidence = {name: known._replace(start=start.tensors[name]) for name, known in evidence.items()}
    assert ours.mask.overlap(prune(score_weights(weights, score, evidence=evidence), 0.5)).iou > 0.95


def test_an_own_score_is_given_the_evidence_that_it_declares(tmp_path):
    seen = []
    model = net()
    initial = Snapshot.capture(model).tensors["inner.weight"]

    @needs("gradient", "input_norm", "start")
    def own_score(weight, evidence):
        seen.append(evidence)
        return weight.abs()

    own = trainer(tmp_path, model=model, own_score=own_score, sparsity=0.5, schedule="one_shot")
    seen.clear()  # the dry call
    own.train()
    inner, outer = seen
    assert torch.equal(inner.start, initial) and inner.gradient.shape == initial.shape
    assert (inner.input_norm.shape, outer.input_norm.shape) == ((1, 6), (1, 20))
    with pytest.raises(ValueError, match="received score='magnitude' instead of 'own_score'"):
        trainer(tmp_path, sparsity=0.5, schedule="one_shot").train(resume_from_checkpoint=True)


def test_evidence_is_of_as_many_batches_as_asked(tmp_path, monkeypatch):
    taken = []

    def spy(model, batches, loss, **options):
        taken.append(list(batches))
        return gather_evidence(model, taken[-1], loss, **options)

    monkeypatch.setattr("hf_lottery.hf.trainers.level_pruning.gather_evidence", spy)
    trainer(tmp_path, score="saliency", score_batches=2, num_train_epochs=1).train()
    assert [len(batches) for batches in taken] == [2, 2, 2]


def test_a_random_mask_depends_on_the_seed_alone(tmp_path):
    masks = []
    for name, changes in (("a", {}), ("b", {"num_train_epochs": 2}), ("c", {"seed": 7})):
        settings = {"score": "random", "sparsity": 0.5, "schedule": "one_shot", "num_train_epochs": 1} | changes
        ours = trainer(tmp_path / name, **settings)
        ours.train()
        masks.append(ours.mask)
    assert masks[0] == masks[1] != masks[2]


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


def test_include_and_exclude_select_the_weights(tmp_path):
    assert list(trainer(tmp_path, include=["outer"]).weights) == ["outer.weight"]
    assert list(trainer(tmp_path, exclude=["outer"]).weights) == ["inner.weight"]


def test_full_determinism_and_keys_to_ignore_reach_every_level(tmp_path, monkeypatch):
    seeds, ignored = [], []

    class Spy(LotteryTrainer):
        def evaluate(self, *args, ignore_keys=None, **kwargs):
            ignored.append(ignore_keys)
            return super().evaluate(*args, ignore_keys=ignore_keys, **kwargs)

    monkeypatch.setattr("transformers.trainer.enable_full_determinism", lambda seed: None)
    monkeypatch.setattr("hf_lottery.hf.trainers.lottery_trainer.enable_full_determinism", seeds.append)
    args = arguments(tmp_path, full_determinism=True, num_train_epochs=1, eval_strategy="epoch")
    Spy(model=net(), args=args, train_dataset=Points(), eval_dataset=Points(20)).train(ignore_keys_for_eval=["x"])
    assert len(set(seeds)) == 4 and ignored == [["x"]] * 8


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
    resumed = trainer(tmp_path, model=net(77), rewind=rewind)
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
    (tmp_path / "level-01/checkpoint-99/lottery_checkpoint.json").unlink()
    (tmp_path / "level-01/checkpoint-99/model.safetensors").write_bytes(b"half")
    resumed, record, steps = trainer(tmp_path, rewind=rewind), Record(), 4 if rewind == "step:2" else 6
    resumed.add_callback(record)
    resumed.train(resume_from_checkpoint=True)
    assert len(record.rates) == steps - 2 + 2 * steps  # it went on from checkpoint-2
    assert equal(state(resumed.model), state(expected.model))


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, i):
        image = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(i))
        return {"pixel_values": image, "labels": int(image.mean() > 0)}


def dropout_vit(seed=1):
    """transformers saves a ViT under other names than its parameters have."""
    return vit(seed, hidden_dropout_prob=0.1)


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

    whole = run("whole", dropout_vit())
    whole.train()
    assert Ticket.from_pretrained(tmp_path / "whole/ticket").model_config.hidden_size == 16
    for kill in ((0, 5), (2, 3)):
        with pytest.raises(Killed):
            run(f"killed-{kill}", dropout_vit(), kill).train()
        resumed = run(f"killed-{kill}", dropout_vit(9))
        resumed.train(resume_from_checkpoint=True)
        assert resumed.mask == whole.mask and equal(state(resumed.model), state(whole.model))
    again = run("whole", dropout_vit(7))
    again.train(resume_from_checkpoint=True)
    assert equal(state(again.model), state(whole.model))


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


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    other = ViTForImageClassification(ViTConfig(**(dropout_vit().config.to_dict() | {"num_hidden_layers": 2})))
    for name, model in (("one", dropout_vit()), ("two", other)):
        Trainer(model, arguments(tmp_path / name, max_steps=2), train_dataset=Images()).train()
    (tmp_path / "one/checkpoint-2/config.json").write_text((tmp_path / "two/checkpoint-2/config.json").read_text())
    with pytest.raises(ValueError, match="must hold every weight; received none for"):
        SparseTrainer(dropout_vit(), arguments(tmp_path / "one"), train_dataset=Images()).train(
            resume_from_checkpoint=True
        )


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


def test_a_run_that_was_killed_in_its_first_level_is_a_run(tmp_path):
    with pytest.raises(Killed):
        trainer(tmp_path, kill=(0, 1)).train()
    with pytest.raises(FileExistsError, match="must not hold a run already"):
        trainer(tmp_path).train()


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
    optimizer = torch.optim.SGD(model.parameters())
    for optimizers in ((optimizer, None), (None, torch.optim.lr_scheduler.ConstantLR(optimizer))):
        with pytest.raises(ValueError, match="every level must make an optimizer and a schedule of its own"):
            LotteryTrainer(model=model, args=arguments(tmp_path), optimizers=optimizers)


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


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_a_schedule_that_cannot_be_resumed(tmp_path, schedule):
    changes = {"lr_scheduler_type": schedule, "eval_strategy": "epoch"}
    with pytest.raises(ValueError, match="must be a function of the step to resume at step 2"):
        trainer(tmp_path, rewind="step:2", **changes).train()
    trainer(tmp_path, **changes).check_step(0, 6)


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


# --- what is refused or released --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bf16_full_eval", "fp16_full_eval"])
def test_evaluation_must_not_cast_the_weights(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} must be off.*received True"):
        trainer(tmp_path, **{name: True})


@pytest.mark.parametrize("given", [{"mask": Mask({"x": torch.ones(1, dtype=torch.bool)})}, {"first_step": 3}])
def test_a_search_takes_no_mask(tmp_path, given):
    with pytest.raises(TypeError, match=f"must find its own mask; received {next(iter(given))}"):
        LotteryTrainer(model=net(), args=arguments(tmp_path), train_dataset=Points(), **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scope": "2:4", "include": ["outer"]}, r"level 1, sparsity 0.3, cannot be pruned: .*1 - 2/4"),
        ({"scope": "erk", "min_density": 0.5, "sparsity": 0.9}, "level . cannot be pruned|cannot be pruned: "),
        ({"pruning_fraction": 0.001, "sparsity": 0.01}, "level 1 must remove weights"),
        ({"score": "saliency", "frozen": True}, "saliency must be able to train 'inner.weight'; received a frozen one"),
    ],
)
def test_what_cannot_be_pruned_is_refused_before_training(tmp_path, changes, message):
    model = net()
    model.inner.weight.requires_grad_(not changes.pop("frozen", False))
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, model=model, **changes)


def test_2_of_4_runs_along_the_inputs_of_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

    from hf_lottery import prune, score_weights

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    weights = prunable(GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=8, vocab_size=20)))
    args = arguments("unused", scope="2:4")
    mask = prune(score_weights(weights), 0.5, scope=args.get_scope(kinds=weights.kinds))
    assert (mask["transformer.h.0.mlp.c_fc.weight"].T.reshape(-1, 4).sum(1) == 2).all()
    moe = prunable(MixtralForCausalLM(MixtralConfig(**sizes, intermediate_size=16, num_local_experts=2)))
    with pytest.raises(ValueError, match="must know the input axis of every weight; received stacked experts"):
        args.get_scope(kinds=moe.kinds)


def test_wanda_cannot_see_experts(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    model = MixtralForCausalLM(
        MixtralConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20, intermediate_size=16)
    )
    with pytest.raises(ValueError, match="wanda must see the input of a weight; received 'model.layers.0.mlp.experts"):
        trainer(tmp_path, model=model, score="wanda")


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


def test_weights_only_checkpoints_restart_the_level(tmp_path, whole):
    rewind, _, expected = whole
    with pytest.raises(Killed):
        trainer(tmp_path, kill=(1, 4), rewind=rewind, save_only_model=True).train()
    assert list((tmp_path / "level-01").glob("checkpoint-*"))
    resumed = trainer(tmp_path, rewind=rewind)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.mask == expected.mask and equal(state(resumed.model), state(expected.model))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"weight_decay": 0.5}, "weight_decay"),
        ({"adam_beta1": 0.5}, "adam_beta1"),
        ({"adam_epsilon": 1e-3}, "adam_epsilon"),
        ({"include": ["inner"]}, "include"),
    ],
)
def test_every_setting_that_changes_weights_is_compared(tmp_path, changes, name):
    trainer(tmp_path, num_train_epochs=1, sparsity=0.3).train()
    with pytest.raises(ValueError, match=f"settings it began with; received {name}="):
        trainer(tmp_path, num_train_epochs=1, sparsity=0.3, **changes).train(resume_from_checkpoint=True)
    again = trainer(tmp_path, num_train_epochs=1, sparsity=0.3, logging_steps=7, save_steps=50, disable_tqdm=True)
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


def test_levels_without_a_state_are_refused(tmp_path):
    trainer(tmp_path, num_train_epochs=1, sparsity=0.3).train()
    (tmp_path / "lottery_state.json").unlink()
    with pytest.raises(FileExistsError, match=r"must not hold levels without lottery_state.json; received .*level-00"):
        trainer(tmp_path, num_train_epochs=1, sparsity=0.3).train(resume_from_checkpoint=True)


def test_a_config_that_is_not_of_transformers_is_left_out(tmp_path):
    model = net()
    model.config = SimpleNamespace(hidden=20, use_cache=False, to_json_string=lambda: "{}")
    trainer(tmp_path, model=model, num_train_epochs=1, sparsity=0.3).train()
    assert Ticket.from_pretrained(tmp_path / "ticket").model_config is None


def test_an_optimizer_made_elsewhere_is_refused_with_shards(tmp_path):
    class Mine(SparseTrainer):
        def create_optimizer(self, model=None):
            self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
            return self.optimizer

    ours = Mine(net(), arguments(tmp_path), train_dataset=Points())
    ours.create_optimizer()
    with pytest.raises(NotImplementedError, match=r"must call super\(\).create_optimizer\(\) with sharded parameters;"):
        ours._take_shards()
