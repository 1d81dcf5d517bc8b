"""The plan of a search against the search."""

import json
import random

import numpy as np
import pytest
import torch
from small_task import Net, Points, arguments, net, vit
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import PreTrainedTokenizerFast, Trainer, ViTForImageClassification, default_data_collator, set_seed
from transformers import trainer as transformers_trainer

from hf_lottery import LotteryTrainer, Snapshot, WinningSignTrainer
from hf_lottery.hf.plan.search import plan_search
from hf_lottery.hf.plan.sizes import series_files
from hf_lottery.hf.trainers.run_folder import RunFolder


class Wide(Net):
    """The small network with enough weights to outweigh files of a fixed size."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm = nn.Linear(6, 200), nn.BatchNorm1d(200)
        self.outer = nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 3))


class Images(Points):
    """Points as images, for a vision transformer."""

    def __getitem__(self, i):
        return {"pixel_values": self.x[i].repeat(11)[:64].reshape(1, 8, 8), "labels": self.labels[i] % 2}


def trainer(folder, *, kind=LotteryTrainer, model=None, data=None, extra=None, **changes):
    torch.manual_seed(1)
    return kind(
        model=model or Wide(),
        args=arguments(folder, **changes),
        train_dataset=data or Points(),
        eval_dataset=data or Points(20),
        **(extra or {}),
    )


def part_of(path):
    """Which part of a plan a file belongs to."""
    if "level-" not in path.parts[0]:
        names = {"ticket": "ticket", "signed": "signed mask", "lottery_state.json": "state"}
        return names.get(path.parts[0], "starting weights")
    folder = path.parts[1]
    if folder == "trained":
        return "trained models"
    return "checkpoints" if folder.startswith("checkpoint") else "masks" if "mask" in folder else "starting weights"


def sizes(folder):
    """Bytes of each part of a run, a file with several names once."""
    files = {path.stat().st_ino: path for path in sorted(folder.rglob("*"), reverse=True) if path.is_file()}
    found = {}
    for path in files.values():
        part = part_of(path.relative_to(folder))
        found[part] = found.get(part, 0) + path.stat().st_size
    return found


ESTIMATED = ("ticket", "signed mask", "state")  # they hold text that is of what a run finds; the others are counted
MOMENTUM = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9})}
EPOCHS = {"dense_epochs": 3, "level_epochs": 1, "final_run": True}
RUNS = {
    "adam": {},
    "last model": {"save_level_models": False},
    "two checkpoints": {"save_total_limit": 2, "save_steps": 1, "save_level_checkpoints": True},
    "all checkpoints, last model": {"save_steps": 1, "save_level_checkpoints": True, "save_level_models": False},
    "a checkpoint an epoch": {"save_strategy": "epoch", "rewind": "step:2"},
    "a checkpoint a fraction": {"save_steps": 0.4, "rewind": "step:1", "optim": "sgd"},
    "no checkpoints": {"save_strategy": "no"},
    "weights only": {"save_only_model": True},
    "momentum": {"extra": MOMENTUM},
    "adafactor": {"optim": "adafactor"},
    "learning_rate": {"rewind": "learning_rate"},
    "none": {"rewind": "none", "save_strategy": "no", "save_level_models": False},
    "epoch": {"rewind": "epoch:1", "gradient_accumulation_steps": 2, "num_train_epochs": 3},
    "max_steps": {"max_steps": 5, "rewind": "step:2"},
    "final run": {**EPOCHS, "save_steps": 1, "save_total_limit": 1},
    "many logs": {"num_train_epochs": 20, "save_steps": 60, "eval_strategy": "steps", "eval_steps": 1},
    "signs": {"kind": WinningSignTrainer, "save_strategy": "no"},
    "signs with a final run": {"kind": WinningSignTrainer, **EPOCHS},
}


# With these every kind of file, of rewinding and of trainer occurs.
QUICK = ("last model", "two checkpoints", "a checkpoint a fraction", "signs with a final run")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in RUNS])
def test_disk_and_steps_are_as_planned(tmp_path, name, monkeypatch):
    ours = trainer(tmp_path, **RUNS[name])
    plan, peaks = plan_search(ours), [0]

    def watched(delete):  # more lies there before something is deleted than afterwards
        def measured(*args, **kwargs):
            peaks.append(sum(sizes(tmp_path).values()))
            delete(*args, **kwargs)

        return measured

    monkeypatch.setattr(transformers_trainer, "rotate_checkpoints", watched(transformers_trainer.rotate_checkpoints))
    monkeypatch.setattr(RunFolder, "clean", watched(RunFolder.clean))
    ours.train()
    found = sizes(tmp_path)
    assert {part for part, size in plan.disk.parts.items() if size} == found.keys()
    for part, size in found.items():
        assert plan.disk.parts[part] == pytest.approx(size, rel=0.15 if part in ESTIMATED else 0.015), part
    assert plan.disk.total == pytest.approx(sum(found.values()), rel=0.05)
    assert plan.disk.peak == pytest.approx(max(*peaks, sum(found.values())), rel=0.015)
    finished = json.loads((tmp_path / "lottery_state.json").read_text())["finished"]
    assert [(level.sparsity, level.steps) for level in plan.levels] == [
        (pytest.approx(record["sparsity"], abs=1e-3), record["steps"]) for record in finished
    ]
    assert plan.steps == sum(record["steps"] for record in finished)
    assert [level.final_run for level in plan.levels] == ["final_run" in record for record in finished]


@pytest.mark.parametrize("by_reference", [pytest.param(False, marks=pytest.mark.slow), True])
def test_weights_by_reference_are_not_in_the_ticket(tmp_path, by_reference):
    config = vit(0, hidden_size=64, intermediate_size=128).config
    set_seed(3)
    model = ViTForImageClassification(config)
    changes = {"seed": 3, "rewind": "init", "save_strategy": "no", "rewind_by_reference": by_reference}
    ours = trainer(tmp_path, model=model, data=Images(), **changes)
    plan = plan_search(ours)
    ours.train()
    found = sizes(tmp_path)
    for part, size in found.items():
        assert plan.disk.parts[part] == pytest.approx(size, rel=0.2), part
    stored = (tmp_path / "ticket/mask.safetensors").stat().st_size + (
        tmp_path / "ticket/mask_config.json"
    ).stat().st_size
    info = {"info": ours.ticket.info}
    assert series_files(ours, info) == pytest.approx(stored, rel=0.1)  # random bits in place of those that are found
    assert ((tmp_path / "ticket/rewind.safetensors").exists(), found["ticket"] > 150_000) == (not by_reference,) * 2


def test_tokenizers_are_saved_with_every_model(tmp_path):
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(5000)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    extra = {"processing_class": tokenizer, "data_collator": default_data_collator}
    ours = trainer(tmp_path, extra=extra, save_level_checkpoints=True)
    plan = plan_search(ours)
    ours.train()
    for part in ("checkpoints", "trained models"):
        assert plan.disk.parts[part] == pytest.approx(sizes(tmp_path)[part], rel=0.015)


def test_the_models_of_two_levels_lie_there_at_once(tmp_path):
    all_, last = (
        plan_search(trainer(tmp_path / str(keep), save_level_models=keep, save_strategy="no", rewind="learning_rate"))
        for keep in (True, False)
    )
    model = last.disk.parts["trained models"]
    assert all_.disk.parts["trained models"] == pytest.approx(4 * model, rel=0.05)
    assert last.disk.peak == last.disk.total  # the ticket is as large as the model that goes before
    assert all_.disk.total - last.disk.total == pytest.approx(3 * model, rel=0.05)


class Augmented(Points):
    """Points that draw from the generators of Python and numpy, as augmentation does."""

    def __getitem__(self, i):
        return super().__getitem__(i) if random.random() + np.random.rand() >= 0 else {}


def generators():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("kind", [LotteryTrainer, pytest.param(WinningSignTrainer, marks=pytest.mark.slow)])
def test_nothing_is_changed(tmp_path, kind):
    ours = trainer(tmp_path / "a", kind=kind, data=Augmented(), save_strategy="no")
    model = ours.model
    model.eval()
    model.norm.train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    gradients = [parameter.grad for parameter in model.parameters()]
    before, modes, state = Snapshot.capture(model).sha256(), [m.training for m in model.modules()], generators()
    files = sorted(tmp_path.rglob("*"))
    plan_search(ours)
    assert generators() == state
    assert Snapshot.capture(model).sha256() == before and [m.training for m in model.modules()] == modes
    assert all(parameter.grad is g for parameter, g in zip(model.parameters(), gradients, strict=True))
    assert all((g == 1).all() for g in gradients)
    assert ours.optimizer is None and ours.lr_scheduler is None and sorted(tmp_path.rglob("*")) == files
    for parameter in model.parameters():
        parameter.grad = None
    model.train()
    other = trainer(tmp_path / "b", kind=kind, data=Augmented(), save_strategy="no")
    for each in (ours, other):
        each.train()
    assert ours.mask == other.mask
    assert Snapshot.capture(ours.model).sha256() == Snapshot.capture(other.model).sha256()


class Layers(nn.Module):
    """Two hidden layers, without anything random."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 3))

    def forward(self, x, labels=None):
        logits = self.layers(x)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}


