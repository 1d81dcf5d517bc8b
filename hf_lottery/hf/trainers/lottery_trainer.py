"""LotteryTrainer: a Trainer whose train() finds a ticket."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from accelerate.utils import broadcast
from torch import Tensor, nn
from transformers import ProgressCallback, enable_full_determinism, set_seed
from transformers.trainer_utils import SchedulerType, TrainOutput

from ...masks.mask import Mask
from ...networks.names import named_weights
from ...networks.shards import is_sharded
from ...pruning.mask_from_scores import prune
from ...pruning.scores import Score, check_score, score_weights
from ...signs.signed_mask import sign_agreement
from ...training.levels import Level, check_levels, run_levels
from ...training.rewind import parse_rewind
from ...training.snapshot import Snapshot, save_snapshot
from ..hub.reference import Reference
from ..prunable_weights import prunable
from .arguments import SCORES, LotteryArguments
from .callbacks import SnapshotCallback, refuse_flat_weights
from .level_bar import LevelBar
from .level_pruning import check_evidence, check_same_mask, level_evidence
from .run_folder import RunFolder
from .run_settings import level_seed, plain, run_settings
from .search_tickets import last_ticket, push_levels
from .sparse_trainer import SparseTrainer, changed


class LotteryTrainer(SparseTrainer):
    """A Trainer whose :meth:`train` finds a lottery ticket: it trains, scores, prunes and rewinds at every level.

    Each level trains in its own folder, such as ``level-03/`` in ``args.output_dir``, with a fresh optimizer. Its data
    order depends only on the seed and the level; with ``data_seed`` set, all levels share one order. See
    :class:`~hf_lottery.hf.trainers.run_folder.RunFolder` for the files on disk.

    Args:
        args: :class:`LotteryArguments`, with ``sparsity`` or ``levels``.
        score: Your own score, which replaces ``args.score``.
        settings: Further settings that must be the same when a run is resumed, as JSON values, such as the name of the
            data set. The other arguments are the Trainer's; a ``model_init`` is called once.

    Attributes:
        weights: Name -> parameter that may be pruned.
        history: One ``{"level", "sparsity", "metrics"}`` for each finished level; the final run also has ``"final_run":
            True``. The metric ``sign_flips`` is the fraction of kept weights whose sign changed in training.

    Raises:
        ValueError: A setting is out of range, the rewind step lies beyond training, or the model has nothing to prune.
        RuntimeError: Two processes found different masks during training.
    """

    _default_rewind = "init"
    _knows_norms = False  # whether norm_interpolation means anything

    def __init__(self, *args, score: Score | None = None, settings: Mapping[str, Any] | None = None, **kwargs):
        if given := {"mask", "first_step"} & kwargs.keys():
            raise TypeError(f"a LotteryTrainer must find its own mask; received {min(given)}. Use SparseTrainer.")
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, LotteryArguments):
            raise TypeError(f"args must be LotteryArguments; received {type(self.args).__name__}.")
        self._check_arguments()
        self.settings = dict(settings or {})
        # The Trainer would call model_init at every train(), which would undo the rewinding.
        self.model_init = None
        self.lottery = self.args
        self.score = score or SCORES[self.lottery.score]
        self._score_name = getattr(score, "__name__", str(score)) if score else self.lottery.score
        self.sparsities = self.lottery.get_sparsities()
        self.rewind_point = parse_rewind(self.lottery.rewind or self._default_rewind)
        self.weights = prunable(self.network, include=self.lottery.include, exclude=self.lottery.exclude)
        self.scope = self.lottery.get_scope(kinds=self.weights.kinds)
        self._check_search()
        self.history: list[dict[str, Any]] = []
        self._level, self._trained_here = 0, False
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(LevelBar(self._describe_level))

    def train(self, resume_from_checkpoint: str | bool | None = None, trial=None, ignore_keys_for_eval=None):
        """Find the ticket.

        Args:
            resume_from_checkpoint: True continues the run in ``args.output_dir`` at the level and step where it
                stopped, or starts a new one if there is none. A path must be that folder.
            trial: Not supported.
            ignore_keys_for_eval: As for the Trainer.

        Returns:
            The TrainOutput of the last level. Afterwards the model holds its trained weights, ``mask`` holds its mask,
            and ``args.output_dir/ticket`` holds the ticket.

        Raises:
            FileExistsError: There is a run in ``args.output_dir``, and ``resume_from_checkpoint`` is not set.
            ValueError: The run in ``args.output_dir`` has other settings.
        """
        refuse_flat_weights()
        if trial is not None:
            raise NotImplementedError("hyperparameter search is not supported. Loop over whole runs instead.")
        base = cast(str, self.args.output_dir)
        path = resume_from_checkpoint if isinstance(resume_from_checkpoint, str | Path) else base
        if Path(path).resolve() != Path(base).resolve():
            raise ValueError(
                f"a run must be resumed from its output_dir {base}; received {path}. Pass resume_from_checkpoint=True."
            )
        moment = self.rewind_step()
        run = RunFolder(base, self.get_settings(), resume=bool(resume_from_checkpoint))
        self.accelerator.wait_for_everyone()  # no process writes before all have read
        self._begin(run)
        levels = run_levels(
            self.sparsities,
            begin=self._begin_level,
            train=partial(self._train_level, moment, ignore_keys_for_eval),
            next_mask=self._next_mask,
            hand_over=partial(self._hand_over, moment),
            first=len(run.finished),
        )
        for level in levels:
            self._record(run, level)
            del level  # free its weights before the next level loads its own
        return self._conclude(run)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does, with level and sparsity in every record."""
        super().log({**logs, "level": self._level, "sparsity": self._held_sparsity}, start_time)

    def rewind_step(self) -> int:
        """Return the optimizer step that levels rewind to.

        Raises:
            ValueError: The step lies beyond training.
        """
        moment, last = self.rewind_point.in_steps(steps_per_epoch=self.count_steps()[0]), len(self.sparsities) - 1
        for level in {0, min(1, last), last}:
            with changed(self.args, **self.level_arguments(level)):
                self.check_step(moment, self.count_steps()[1])
        return moment

    def is_final_run(self, level: int) -> bool:
        """Tell whether a level is the final run, which trains at the last mask after the search."""
        return bool(self.lottery.final_run) and level == len(self.sparsities) - 1

    def level_arguments(self, level: int) -> dict[str, Any]:
        """Return the TrainingArguments that are changed for a level, with their values."""
        settings: dict[str, Any] = {}
        if self.is_final_run(level):
            return settings
        epochs = self.lottery.level_epochs if level else self.lottery.dense_epochs
        if epochs is not None:
            settings |= {"num_train_epochs": epochs, "max_steps": -1}
        if self.lottery.level_lr_scheduler_type is not None:
            settings["lr_scheduler_type"] = SchedulerType(self.lottery.level_lr_scheduler_type)
        if level and self.rewind_point.kind == "none":
            rate = self.lottery.fine_tuning_learning_rate
            settings["learning_rate"] = self.args.learning_rate / 10 if rate is None else rate
            settings |= {"lr_scheduler_type": SchedulerType.CONSTANT, "warmup_steps": 0}
        return settings

    def get_settings(self) -> dict[str, Any]:
        """Return the settings that must be the same when a run is resumed, as JSON values."""
        own = {**self.settings, "score": self._score_name, "rewind": str(self.rewind_point)}
        return run_settings(self.args, own)

    def _check_arguments(self) -> None:
        for name in ("norm_interpolation", "norm_include", "norm_exclude"):
            if not self._knows_norms and (given := getattr(self.args, name, None)) is not None:
                raise ValueError(f"{name} must be left out here; received {given!r}. Use WinningSignTrainer.")
        if self.optimizer is not None or self.lr_scheduler is not None:
            raise ValueError(
                "every level must make its own optimizer and schedule; received `optimizers`. "
                "Pass optimizer_cls_and_kwargs, or override create_optimizer."
            )
        for name in ("bf16_full_eval", "fp16_full_eval"):
            if getattr(self.args, name):
                raise ValueError(
                    f"{name} must be off, because it casts the weights that are pruned and rewound; received True. "
                    "Use bf16 or fp16, which do not cast them."
                )

    def _check_search(self) -> None:
        """Check before the first training what would otherwise fail after it."""
        pruned = self.sparsities[: -1 if self.lottery.final_run else None]
        check_levels(self.weights, pruned, scope=self.scope, min_density=self.lottery.min_density)
        check_evidence(self.score, self.weights)
        check_score(self.score, self.weights)

    def _begin(self, run: RunFolder) -> None:
        self._run = run
        has_start = run.has_start(0)
        self._write(lambda: (run.save(), run.sweep()))
        if not has_start:
            self._save_start(0, Mask.dense(self.weights))

    def _save_start(self, number: int, mask: Mask) -> None:
        """Make the present model the start of a level."""
        run = self._run
        save_snapshot(self.network, run.handed_over, write=self.args.should_save)
        self._write(lambda: run.write_start(number, mask, run.handed_over))

    def _begin_level(self, number: int) -> tuple[Mask, Snapshot]:
        mask, start = self._run.read_start(number)
        start.restore_(self.network)
        self.mask = mask if number else None
        self._level, self.first_step = number, start.step
        self.optimizer = self.lr_scheduler = None
        return mask, start

    def _train_level(self, moment: int, ignore_keys: Any, number: int, mask: Mask, start: Snapshot) -> TrainOutput:
        """Train one level in its own folder, measure it, and save the trained model."""
        run = self._run
        checkpoint = run.last_checkpoint(number, self._layout)
        capture = SnapshotCallback(moment, run.moment) if moment and not number else None
        if capture:
            self.add_callback(capture)
        seed = level_seed(self.args.seed, number)
        (enable_full_determinism if self.args.full_determinism else set_seed)(seed)
        try:
            settings = {"output_dir": str(run.level(number)), "push_to_hub": False, **self.level_arguments(number)}
            with changed(self.args, **settings):
                output = super().train(resume_from_checkpoint=checkpoint, ignore_keys_for_eval=ignore_keys)
                metrics = dict(output.metrics) | self._measure(mask, start, ignore_keys)
            self._trained_here = True
        finally:
            if capture:
                self.remove_callback(capture)
        self._save_trained(run.trained(number))
        return output._replace(metrics=metrics)

    def _next_mask(self, level: Level, sparsity: float) -> Mask:
        if self.is_final_run(level.number + 1):
            return level.mask
        set_seed(level_seed(self.args.seed, level.number, 1))  # for random scores and the batches of the evidence
        count = self.lottery.score_batches
        evidence = level_evidence(self, self.weights, self.score, level.start, batches=count)
        scores = score_weights(self.weights, self.score, evidence=evidence)
        least = self.lottery.min_density
        pruned = prune(scores, sparsity, scope=self.scope, min_density=least, within=level.mask)
        check_same_mask(pruned, level.number)
        return pruned

    def _hand_over(self, moment: int, number: int, mask: Mask) -> None:
        run = self._run
        if self.rewind_point.keeps_weights:
            return self._save_start(number, mask)
        begin = run.moment if moment else run.level(0) / run.moment.name
        if not begin.exists():
            raise ValueError(
                f"the rewind step must lie within training; received step {moment}, "
                f"but training stopped at step {self.state.global_step}. Rewind earlier."
            )
        self._write(lambda: run.write_start(number, mask, begin))

    def _record(self, run: RunFolder, level: Level) -> None:
        """Record that a level is finished."""
        output = level.metrics
        record = {"level": level.number, "sparsity": level.sparsity, "metrics": plain(output.metrics)}
        if self.is_final_run(level.number):
            record["final_run"] = True
        run.finished.append({**record, "steps": output.global_step, "loss": output.training_loss})
        self._write(run.save)
        if level.number and not self.lottery.save_level_models:
            self._write(lambda: run.drop_trained(level.number - 1))

    def _conclude(self, run: RunFolder) -> TrainOutput:
        self._level = last = len(self.sparsities) - 1
        mask, start = run.read_start(last)
        self.mask = mask
        if any(map(is_sharded, named_weights(self.network).values())):
            if not self._trained_here:
                raise NotImplementedError(
                    "a finished run must be resumed with a model that is not sharded yet; received DTensors, which "
                    f"cannot load its weights. Load the ticket in {run.ticket}, or start one process."
                )
            for buffer in self.network.buffers():
                buffer.copy_(cast(Tensor, broadcast(buffer)))  # each process has seen different batches
        else:
            self._load_from_checkpoint(str(run.trained(last)))
        kept = ("level", "sparsity", "metrics", "final_run")
        self.history = [{key: record[key] for key in kept if key in record} for record in run.finished]
        begin = self._ticket_start(start)
        if self.lottery.rewind_by_reference:
            begin = Reference.to(begin, self.network, self.args.seed)
        self.ticket = last_ticket(
            run, self.network, begin, settings=self.get_settings(), history=self.history, token=self.args.hub_token
        )
        self._write(lambda: self.ticket.save_pretrained(run.ticket))
        if self.args.push_to_hub:
            where = {"private": self.args.hub_private_repo, "token": self.args.hub_token}
            self._write(lambda: push_levels(self.ticket, run, cast(str, self.hub_model_id), **where))
        record = run.finished[-1]
        return TrainOutput(record["steps"], record["loss"], record["metrics"])

    def _ticket_start(self, start: Snapshot) -> Snapshot:
        """Return the weights that the ticket starts from, given those that its level started from."""
        return start

    def _measure(self, mask: Mask, start: Snapshot, ignore_keys) -> dict[str, float]:
        """Measure the level that was just trained."""
        metrics = self.evaluate(ignore_keys=ignore_keys) if self.eval_dataset is not None else {}
        return {**metrics, "sign_flips": 1 - sign_agreement(mask, start.tensors, named_weights(self.network)).overall}

    def _take_shards(self) -> None:
        super()._take_shards()
        named = named_weights(self.network)
        for name in self.weights:  # and release the whole ones
            self.weights[name] = cast(nn.Parameter, named[name])

    @property
    def _layout(self) -> str:
        """The layout in which checkpoints of this launch store the optimizer's state."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        return "whole" if plugin is None else plugin.state_dict_type.name

    def _save_trained(self, folder: Path) -> None:
        if self._layout == "SHARDED_STATE_DICT":  # for which the Trainer saves no loadable model
            self._save(str(folder), state_dict=self.accelerator.get_state_dict(self.model))
        self.save_model(str(folder), _internal_call=True)

    def _save_checkpoint(self, model, trial) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        folder = Path(cast(str, self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and not self.args.save_only_model:
            self._run.mark_complete(folder, self._layout)

    def _describe_level(self) -> str:
        return f"level {self._level}/{len(self.sparsities) - 1}, sparsity {self.sparsities[self._level]:.3f}"

    def _write(self, action: Callable[[], Any]) -> None:
        """Write on one process; the others wait, because they read what it writes."""
        if self.args.should_save:
            action()
        self.accelerator.wait_for_everyone()
