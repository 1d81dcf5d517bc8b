"""SparseTrainer: a Trainer that holds a mask. LotteryTrainer: a Trainer whose train() finds a ticket."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    ProgressCallback,
    Trainer,
    enable_full_determinism,
    set_seed,
)
from transformers.trainer_utils import TrainOutput, has_length

from ..imp import check_levels
from ..mask import Mask
from ..mask_file import write_mask
from ..prune import prune
from ..rewind import Snapshot
from ..scores import Evidence, Score, gather_evidence, magnitude, movement, random, saliency, score_weights, wanda
from .arguments import SCORES, LotteryArguments
from .callback import SnapshotCallback, SparsityCallback, refuse_sharding
from .prunable import prunable
from .run_folder import RunFolder
from .ticket import Ticket

# What a resumed run may do otherwise than the run it resumes, by the beginning of its name: it changes no weight.
_FREE_SETTINGS = (
    "output_dir", "logging", "log_", "save_", "eval_on", "eval_do", "report_to", "run_name", "project", "trackio",
    "disable_tqdm", "dataloader_num", "dataloader_pin", "dataloader_pers", "dataloader_pref", "hub_", "push_to",
    "resume", "debug", "skip_memory", "include_", "do_", "per_device_eval", "prediction_loss", "ddp_", "use_cpu",
    "local_rank", "accelerator_config", "restore_callback", "torch_empty", "enable_jit",
)  # fmt: skip


class SparseTrainer(Trainer):
    """A Trainer that keeps pruned weights at exactly zero and saves the mask beside the model.

    Args:
        mask: A Mask, or a folder that holds one; None trains dense.
        first_step: Optimizer steps that lie behind the weights: the learning-rate schedule resumes there, and only the
            steps that are left are trained. The other arguments are the Trainer's.

    Raises:
        MaskMismatchError: The mask is for another model.
        SparsityLeakError: At the end of training, if a pruned weight is not zero or the mask prunes nothing.
        NotImplementedError: Under DeepSpeed or FSDP.
    """

    def __init__(self, *args, mask: Mask | str | Path | None = None, first_step: int = 0, **kwargs):
        super().__init__(*args, **kwargs)
        self.first_step = first_step
        self._sparsity: SparsityCallback | None = None
        self.mask = Mask.from_pretrained(mask) if isinstance(mask, str | Path) else mask

    @property
    def mask(self) -> Mask | None:
        """The mask that is held while training; None trains dense."""
        return self._sparsity.mask if self._sparsity else None

    @mask.setter
    def mask(self, mask: Mask | None) -> None:
        if self._sparsity is not None:
            self._sparsity.release()
            self.remove_callback(self._sparsity)
        self._sparsity = None
        self._held_sparsity = mask.sparsity if mask else 0.0  # counted once, not at every log
        if mask is not None:
            refuse_sharding()
            mask.check_fits(self._network)
            self._sparsity = SparsityCallback(mask)
            self.add_callback(self._sparsity)

    @property
    def _network(self) -> torch.nn.Module:
        return cast(torch.nn.Module, self.model)

    def train(self, *args, **kwargs) -> TrainOutput:
        """Train as the Trainer does, from ``first_step`` on.

        Raises:
            ValueError: ``first_step`` lies beyond training, or the schedule cannot be resumed at a step.
        """
        changed = {}
        if self.first_step:
            _, steps = self.count_steps()
            self.check_step(self.first_step, steps)
            changed["max_steps"] = steps - self.first_step
        try:
            with _changed(self.args, **changed):
                return super().train(*args, **kwargs)
        finally:
            if self._sparsity is not None:
                self._sparsity.release()  # also of a training that was interrupted

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """The Trainer's scheduler; with a ``first_step``, the one of the whole training, resumed there."""
        scheduler = super().create_scheduler(num_training_steps + self.first_step, optimizer)
        with warnings.catch_warnings():  # torch expects an optimizer step before each of these
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for _ in range(self.first_step):
                scheduler.step()
        return scheduler

    def count_steps(self) -> tuple[int | None, int]:
        """Optimizer steps of an epoch (None if the data set does not know its length), and of a whole training."""
        loader = self.get_train_dataloader()
        per_epoch = math.ceil(len(loader) / self.args.gradient_accumulation_steps) if has_length(loader) else None
        if self.args.max_steps > 0 or per_epoch is None:  # without a length, the Trainer insists on max_steps
            return per_epoch, self.args.max_steps
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
                f"a schedule must be a function of the step to resume at step {step}; "
                f"received {self.args.lr_scheduler_type}. Choose another lr_scheduler_type, or rewind=init."
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, and the mask beside it. The mask goes first, because the Trainer may push the folder."""
        if self.mask is not None and self.args.should_save:
            folder = Path(output_dir or cast(str, self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            write_mask(folder, self.mask)
        super().save_model(output_dir, _internal_call)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Load weights as the Trainer does, but never a part of them.

        transformers 5 saves some architectures (ViT is one) under the names of older versions. The Trainer compares
        these with the model's own names, warns that they are missing, and trains on from whatever is there.
        """
        if model is not None or not isinstance(self.model, PreTrainedModel):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        load = cast(Any, type(self.model).from_pretrained)
        loaded, report = load(resume_from_checkpoint, output_loading_info=True)
        if lost := sorted(name for kind in ("missing_keys", "mismatched_keys") for name in report[kind]):
            raise ValueError(
                f"the checkpoint {resume_from_checkpoint} must hold every weight; received none for {lost[:3]}. "
                "It is of another model."
            )
        self.model.load_state_dict(loaded.state_dict())

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(cast(str, self.state.best_model_checkpoint))


