"""Judge: the test error of a network, with batch norms recalibrated, on one process or on several."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer

from ...connectivity.repair import batch_norms, recalibrate_batch_norm_
from .batches import evaluation_batches, training_batches


class Judge:
    """Measures the test error of a network, or its loss as a language model, after recalibrating its batch norms.

    Each process takes its share of the sample and of the test data; every process gets the error over all of them.

    Args:
        trainer: Has the data, and computes a loss.
        task: What the network is for.
        samples: How many training samples the batch norms are recalibrated on.
    """

    def __init__(self, trainer: Trainer, task: str, samples: int):
        self.trainer = trainer
        self.word = "loss" if task == "causal-lm" else "error"
        self.sample = training_batches(trainer, samples)

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        if batch_norms(model):
            recalibrate_batch_norm_(model, self.sample)
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for batch in evaluation_batches(self.trainer):
            labels = batch["labels"]
            sums += torch.tensor([self.errors(model, batch, labels), len(labels)])
        sums = cast(Tensor, self.trainer.accelerator.reduce(sums.to(self.trainer.args.device), "sum"))
        errors, samples = sums.tolist()
        return errors / samples

    def errors(self, model: nn.Module, batch: dict[str, Any], labels: Tensor) -> float:
        """Return the sum of errors or losses over a batch."""
        with self.trainer.compute_loss_context_manager():
            loss, outputs = cast(Any, self.trainer.compute_loss(model, batch, return_outputs=True))
        return loss.item() * len(labels) if self.word == "loss" else int((outputs.logits.argmax(-1) != labels).sum())
