"""Batches for matching: those of a training."""

import torch
from transformers import Trainer, TrainingArguments

from hf_lottery.hf.tasks.batches import evaluation_batches, training_batches


def test_matching_sees_the_batches_of_a_training():
    rows = [{"x": torch.tensor(float(row)), "labels": 0} for row in range(10)]
    args = TrainingArguments(
        per_device_train_batch_size=3, seed=5, use_cpu=True, dataloader_pin_memory=False, remove_unused_columns=False
    )
    trainer = Trainer(torch.nn.Linear(1, 1), args, train_dataset=rows, data_collator=torch.utils.data.default_collate)
    trained = [batch["x"].tolist() for batch in trainer.get_train_dataloader()]
    assert [batch["x"].tolist() for batch in training_batches(trainer, 10)] == trained
    assert [len(batch["x"]) for batch in training_batches(trainer, 4)] == [3, 1]
    assert list(training_batches(trainer, 3)[0]) == ["x"]


def test_batches_have_labels_if_they_are_asked_for():
    rows = [{"x": torch.tensor(float(row)), "labels": 10 * row} for row in range(10)]
    args = TrainingArguments(
        per_device_train_batch_size=4, seed=5, use_cpu=True, dataloader_pin_memory=False, remove_unused_columns=False
    )
    trainer = Trainer(torch.nn.Linear(1, 1), args, train_dataset=rows, data_collator=torch.utils.data.default_collate)
    batches = training_batches(trainer, 10, labels=True)
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 2]
    for batch, plain in zip(batches, training_batches(trainer, 10), strict=True):
        assert torch.equal(batch["x"], plain["x"]) and torch.equal(batch["labels"], (10 * batch["x"]).long())
        assert plain.keys() == {"x"}


def test_batches_are_read_at_once_without_columns_that_the_network_does_not_take(tmp_path):
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitems__(self, rows):
            return [{"input": torch.tensor(float(row)), "labels": 0, "number": row} for row in rows]

    args = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, per_device_eval_batch_size=6, use_cpu=True,
        dataloader_pin_memory=False, label_names=["labels"],
    )  # fmt: skip
    trainer = Trainer(torch.nn.Linear(1, 1), args, train_dataset=Rows(), eval_dataset=Rows())
    before = torch.get_rng_state()
    assert [batch["input"].tolist() for batch in evaluation_batches(trainer)] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]
    assert all(batch.keys() == {"input"} for batch in training_batches(trainer, 10))
    assert torch.equal(torch.get_rng_state(), before)


def test_persistent_workers_of_an_evaluation_do_not_hand_out_other_data(tmp_path):
    train, test = ([{"x": torch.tensor(float(row))} for row in rows] for rows in (range(10), range(20, 24)))
    args = TrainingArguments(
        str(tmp_path), use_cpu=True, dataloader_pin_memory=False, remove_unused_columns=False,
        dataloader_num_workers=1, dataloader_persistent_workers=True,
    )  # fmt: skip
    trainer = Trainer(torch.nn.Linear(1, 1), args, train_dataset=train, eval_dataset=test)
    for _ in range(2):  # before and after the Trainer has made the loader that it keeps
        assert sorted(x for batch in training_batches(trainer, 10) for x in batch["x"].tolist()) == list(range(10))
        assert trainer.get_eval_dataloader().dataset is test
    assert args.dataloader_persistent_workers
