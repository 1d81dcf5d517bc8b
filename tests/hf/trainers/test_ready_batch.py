"""ReadyBatch: a data set that reads whole batches trains as one that reads sample by sample."""

import pytest
import torch
from small_searches import Record, equal, mask_for, state
from small_task import Net, Points, arguments, net
from torch import nn
from torch.utils.data import Subset, TensorDataset, default_collate
from transformers import Trainer, TrainerCallback, default_data_collator

from hf_lottery import SparseTrainer
from hf_lottery.hf.trainers.ready_batch import ReadyBatch


class WholeBatches(Points):
    """The points, with a column that the network does not take, and a count of what was read one by one."""

    def __init__(self, n=48):
        super().__init__(n)
        self.alone = 0

    def __getitem__(self, i):
        self.alone += 1
        return {"x": self.x[i], "labels": self.labels[i], "number": torch.tensor(i)}

    def __getitems__(self, rows):
        return ReadyBatch({"x": self.x[rows], "labels": self.labels[rows], "number": torch.tensor(rows)})


class OpenNet(Net):
    """A network that takes every column."""

    def forward(self, x, labels=None, number=None):
        return super().forward(x, labels)


def trained(folder, data, model, **settings):
    record = Record()
    collator = settings.pop("data_collator", None)
    torch.manual_seed(3)
    trainer = SparseTrainer(
        model, arguments(folder, save_strategy="no", **settings), mask=mask_for(model), train_dataset=data,
        eval_dataset=data, callbacks=[record], data_collator=collator,
    )  # fmt: skip
    trainer.train()
    metrics = trainer.evaluate()
    logs = [{name: value for name, value in log.items() if "_per_second" not in name and "runtime" not in name}
            for log in record.logs]  # fmt: skip
    return state(model), logs, metrics["eval_loss"], trainer.state.total_flos


@pytest.mark.parametrize(
    ("accumulate", "remove", "drop_last", "subset"),  # every pair of two values occurs
    [(1, True, True, False), (1, False, False, True), (3, True, False, False), (3, False, True, True),
     (1, True, False, True), (3, False, False, False)],
)  # fmt: skip
def test_whole_batches_train_bit_by_bit_like_samples(tmp_path, accumulate, remove, drop_last, subset):
    settings = {"gradient_accumulation_steps": accumulate, "remove_unused_columns": remove,
                "dataloader_drop_last": drop_last, "per_device_train_batch_size": 10}  # fmt: skip
    kind, columns = (net, Points()) if remove else (OpenNet, None)
    torch.manual_seed(1)
    whole, models = WholeBatches(), (kind(), kind())
    models[1].load_state_dict(models[0].state_dict())
    samples = [whole[i] for i in range(48)] if columns is None else columns
    rows = range(5, 45) if subset else range(48)
    whole.alone = 0
    ours = trained(tmp_path, Subset(whole, rows) if subset else whole, models[0], **settings)
    plain = trained(tmp_path, [samples[i] for i in rows], models[1], **settings)
    assert equal(ours[0], plain[0]) and ours[1:] == plain[1:]
    assert whole.alone == 0


def test_any_other_collator_gets_samples(tmp_path):
    seen = []

    def collate(samples):
        seen.extend(samples)
        return default_collate(samples)

    trained(tmp_path, WholeBatches(), net(), data_collator=collate)
    assert seen and all(sample.keys() == {"x", "labels"} for sample in seen)


def test_a_ready_batch_is_a_sequence_of_samples(tmp_path):
    batch = WholeBatches().__getitems__([4, 9, 2])
    assert [int(sample["number"]) for sample in batch] == [4, 9, 2] and int(batch[-1]["number"]) == 2
    assert equal(default_data_collator(list(batch)), batch.columns) and equal(
        default_collate(list(batch)), batch.columns
    )
    assert batch[1:].columns["number"].tolist() == [9, 2]
    with pytest.raises(IndexError, match="below 3; received 3"):
        batch[3]
    trainer = Trainer(net(), arguments(tmp_path), train_dataset=WholeBatches())  # and trains in a plain Trainer
    trainer.train()


@pytest.mark.parametrize("name", ["label", "label_ids"])
def test_labels_of_another_name_reach_the_model_as_the_default_collator_hands_them_over(tmp_path, name):
    class Renamed(WholeBatches):
        def __getitems__(self, rows):
            return ReadyBatch({"x": self.x[rows], name: self.labels[rows]})

    ours, plain = (trained(tmp_path, data, net()) for data in (Renamed(), WholeBatches()))
    assert equal(ours[0], plain[0]) and ours[1:] == plain[1:]


class Counted(Net):
    """A network that can tell how many parameters it has."""

    main_input_name, counts = "x", 0

    def num_parameters(self, exclude_embeddings=False):
        self.counts += 1
        return sum(parameter.numel() for parameter in self.parameters())


class Operations(TrainerCallback):
    """Keeps the operations that were counted up to each log."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, **kwargs):
        self.seen.append(state.total_flos)


def test_operations_are_those_of_the_trainer_and_parameters_are_counted_once(tmp_path):
    seen, models = [], []
    for kind in (Trainer, SparseTrainer):
        model, record = Counted(), Operations()
        args = arguments(tmp_path, save_strategy="no", per_device_train_batch_size=20)  # the last batch is smaller
        kind(model, args, train_dataset=Points(), callbacks=[record]).train()
        seen.append(record.seen)
        models.append(model)
    assert seen[0] == seen[1] and seen[0][-1] > 0
    assert models[1].counts == 2 < models[0].counts  # one for each size of a batch


class Bare(nn.Module):
    """A network that takes one tensor."""

    def __init__(self):
        super().__init__()
        self.outer = nn.Linear(6, 3)

    def forward(self, x):
        return self.outer(x)


class OwnLoss(SparseTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        x, labels = inputs
        return nn.functional.cross_entropy(model(x), labels)


def test_batches_may_be_what_only_the_loss_understands(tmp_path):
    """Pairs, and lists of tensors in place of one tensor, in which nothing can be counted."""
    args = arguments(tmp_path, save_strategy="no", max_steps=2)
    pairs = TensorDataset(Points().x, Points().labels)
    OwnLoss(Bare(), args, train_dataset=pairs, data_collator=default_collate).train()

    class Lists(Net):
        main_input_name = "x"

        def forward(self, x, labels=None):
            return super().forward(torch.stack(x), labels)

    def collate(samples):
        return {"x": [s["x"] for s in samples], "labels": torch.stack([s["labels"] for s in samples])}

    trainer = SparseTrainer(Lists(), args, train_dataset=Points(), data_collator=collate)
    trainer.train()
    assert trainer.state.global_step == 2
