"""LotteryTrainer: levels, rewinding, and what is refused."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from small_searches import Record, Watch, quick, trained_weights, trainer, weights, weights_of
from small_task import Net, Points, arguments, net
from transformers import TrainerCallback, TrainingArguments

from hf_lottery import LotteryTrainer, Mask, Ticket, prunable
from hf_lottery.hf.trainers.run_folder import RunFolder
from hf_lottery.masks.file import MASK_NAME


def test_levels_nest_hit_the_target_and_leave_a_ticket(finished):
    found = finished("init")
    tmp_path, ours, output = found.folder, found.search, found.output
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
    about = ticket.info["about"]
    assert about.keys() == {"changed", "versions", "date", "hardware"} and "learning_rate" in about["changed"]
    assert ticket.info == {
        "level": 3, "architecture": "Net", "defined_in": "small_task", "settings": ours.get_settings(),
        "history": ours.history, "about": about,
    }  # fmt: skip
    assert not list((tmp_path / "ticket").glob("*.bin"))
    assert not list(tmp_path.glob("**/checkpoint-*"))


def test_init_rewinds_to_the_initial_weights_bit_for_bit(finished):
    folder = finished("init").folder
    for level in range(4):
        assert weights_of(folder / f"level-{level:02d}/rewind.safetensors") == weights(net())
    assert Ticket.from_pretrained(folder / "ticket").start.step == 0


@pytest.mark.parametrize("rewind", ["init", "step:2", "learning_rate"])
def test_every_level_trains_from_its_ticket(finished, rewind):
    found = finished(rewind)
    starts = found.watch.starts
    for level in range(4):
        expected = Net()
        Ticket.from_pretrained(found.folder / f"level-{level:02d}").apply_(expected)
        assert starts[level] == weights(expected)
    assert len(starts) == 4


@pytest.mark.parametrize(("rewind", "step"), [("epoch:1", 3), pytest.param("step:5", 5, marks=pytest.mark.slow)])
def test_late_rewinding_restores_the_moment_and_its_schedule(tmp_path, rewind, step):
    watch, record = Watch(), Record()
    quick(
        tmp_path, num_train_epochs=2, levels=2, sparsity=None, rewind=rewind, warmup_steps=1, callbacks=[watch, record]
    ).train()
    check_late_rewinding(tmp_path, watch, record, step, levels=2)


def test_late_rewinding_to_a_step(finished):
    found = finished("step:2")
    check_late_rewinding(found.folder, found.watch, found.record, 2, levels=3)


def check_late_rewinding(folder, watch, record, step, *, levels):
    for level in range(1, levels + 1):
        assert weights_of(folder / f"level-{level:02d}/rewind.safetensors") == watch.moments[step]
    assert len(record.rates) == 6 + levels * (6 - step)
    assert record.rates[6 : 6 + 6 - step] == record.rates[step:6]
    assert Ticket.from_pretrained(folder / "ticket").start.step == step


def test_learning_rate_rewinding_keeps_weights_and_replays_the_schedule(finished):
    found = finished("learning_rate")
    record = found.record
    assert record.rates[:6] == record.rates[6:12]
    for level in (1, 2, 3):
        trained = Net()
        trained.load_state_dict(trained_weights(found.folder / f"level-{level - 1:02d}/trained"))
        assert weights_of(found.folder / f"level-{level:02d}/rewind.safetensors") == weights(trained)


@pytest.mark.parametrize(("rate", "expected"), [(None, 0.001), (0.004, 0.004)])
def test_fine_tuning_trains_at_a_constant_rate(tmp_path, rate, expected):
    record = Record()
    ours = quick(tmp_path, rewind="none", fine_tuning_learning_rate=rate, levels=2, sparsity=None, callbacks=[record])
    ours.train()
    assert len(set(record.rates[:3])) == 3 and record.rates[3:] == [pytest.approx(expected)] * 6
    assert ours.args.learning_rate == 0.01 and ours.args.lr_scheduler_type == "linear"


def test_every_log_record_says_level_and_sparsity(finished):
    record = finished("init").record
    found = {(log["level"], round(log["sparsity"], 2)) for log in record.logs}
    assert found == {(0, 0.0), (1, 0.3), (2, 0.51), (3, 0.6)}
    assert [log["level"] for log in record.logs if "eval_loss" in log] == [0, 1, 2, 3]


def test_the_progress_bar_says_the_level(finished):
    shown = finished("init").shown
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
        args = arguments(tmp_path / name, sparsity=None, levels=2, save_strategy="no", num_train_epochs=1)
        LotteryTrainer(model=net(), args=args, train_dataset=data).train()
        trained = data.order[-48 * 3 :]  # before it, some samples are read to know the data again
        orders.append([trained[i : i + 48] for i in range(0, 48 * 3, 48)])
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders[0]}) == 3


def test_full_determinism_and_keys_to_ignore_reach_every_level(tmp_path, monkeypatch):
    seeds, ignored = [], []

    class Spy(LotteryTrainer):
        def evaluate(self, *args, ignore_keys=None, **kwargs):
            ignored.append(ignore_keys)
            return super().evaluate(*args, ignore_keys=ignore_keys, **kwargs)

    monkeypatch.setattr("transformers.trainer.enable_full_determinism", lambda seed: None)
    monkeypatch.setattr("hf_lottery.hf.trainers.lottery_trainer.enable_full_determinism", seeds.append)
    args = arguments(
        tmp_path, full_determinism=True, num_train_epochs=1, eval_strategy="epoch", save_strategy="no", sparsity=0.5
    )
    Spy(model=net(), args=args, train_dataset=Points(), eval_dataset=Points(20)).train(ignore_keys_for_eval=["x"])
    assert len(set(seeds)) == 3 and ignored == [["x"]] * 6


def test_model_init_is_called_once(tmp_path):
    calls = []

    def model_init():
        calls.append(1)
        return Net()

    args = arguments(tmp_path, sparsity=0.3, num_train_epochs=1)
    LotteryTrainer(model_init=model_init, args=args, train_dataset=Points()).train()
    assert len(calls) == 1


@pytest.mark.parametrize(("models", "checkpoints"), [*itertools.product([False, True], repeat=2)])
def test_models_and_checkpoints_of_finished_levels_can_be_kept_or_not(tmp_path, models, checkpoints):
    kept = {"save_level_models": models, "save_level_checkpoints": checkpoints}
    quick(tmp_path, **kept, levels=2, sparsity=None, save_strategy="epoch").train()
    folders = [tmp_path / f"level-{level:02d}" for level in range(3)]
    assert [(folder / "trained").exists() for folder in folders] == [models, models, True]
    assert [any(folder.glob("checkpoint-*")) for folder in folders] == [checkpoints] * 3
    for folder in folders[1 if models else 2 :]:  # level 0 has no mask beside its model
        assert Mask.from_pretrained(folder / "trained") == Mask.from_pretrained(folder)
        assert (folder / "trained" / MASK_NAME).samefile(folder / MASK_NAME)


def test_what_a_killed_process_did_not_clean_is_cleaned_by_the_next(tmp_path, monkeypatch):
    changes = {"save_level_models": False, "save_strategy": "epoch"}
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "clean", lambda self, **kept: None)  # as if it was killed before each time
        quick(tmp_path, **changes).train()
    before = quick(tmp_path, **changes)
    assert len(list(tmp_path.glob("level-*/trained"))) == 2 and list(tmp_path.glob("level-01/checkpoint-*"))
    before.train(resume_from_checkpoint=True)
    assert [path.parent.name for path in tmp_path.glob("level-*/trained")] == ["level-01"]
    assert not list(tmp_path.glob("level-01/checkpoint-*"))


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

    streamed = ours("a", max_steps=4, rewind="step:2", schedule="one_shot")
    streamed.train()
    assert streamed.mask.sparsity == pytest.approx(0.6, abs=0.01)
    with pytest.raises(ValueError, match="rewind must be in steps for a stream.*received epoch:1"):
        ours("c", max_steps=4, rewind="epoch:1").train()


def test_an_optimizer_for_all_levels_is_refused(tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters())
    for optimizers in ((optimizer, None), (None, torch.optim.lr_scheduler.ConstantLR(optimizer))):
        with pytest.raises(ValueError, match="every level must make its own optimizer and schedule"):
            LotteryTrainer(model=model, args=arguments(tmp_path), optimizers=optimizers)


@pytest.mark.parametrize(
    ("bf16", "accumulate"),
    [(True, 2), *(pytest.param(*values, marks=pytest.mark.slow) for values in ((False, 1), (False, 2), (True, 1)))],
)
def test_levels_under_compile_bf16_and_accumulation(tmp_path, bf16, accumulate):
    ours = trainer(
        tmp_path, torch_compile=True, torch_compile_backend="aot_eager", bf16=bf16, rewind="step:1",
        gradient_accumulation_steps=accumulate, sparsity=0.5,
    )  # fmt: skip
    ours.train()
    assert Mask.from_model(prunable(ours.model)) == ours.mask
    assert sorted(trained_weights(tmp_path / "level-02/trained")) == sorted(net().state_dict())


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_a_schedule_that_cannot_be_resumed(tmp_path, schedule):
    changes = {"lr_scheduler_type": schedule, "eval_strategy": "epoch"}
    with pytest.raises(ValueError, match="must depend only on the step to resume at step 2"):
        trainer(tmp_path, rewind="step:2", **changes).train()
    trainer(tmp_path, **changes).check_step(0, 6)


def test_plain_arguments_are_refused(tmp_path):
    with pytest.raises(TypeError, match="args must be LotteryArguments; received TrainingArguments"):
        LotteryTrainer(model=net(), args=TrainingArguments(output_dir=str(tmp_path)))
    with pytest.raises(ValueError, match="exactly one of sparsity and levels"):
        trainer(tmp_path, sparsity=None)
    with pytest.raises(NotImplementedError, match="hyperparameter search"):
        trainer(tmp_path).train(trial={"x": 1})


@pytest.mark.parametrize("name", ["bf16_full_eval", "fp16_full_eval"])
def test_evaluation_must_not_cast_the_weights(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} must be off.*received True"):
        trainer(tmp_path, **{name: True})


@pytest.mark.parametrize("given", [{"mask": Mask({"x": torch.ones(1, dtype=torch.bool)})}, {"first_step": 3}])
def test_a_search_takes_no_mask(tmp_path, given):
    with pytest.raises(TypeError, match=f"must find its own mask; received {next(iter(given))}"):
        LotteryTrainer(model=net(), args=arguments(tmp_path), train_dataset=Points(), **given)


def test_a_config_that_is_not_of_transformers_is_left_out(tmp_path):
    model = net()
    model.config = SimpleNamespace(hidden=20, use_cache=False, to_json_string=lambda: "{}")
    trainer(tmp_path, model=model, num_train_epochs=1, sparsity=0.3).train()
    assert Ticket.from_pretrained(tmp_path / "ticket").model_config is None
