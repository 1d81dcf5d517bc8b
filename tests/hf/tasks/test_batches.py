"""Batches for matching: those of a training."""

import torch
from transformers import Trainer, TrainingArguments

from hf_lottery.hf.tasks.batches import training_batches


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
