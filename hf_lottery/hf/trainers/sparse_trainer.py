"""SparseTrainer: a Trainer that keeps pruned weights at zero."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from transformers import PreTrainedConfig, PreTrainedModel, default_data_collator
from transformers.trainer_utils import TrainOutput, has_length

from ...masks.file import write_mask
from ...masks.mask import Mask
from ...networks.names import named_tensors, named_weights
from ...structured import UnitMask
from ...structured.copies import copied
from ..hub.errors import hub_errors
from ..hub.transfer import base_model
from .callbacks import SparsityCallback, refuse_flat_weights
from .exact_resume import ExactResume
from .ready_batch import ReadyCollator
from .run_lock import locked_folder


class SparseTrainer(ExactResume):
    """A Trainer that keeps pruned weights at exactly zero and saves the mask beside the model.

    A resumed training takes the steps that are left, from a checkpoint whose files are whole; see
    :class:`~hf_lottery.hf.trainers.exact_resume.ExactResume`.

    Args:
        mask: A Mask, or the folder or repository on the Hub that holds one; None trains dense.
        first_step: Optimizer steps that the weights were already trained for. The learning-rate schedule resumes there,
            and only the remaining steps are trained. The other arguments are the Trainer's.

    Raises:
        MaskMismatchError: The mask is for another model.
        SparsityLeakError: A pruned weight is not zero at the end of training, or the mask prunes nothing.
        NotImplementedError: The launch uses DeepSpeed, Megatron or FSDP version 1.
    """

    def __init__(self, *args, mask: Mask | str | Path | None = None, first_step: int = 0, **kwargs):
        super().__init__(*args, **kwargs)
        self.first_step = first_step
        self._sparsity: SparsityCallback | None = None
        self._optimized: list[list[str]] | None = None  # names of the parameters of each group
        self._operations: dict[int | None, int] = {}  # size of an input -> floating-point operations
        self.mask = UnitMask.load_any(mask) if isinstance(mask, str | Path) else mask

    @property
    def mask(self) -> Mask | None:
        """The mask that training keeps to; None trains dense."""
        return self._sparsity.mask if self._sparsity else None

    @mask.setter
    def mask(self, mask: Mask | None) -> None:
        if self._sparsity is not None:
            self._sparsity.release()
            self.remove_callback(self._sparsity)
        self._sparsity = None
        if mask is not None:
            refuse_flat_weights()
            mask.check_fits(self.network)
            self._sparsity = SparsityCallback(mask)
            self.add_callback(self._sparsity)

    @property
    def network(self) -> torch.nn.Module:
        """The model."""
        return cast(torch.nn.Module, self.model)

    def loss(self, model: torch.nn.Module, inputs: Any) -> torch.Tensor:
        """Return the training loss of a model on one prepared batch."""
        return cast(torch.Tensor, self.compute_loss(model, inputs))

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial=None, ignore_keys_for_eval=None
    ) -> TrainOutput:
        """Train as the Trainer does, starting at ``first_step``.

        Args:
            resume_from_checkpoint: A checkpoint to go on from, or True for the newest whole one in ``args.output_dir``.
            trial: As for the Trainer.
            ignore_keys_for_eval: As for the Trainer.

        Raises:
            ValueError: ``first_step`` lies beyond training, or the schedule cannot be resumed at that step. Or a file
                of the checkpoint is missing or damaged.
            RuntimeError: Another process writes its checkpoints into ``args.output_dir``.
        """
        with self._own_folder():
            checkpoint = self.find_checkpoint(resume_from_checkpoint)
            return self._train_from(checkpoint, trial=trial, ignore_keys_for_eval=ignore_keys_for_eval)

    def _train_from(self, checkpoint: str | None, **kwargs) -> TrainOutput:
        """Train from a checkpoint that was checked, or from the present weights."""
        settings = {}
        self._operations.clear()  # the model may have changed since
        if self.first_step:
            _, steps = self.count_steps()
            self.check_step(self.first_step, steps)
            settings["max_steps"] = steps - self.first_step
        try:
            with changed(self.args, **settings):
                return super().train(checkpoint, **kwargs)
        finally:
            if self._sparsity is not None:
                self._sparsity.release()  # also after an interrupted training

    def _own_folder(self) -> AbstractContextManager[None]:
        """Return a block in which no other process writes its checkpoints where this one does."""
        if self.args.save_strategy == "no":
            return nullcontext()
        return locked_folder(cast(str, self.args.output_dir), main=self.is_world_process_zero())

    def init_hf_repo(self, *args, **kwargs):
        """Create the repository to push to as the Trainer does.

        Raises:
            HubError: The Hub cannot be reached or refuses.
        """
        with hub_errors(f"create the repository {self.args.hub_model_id or Path(str(self.args.output_dir)).name}"):
            super().init_hf_repo(*args, **kwargs)

    def create_model_card(self, *args, **kwargs):
        """Write the card as the Trainer does, but never name a local folder as the model that training began from."""
        config = getattr(self.network, "config", None)
        if isinstance(config, PreTrainedConfig) and base_model(config) is None:
            kwargs.setdefault("finetuned_from", "")
        super().create_model_card(*args, **kwargs)

    def evaluation_loop(self, *args, **kwargs):
        """Evaluate as the Trainer does.

        transformers 5.23 loses the data parallelism of a compiled model when it is trained a second time; from then on
        the processes would train separately. This keeps the wrapped model.
        """
        wrapped = self.model_wrapped
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            if not self.is_fsdp_enabled:  # FSDP wraps in place
                self.model_wrapped = wrapped

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Count operations as the Trainer does, but count the parameters once in a training instead of at every step.

        Args:
            inputs: A batch.
        """
        name = getattr(self.model, "main_input_name", "input_ids")
        main = inputs.get(name) if isinstance(inputs, Mapping) else None  # a loss of one's own may take tuples or lists
        size = main.numel() if isinstance(main, torch.Tensor) else None
        if size not in self._operations:
            self._operations[size] = super().floating_point_ops(inputs)
        return self._operations[size]

    def _get_collator_with_removed_columns(self, data_collator, description: str | None = None):
        """Take a batch that the data set has made as it is, where the collator would only make the same."""
        collate = super()._get_collator_with_removed_columns(data_collator, description)
        if data_collator is not default_data_collator:
            return collate
        return ReadyCollator(collate, self._signature_columns if self.args.remove_unused_columns else None)

    def create_optimizer(self, model=None):
        """Create the Trainer's optimizer, and note the names of its parameters."""
        optimizer = super().create_optimizer(model)
        names = {id(parameter): name for name, parameter in named_weights(self.network, adapters=True).items()}
        self._optimized = [[names.get(id(p), "") for p in group["params"]] for group in optimizer.param_groups]
        return optimizer

    def _take_shards(self) -> None:
        """Give the optimizer the new parameters of the model that FSDP2 has just prepared.

        accelerate 1.15 does this too, but it identifies already sharded parameters by the address of their local part.
        All empty local parts share one address, so the optimizer would get one parameter several times.
        """
        if self._optimized is None:
            raise NotImplementedError(
                "create_optimizer must call super().create_optimizer() with sharded parameters; received an override "
                "that does not. Pass optimizer_cls_and_kwargs instead."
            )
        named = named_weights(self.network, adapters=True)
        for group, names in zip(cast(Any, self.optimizer).param_groups, self._optimized, strict=True):
            if all(name in named for name in names):
                group["params"] = [named[name] for name in names]

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """Create the scheduler of the whole training, and resume it at ``first_step``."""
        if self.is_fsdp_enabled and optimizer is None:  # the model and the optimizer have just been prepared
            self._take_shards()
        scheduler = super().create_scheduler(num_training_steps + self.first_step, optimizer)
        with warnings.catch_warnings():  # torch expects an optimizer step before each of these
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for _ in range(self.first_step):
                scheduler.step()
        return scheduler

    def count_steps(self) -> tuple[int | None, int]:
        """Return the optimizer steps of an epoch (None if the data set has no length) and of the whole training."""
        loader = self.get_train_dataloader()
        per_epoch = math.ceil(len(loader) / self.args.gradient_accumulation_steps) if has_length(loader) else None
        if self.args.max_steps > 0:
            return per_epoch, self.args.max_steps
        if per_epoch is None:
            raise ValueError("epochs need a data set with a length; received a stream. Use max_steps.")
        return per_epoch, math.ceil(self.args.num_train_epochs * per_epoch)

    def check_step(self, step: int, steps: int) -> None:
        """Raise ValueError unless a training of ``steps`` steps can start at ``step``."""
        if not 0 <= step < steps:
            raise ValueError(
                f"the step to start from must lie within training; received step {step} of {steps}. "
                "Rewind earlier or train longer."
            )
        if step and self.args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
            raise ValueError(
                f"a learning-rate schedule must depend only on the step to resume at step {step}; "
                f"received {self.args.lr_scheduler_type}. Choose another lr_scheduler_type, or rewind=init."
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the mask and the model. The mask is written first, because the Trainer may push the folder."""
        if self.mask is not None and self.args.should_save:
            folder = Path(output_dir or cast(str, self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            write_mask(folder, self.mask, extra=self.mask.config_keys(), compress=False)
        super().save_model(output_dir, _internal_call)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Load weights as the Trainer does, but raise if any is missing.

        transformers 5 saves some architectures (such as ViT) under the names of older versions. The Trainer compares
        these with the model's own names, warns that they are missing, and continues with the present weights.
        """
        if model is not None or not isinstance(self.model, PreTrainedModel):
            if model is None and self.is_fsdp_enabled:  # the Trainer expects weights that are sharded on disk
                self.network.load_state_dict(load_file(Path(resume_from_checkpoint) / "model.safetensors"))
                return
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        loaded, report = _made_as(self.model).from_pretrained(resume_from_checkpoint, output_loading_info=True)
        if lost := sorted(name for kind in ("missing_keys", "mismatched_keys") for name in report[kind]):
            raise ValueError(
                f"the checkpoint {resume_from_checkpoint} must hold every weight; received none for {lost[:3]}. "
                "Use a checkpoint of this model."
            )
        self.model.load_state_dict(loaded.state_dict())

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled:
            return super()._load_best_model()
        self._load_from_checkpoint(cast(str, self.state.best_model_checkpoint))


def _made_as(model: PreTrainedModel) -> Any:
    """Return a class whose models are copies of this one, which need not be as its configuration says.

    A head may have been put in, or units cut.
    """

    def new(cls: type, *args: Any, **options: Any) -> PreTrainedModel:
        empty = {name: tensor.detach().to("meta") for name, tensor in named_tensors(model, numbers=False).items()}
        with warnings.catch_warnings():  # it is not trained, so no mask need hold it
            warnings.simplefilter("ignore")
            # It is no instance of the new class, so nothing initializes it.
            return cast(PreTrainedModel, copied(model, empty))

    return type(type(model).__name__, (type(model),), {"__new__": new})


@contextmanager
def changed(args: Any, **values: Any) -> Iterator[None]:
    """Change attributes inside a block, and restore them afterwards."""
    before = {name: getattr(args, name) for name in values}
    try:
        for name, value in values.items():
            setattr(args, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(args, name, value)