class LotteryTrainer(SparseTrainer):
    """A Trainer whose :meth:`train` finds a lottery ticket: all levels of train, score, prune and rewind.

    Each level trains in its own folder ``level-03/`` of ``args.output_dir`` with a fresh optimizer and a data order of
    its own that depends on the seed and the level alone (with ``data_seed`` set, all levels share one order). See
    :class:`~hf_lottery.hf.run_folder.RunFolder` for what is left on disk.

    Args:
        args: :class:`LotteryArguments`, with ``sparsity`` or ``levels``.
        score: Your own score, instead of the one that ``args.score`` names.
        settings: What else must be the same for a run to be resumed, in JSON terms, such as the name of the data set.
            The other arguments are the Trainer's; a ``model_init`` is called once.

    Attributes:
        weights: Name -> parameter that may be pruned.
        history: One ``{"level", "sparsity", "metrics"}`` for each finished level.

    Raises:
        ValueError: A setting is out of range, the rewind step lies beyond training, or the model has nothing to prune.
    """

    def __init__(self, *args, score: Score | None = None, settings: Mapping[str, Any] | None = None, **kwargs):
        if given := {"mask", "first_step"} & kwargs.keys():
            raise TypeError(f"a LotteryTrainer must find its own mask; received {min(given)}. Use SparseTrainer.")
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, LotteryArguments):
            raise TypeError(f"args must be LotteryArguments; received {type(self.args).__name__}.")
        self._check_arguments()
        self.settings = dict(settings or {})
        # The Trainer would call it at every train(), which would undo the rewinding.
        self.model_init = None
        self.lottery = self.args
        self.score = score or SCORES[self.lottery.score]
        self.sparsities = self.lottery.get_sparsities()
        self.rewind = self.lottery.get_rewind()
        self.weights = prunable(self._network, self.lottery.include, self.lottery.exclude)
        self.scope = self.lottery.get_scope(self.weights.kinds)
        self._check_levels()
        self.history: list[dict[str, Any]] = []
        self._level = 0
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(_LevelBar(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, trial=None, ignore_keys_for_eval=None):
        """Find the ticket.

        Args:
            resume_from_checkpoint: True goes on with the run in ``args.output_dir``, at the level and step where it
                stopped (from the start if there is none yet). A path must be that folder.
            trial: Not supported.
            ignore_keys_for_eval: As for the Trainer.

        Returns:
            The TrainOutput of the last level. The model holds its trained weights, ``mask`` its mask, and
            ``args.output_dir/ticket`` the ticket.

        Raises:
            FileExistsError: There is a run in ``args.output_dir`` and it is not to be resumed.
            ValueError: The run there had other settings.
        """
        refuse_sharding()
        base = cast(str, self.args.output_dir)
        if trial is not None:
            raise NotImplementedError("hyperparameter search over whole runs must go through your own loop.")
        if (
            isinstance(resume_from_checkpoint, str | Path)
            and Path(resume_from_checkpoint).resolve() != Path(base).resolve()
        ):
            raise ValueError(
                f"a run must be resumed from its output_dir {base}; received {resume_from_checkpoint}. "
                "Pass resume_from_checkpoint=True."
            )
        moment = self._moment()
        run = RunFolder(base, self._settings(), resume=bool(resume_from_checkpoint))
        self.accelerator.wait_for_everyone()  # every process has looked before one of them writes
        self._write(lambda: self._begin(run))
        for number in range(len(run.finished), len(self.sparsities)):
            self._train_level(run, number, moment, ignore_keys_for_eval)
        return self._conclude(run)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does; every record says its level and sparsity."""
        super().log({**logs, "level": self._level, "sparsity": self._held_sparsity}, start_time)

    def _check_arguments(self) -> None:
        if self.optimizer is not None or self.lr_scheduler is not None:
            raise ValueError(
                "every level must make an optimizer and a schedule of its own; received `optimizers`. "
                "Pass optimizer_cls_and_kwargs, or override create_optimizer."
            )
        for name in ("bf16_full_eval", "fp16_full_eval"):
            if getattr(self.args, name):
                raise ValueError(
                    f"{name} must be off, as it casts the weights that are pruned and rewound; received True. "
                    "Use bf16 or fp16, which do not."
                )

    def _check_levels(self) -> None:
        """Find out before the first training what would fail after it."""
        check_levels(self.weights, self.sparsities, scope=self.scope, min_density=self.lottery.min_density)
        for name, weight in self.weights.items():
            if self.score is saliency and not weight.requires_grad:
                raise ValueError(f"saliency must be able to train {name!r}; received a frozen one. Exclude it.")
            if self.score is wanda and self.weights.kinds[name] in ("experts", "MultiheadAttention"):
                raise ValueError(
                    f"wanda must see the input of a weight; received {name!r}, a {self.weights.kinds[name]} parameter. "
                    "Exclude it, or choose another score."
                )

    def _begin(self, run: RunFolder) -> None:
        run.save()
        if not run.has_start(0):
            run.write_start(0, Mask.dense(self.weights), Snapshot.capture(self._network))

    def _train_level(self, run: RunFolder, number: int, moment: int, ignore_keys) -> None:
        mask, start = run.read_start(number)
        start.restore_(self._network)
        self.mask = mask if number else None
        self._level, self.first_step = number, start.step
        self.optimizer = self.lr_scheduler = None
        checkpoint = run.last_checkpoint(number)
        capture = SnapshotCallback(moment, run.moment) if moment and not number else None
        if capture:
            self.add_callback(capture)
        seed = _level_seed(self.args.seed, number)
        (enable_full_determinism if self.args.full_determinism else set_seed)(seed)
        try:
            with _changed(self.args, **self._level_arguments(run)):
                output = super().train(resume_from_checkpoint=checkpoint, ignore_keys_for_eval=ignore_keys)
                metrics = dict(output.metrics)
                if self.eval_dataset is not None:
                    metrics |= self.evaluate(ignore_keys=ignore_keys)
        finally:
            if capture:
                self.remove_callback(capture)
        self._finish_level(run, mask, start, metrics, output, moment)

    def _finish_level(
        self, run: RunFolder, mask: Mask, start: Snapshot, metrics: dict, output: TrainOutput, moment: int
    ) -> None:
        number = self._level
        self.save_model(str(run.trained(number)), _internal_call=True)
        if number + 1 < len(self.sparsities):
            following = self._prune(mask, start)
            if self.rewind.keeps_weights:
                begin: Snapshot | Path = Snapshot.capture(self._network)
            else:
                begin = run.moment if moment else run.level(0) / run.moment.name
                if not begin.exists():
                    raise ValueError(
                        f"the rewind step must lie within training; received step {moment}, "
                        f"but training stopped at step {output.global_step}. Rewind earlier."
                    )
            self._write(lambda: run.write_start(number + 1, following, begin))
        record = {"level": number, "sparsity": mask.sparsity, "metrics": _plain(metrics)}
        run.finished.append({**record, "steps": output.global_step, "loss": output.training_loss})
        self._write(run.save)
        if number and not self.lottery.save_level_models:
            self._write(lambda: run.drop_trained(number - 1))

    def _conclude(self, run: RunFolder) -> TrainOutput:
        last = len(self.sparsities) - 1
        mask, start = run.read_start(last)
        self.mask = mask
        self._load_from_checkpoint(str(run.trained(last)))
        self.history = [{key: record[key] for key in ("level", "sparsity", "metrics")} for record in run.finished]
        info = {
            "level": last,
            "architecture": type(self.model).__name__,
            "settings": self._settings(),
            "history": self.history,
        }
        config = getattr(self.model, "config", None)
        self.ticket = Ticket(mask, start, info, config if isinstance(config, PreTrainedConfig) else None)
        self._write(lambda: self.ticket.save_pretrained(run.ticket))
        record = run.finished[-1]
        return TrainOutput(record["steps"], record["loss"], record["metrics"])

    def _prune(self, mask: Mask, start: Snapshot) -> Mask:
        set_seed(_level_seed(self.args.seed, self._level, 1))  # for the random score and the batches of the evidence
        evidence: Mapping[str, Evidence] = {}
        if self.score is movement:
            evidence = {
                name: Evidence(start=start.tensors[name].to(weight.device)) for name, weight in self.weights.items()
            }
        elif self.score not in (magnitude, random):
            evidence = self._gather_evidence(start)
        scores = score_weights(self.weights, self.score, evidence)
        return prune(
            scores,
            self.sparsities[self._level + 1],
            scope=self.scope,
            min_density=self.lottery.min_density,
            within=mask,
        )

    def _gather_evidence(self, start: Snapshot) -> dict[str, Evidence]:
        batches = map(self._prepare_inputs, islice(self.get_train_dataloader(), self.lottery.score_batches))
        mine = gather_evidence(self._network, batches, self._loss, within=self.weights)

        def total(tensor: Tensor) -> Tensor:
            return cast(Tensor, self.accelerator.reduce(tensor, "sum"))

        return {
            name: Evidence(
                gradient=total(cast(Tensor, known.gradient)),
                input_norm=None if known.input_norm is None else total(known.input_norm.square()).sqrt(),
                start=start.tensors[name].to(self.weights[name].device),
            )
            for name, known in mine.items()
        }

    def _moment(self) -> int:
        """The optimizer step that levels rewind to."""
        steps_per_epoch, steps = self.count_steps()
        moment = self.rewind.in_steps(steps_per_epoch)
        self.check_step(moment, steps)
        return moment

    def _level_arguments(self, run: RunFolder) -> dict[str, Any]:
        """What the TrainingArguments are changed to for the present level."""
        changed: dict[str, Any] = {"output_dir": str(run.level(self._level))}
        if self._level and self.rewind.kind == "none":
            rate = self.lottery.fine_tuning_learning_rate
            changed["learning_rate"] = self.args.learning_rate / 10 if rate is None else rate
            changed |= {"lr_scheduler_type": "constant", "warmup_steps": 0}
        return changed

    def _settings(self) -> dict[str, Any]:
        settings = {name: value for name, value in self.args.to_dict().items() if not name.startswith(_FREE_SETTINGS)}
        score = getattr(self.score, "__name__", str(self.score))
        return _plain({**settings, **self.settings, "score": score, "world_size": self.args.world_size})

    def _loss(self, model: torch.nn.Module, inputs: Any) -> Tensor:
        return cast(Tensor, self.compute_loss(model, inputs))

    def _write(self, action: Callable[[], Any]) -> None:
        """Write on one process; the others wait until it is done, since they read what was written."""
        if self.args.should_save:
            action()
        self.accelerator.wait_for_everyone()


class _LevelBar(ProgressCallback):
    """The Trainer's progress bar, with the level before it."""

    def __init__(self, trainer: LotteryTrainer):
        super().__init__()
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            level, sparsities = self.trainer._level, self.trainer.sparsities
            self.training_bar.set_description(f"level {level}/{len(sparsities) - 1}, sparsity {sparsities[level]:.3f}")


@contextmanager
def _changed(args: Any, **values: Any) -> Iterator[None]:
    """Change attributes for the time of a block."""
    before = {name: getattr(args, name) for name in values}
    try:
        for name, value in values.items():
            setattr(args, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(args, name, value)


def _level_seed(seed: int, level: int, purpose: int = 0) -> int:
    """A seed for each level and purpose that no other run shares, as seed + level would be with seed + 1."""
    return int(np.random.SeedSequence([seed, level, purpose]).generate_state(1)[0])


def _plain(value: Any) -> Any:
    """The value in JSON terms; enumerations become their text."""
    return json.loads(json.dumps(value, default=lambda item: item.item() if hasattr(item, "item") else str(item)))
