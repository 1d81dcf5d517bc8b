"""BareLoop: trainings of small networks, as fast as a bare loop, for the thousands that an experiment consists of.

The Trainer sets a training up and ends it. In between, an epoch is a loop over training data that lie on the device as
tensors. On a CPU a step of LeNet-300-100 on MNIST-1D costs about seven tenths of the Trainer's, and one of a ResNet-8
nine tenths (recipes/benchmarks/ladder_step.py). On a GPU the whole step is one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer

from ..tasks.batches import read_samples
from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.sparse_trainer import SparseTrainer
from ..trainers.winning_sign_trainer import WinningSignTrainer

_EAGER = 3  # steps before the graph is captured: torch sets up its libraries and the optimizer's state in them


class BareLoop(Trainer):
    """A Trainer whose epochs run over tensors in memory, on one process and without checkpoints.

    The samples of the training data must be the same whenever they are read. Callbacks are told when steps end, but not
    when they begin. Before everything else, name this class among the bases: ``class Fast(BareLoop, SparseTrainer)``.

    Raises:
        ValueError: A setting needs the Trainer's own loop.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        held = {"save_strategy": "no", "gradient_accumulation_steps": 1, "world_size": 1, "fp16": False}
        for name, value in held.items():
            received = getattr(self.args, name)
            if (received := getattr(received, "value", received)) != value:
                raise ValueError(f"{name} must be {value} in a bare loop; received {received}. Use the plain Trainer.")
        self._tensors: dict[str, Tensor] = {}
        self._read: Any = None  # the data set that they are of
        self._trained: list[nn.Parameter] = []
        self._step: Callable[[Any, Tensor], Tensor] | None = None

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None):
        """Create the scheduler; on a GPU, the optimizer reads its rates from the device, as a graph must."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        for group in cast(Any, self.optimizer).param_groups:
            if self.args.device.type == "cuda":
                group["lr"] = torch.tensor(float(group["lr"]), device=self.args.device)
                group |= {"fused": True, "foreach": False} | ({"capturable": True} if "capturable" in group else {})
            elif "fused" in group and group["fused"] is None:
                group["fused"] = True
        return scheduler

    def _prepare_for_training(self, *args, **kwargs):
        self._step = None  # a graph holds the optimizer of the training before
        return super()._prepare_for_training(*args, **kwargs)

    def before_step(self) -> None:
        """Put on the device what the next step reads besides weights, rates and data."""

    def _run_epoch(self, *args: Any, **asked: Any) -> None:
        """Run the steps of an epoch."""
        model, epoch, steps_in_epoch = (asked[name] for name in ("model", "epoch", "steps_in_epoch"))
        if self._read is not self.train_dataset:
            self._tensors, self._read = whole_data(self), self.train_dataset
        self._trained = [*model.parameters()]  # a search through the modules at every step costs too much
        self._step = self._step or (_Graph(self) if self.args.device.type == "cuda" else self.eager_step)
        self.accelerator.gradient_state._set_sync_gradients(True)
        self.current_gradient_accumulation_steps = 1
        rest = [asked[name] for name in ("trial", "epoch", "ignore_keys_for_eval", "start_time")]
        logs, rate = self.args.logging_strategy != "no", None
        for step, rows in enumerate(self._order(epoch).split(self.args.train_batch_size)[:steps_in_epoch]):
            self.before_step()
            self._tr_loss += self._step(model, rows)
            rate = self._get_learning_rate() if logs else None  # a GPU must be waited for
            cast(Any, self.lr_scheduler).step()
            self.state.global_step += 1
            self.state.epoch = epoch + (step + 1) / steps_in_epoch
            self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
            if self.control.should_log or self.control.should_evaluate:
                self._maybe_log_save_evaluate(self._tr_loss, None, model, *rest, learning_rate=rate)
            if self.control.should_epoch_stop or self.control.should_training_stop:
                break
        model.zero_grad()
        self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
        self._maybe_log_save_evaluate(self._tr_loss, None, model, *rest, learning_rate=rate)

    def eager_step(self, model: Any, rows: Tensor) -> Tensor:
        """Take one optimizer step on some samples.

        Args:
            model: The model, prepared for training.
            rows: Their numbers, on the device.

        Returns:
            The loss, detached.
        """
        for parameter in self._trained:
            parameter.grad = None
        return self.compute_step(model, rows)

    def compute_step(self, model: Any, rows: Tensor) -> Tensor:
        """Take a step from gradients that are None."""
        loss = self.training_step(model, {name: tensor[rows] for name, tensor in self._tensors.items()})
        if self.args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self._trained, self.args.max_grad_norm)
        cast(Any, self.optimizer).step()
        return loss

    def _order(self, epoch: int) -> Tensor:
        """Draw the order of an epoch; with ``data_seed``, all trainings share it."""
        generator = None
        if self.args.data_seed is not None:
            generator = torch.Generator().manual_seed(self.args.data_seed + epoch)
        count = len(next(iter(self._tensors.values())))
        return torch.randperm(count, generator=generator).to(self.args.device)


class _Graph:
    """A step as one CUDA graph; the first steps, and batches of another size, run one operation after the other."""

    def __init__(self, trainer: BareLoop):
        self._trainer = trainer
        self._rows = torch.zeros(trainer.args.train_batch_size, dtype=torch.long, device=trainer.args.device)
        self._taken, self._side = 0, torch.cuda.Stream()
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, model: Any, rows: Tensor) -> Tensor:
        if len(rows) != len(self._rows):
            return self._trainer.eager_step(model, rows)
        if self._taken < _EAGER:
            self._taken += 1
            self._side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._side):
                loss = self._trainer.eager_step(model, rows)
            torch.cuda.current_stream().wait_stream(self._side)
            return loss
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            model.zero_grad()
            with torch.cuda.graph(self._graph, stream=self._side):
                self._loss = self._trainer.compute_step(model, self._rows)
        self._rows.copy_(rows)
        self._graph.replay()
        return self._loss


class BareSparseTrainer(BareLoop, SparseTrainer):
    """A SparseTrainer with a bare loop."""


class BareLotteryTrainer(BareLoop, LotteryTrainer):
    """A LotteryTrainer with a bare loop."""


class BareWinningSignTrainer(BareLoop, WinningSignTrainer):
    """A WinningSignTrainer with a bare loop."""

    _alpha: Tensor | None = None

    def before_step(self) -> None:
        """Draw how far norms are interpolated; a graph reads it from the device."""
        if self._interpolates:
            self._alpha = torch.zeros((), device=self.args.device) if self._alpha is None else self._alpha
            self._alpha.fill_(super()._draw())

    def _draw(self) -> Tensor:
        assert self._alpha is not None
        return self._alpha


def whole_data(trainer: Trainer) -> dict[str, Tensor]:
    """Make one batch of all training samples, on the device.

    Args:
        trainer: Has the data and the collator.

    Raises:
        ValueError: The samples are not tensors of one shape.
    """
    dataset: Any = trainer.train_dataset
    collate = trainer.get_train_dataloader().collate_fn
    batch = trainer._prepare_inputs(cast(Any, collate)(read_samples(dataset, range(len(dataset)))))
    for name, value in batch.items():
        if not isinstance(value, Tensor) or len(value) != len(dataset):
            raise ValueError(
                f"training data must be tensors of one sample each in a bare loop; received {name!r} of "
                f"{type(value).__name__}. Use the plain Trainer."
            )
    return {name: value.contiguous() for name, value in batch.items()}