def test_memory_is_counted_by_hand(tmp_path):
    plan = plan_search(trainer(tmp_path, model=Layers()))
    parameters = 6 * 20 + 20 + 20 * 10 + 10 + 10 * 3 + 3
    memory = plan.memory
    assert (memory.weights, memory.gradients) == (4 * parameters, 4 * parameters)
    assert memory.optimizer == 8 * parameters + 6 * 4  # two moments, and a step count for each of six tensors
    assert memory.masks == 4 * (120 + 200 + 30)
    # Of 16 points: what each layer reads (the output of a ReLU is what the next one reads), the log-probabilities, the
    # labels, and the total weight of the loss.
    assert memory.activations == 16 * 4 * (6 + 20 + 10 + 3) + 16 * 8 + 4
    assert memory.host == 4 * parameters + 120 + 200 + 30
    assert memory.per_process == memory.whole + memory.activations


def test_buffers_and_norms_count(tmp_path):
    memory = plan_search(trainer(tmp_path, model=net(), kind=WinningSignTrainer)).memory
    assert memory.weights - memory.gradients == 2 * 20 * 4 + 8
    assert memory.norms == 2 * 2 * 20 * 4


def test_sharding_divides_all_but_activations(tmp_path):
    whole, quarter = (plan_search(trainer(tmp_path, model=Layers()), shards=n).memory for n in (1, 4))
    assert quarter.per_process - quarter.activations == -(-(whole.per_process - whole.activations) // 4)
    assert (quarter.activations, quarter.host) == (whole.activations, whole.host)


@pytest.mark.parametrize(
    ("changes", "bytes_a_weight"),
    [({"optim": "sgd"}, 0), ({"extra": MOMENTUM}, 4), ({"optim": "adamw_torch_fused"}, 8), ({"optim": "adafactor"}, 0)],
)
def test_the_state_of_each_optimizer(tmp_path, changes, bytes_a_weight):
    ours = trainer(tmp_path, **changes)
    weights = sum(parameter.numel() for parameter in ours.model.parameters())
    plan = plan_search(ours)
    assert plan.memory.optimizer / weights == pytest.approx(bytes_a_weight, abs=0.2)
    assert "are assumed" not in str(plan)


class Peeking(torch.optim.SGD):
    def step(self, closure=None):
        assert all(float(p.grad.sum()) == 0 for group in self.param_groups for p in group["params"])


def test_an_optimizer_that_cannot_be_tried_out_is_guessed(tmp_path):
    ours = trainer(tmp_path, model=Layers(), extra={"optimizer_cls_and_kwargs": (Peeking, {"lr": 0.1})})
    plan = plan_search(ours)
    assert plan.memory.optimizer == 2 * plan.memory.weights
    assert "two moments a weight are assumed" in str(plan)


def test_matching_is_counted_by_hand(tmp_path):
    plan = plan_search(trainer(tmp_path, model=Layers())).matching
    assert (plan.groups, plan.largest, plan.matrices, plan.operations) == (2, 20, 8 * (400 + 100), 8000 + 1000)


def test_matching_counts_every_pair_of_heads(tmp_path):
    """A feed-forward layer of 16, two heads of 8 dimensions for queries and keys and 8 for values."""
    plan = plan_search(trainer(tmp_path, model=vit(0), data=Images())).matching
    assert (plan.groups, plan.largest) == (4, 16)
    assert plan.operations == 16**3 + 2**3 + 2 * 2**2 * 8**3


def test_a_model_whose_symmetries_are_not_found_is_planned(tmp_path):
    plan = plan_search(trainer(tmp_path, model=net()))  # its forward pass wants labels
    assert plan.matching is not None and plan.matching.failure is not None
    assert "Aligning two such networks is not possible yet: the model must run on the inputs" in str(plan)
    assert plan_search(trainer(tmp_path, model=net()), matching=False).matching is None


def test_a_network_that_does_not_fit_is_planned(tmp_path, monkeypatch):
    ours = trainer(tmp_path)

    def full(*_, **__):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(ours, "compute_loss", full)
    plan = plan_search(ours)
    assert plan.seconds is None and plan.memory.activations is None and plan.memory.per_process == plan.memory.whole
    assert "Time: not measured." in str(plan) and "| not measured |" in str(plan)


def test_a_stream_is_planned_by_its_steps(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([Points()[i] for i in range(48)])

    ours = trainer(tmp_path, data=Stream(), max_steps=4, rewind="step:2", save_steps=2)
    plan = plan_search(ours)
    ours.train()
    assert [level.steps for level in plan.levels] == [4, 2, 2, 2]
    assert plan.disk.total == pytest.approx(sum(sizes(tmp_path).values()), rel=0.05)


def test_seconds_grow_with_the_passes(tmp_path, monkeypatch):
    from hf_lottery.hf.plan import search as module
    from hf_lottery.hf.plan.memory import StepCost

    monkeypatch.setattr(module, "measure_step", lambda *_: StepCost(activations=7, seconds=0.5))
    assert plan_search(trainer(tmp_path)).seconds == 24 * 0.5
    assert plan_search(trainer(tmp_path, gradient_accumulation_steps=3)).seconds == 8 * 3 * 0.5


def test_what_is_left_out_is_said(tmp_path):
    ours = trainer(tmp_path)
    assert "Note:" not in str(plan_search(ours))
    ours.args.gradient_checkpointing = True
    assert "Note: activations are measured without gradient checkpointing" in str(plan_search(ours))
    changes = {"save_strategy": "best", "eval_strategy": "epoch", "metric_for_best_model": "loss"}
    assert "Note: a checkpoint is counted for every evaluation" in str(plan_search(trainer(tmp_path, **changes)))


def test_a_plan_is_refused(tmp_path):
    plain = Trainer(net(), arguments(tmp_path), train_dataset=Points())
    with pytest.raises(TypeError, match=r"must be a LotteryTrainer; received Trainer\. Other trainings have no levels"):
        plan_search(plain)
    with pytest.raises(ValueError, match="shards must be at least 1; received 0"):
        plan_search(trainer(tmp_path), shards=0)
    with pytest.raises(ValueError, match="must lie within training; received step 100 of 6"):
        plan_search(trainer(tmp_path, rewind="step:100"))


def test_the_text(tmp_path):
    lines = str(plan_search(trainer(tmp_path, model=Layers(), **EPOCHS))).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[2:9] == [
        ["0", "0.0000", "9"], ["1", "0.3000", "3"], ["2", "0.5100", "3"], ["3", "0.6000", "3"],
        ["4 (final run)", "0.6000", "6"], ["all", "", "24"], ["on disk", "at the end"],
    ]  # fmt: skip
    assert ["gradients", "1.53 kB"] in cells
    assert any(line.startswith("Time: roughly ") for line in lines)
    assert "an estimate: 2 groups, the largest of 20 units; 4 kB of correlation" in lines[-1]
