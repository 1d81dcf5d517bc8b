"""LotteryTrainer: a Trainer whose train() finds a ticket."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

from accelerate.utils import broadcast, gather_object
from torch import Tensor, nn
from transformers import PreTrainedConfig, ProgressCallback, enable_full_determinism, set_seed
from transformers.trainer_utils import SchedulerType, TrainOutput

from ...masks.mask import Mask
from ...masks.mask_series import MaskSeries
from ...networks.names import named_weights
from ...networks.shards import as_shards, class_name, is_sharded
from ...pruning.mask_from_scores import prune
from ...pruning.scores import (
    Evidence,
    Score,
    gather_evidence,
    magnitude,
    movement,
    random_score,
    saliency,
    score_weights,
    wanda,
)
from ...signs.signed_mask import sign_agreement
from ...training.rewind import parse_rewind
from ...training.search import check_levels
from ...training.snapshot import Snapshot, save_snapshot
from ..hub.reference import Reference
from ..hub.ticket import Ticket
from ..hub.transfer import base_model
from ..prunable_weights import prunable
from .arguments import SCORES, LotteryArguments
from .callbacks import SnapshotCallback, refuse_flat_weights
from .run_folder import RunFolder
from .run_settings import level_seed, plain, run_settings
from .sparse_trainer import SparseTrainer, changed


class LotteryTrainer(SparseTrainer):
    """A Trainer whose :meth:`train` finds a lottery ticket: all levels of train, score, prune and rewind.

    Each level trains in its own folder ``level-03/`` of ``args.output_dir`` with a fresh optimizer and a data order of
    its own that depends on the seed and the level alone (with ``data_seed`` set, all levels share one order). See
    :class:`~hf_lottery.hf.trainers.run_folder.RunFolder` for what is left on disk.

    Args:
        args: :class:`LotteryArguments`, with ``sparsity`` or ``levels``.
        score: Your own score, instead of the one that ``args.score`` names.
        settings: What else must be the same for a run to be resumed, in JSON terms, such as the name of the data set.
            The other arguments are the Trainer's; a ``model_init`` is called once.

    Attributes:
        weights: Name -> parameter that may be pruned.
        history: One ``{"level", "sparsity", "metrics"}`` for each finished level, and ``"final_run": True`` of that;
            among the metrics ``sign_flips``, the fraction of the kept weights that trained into another sign.

    Raises:
        ValueError: A setting is out of range, the rewind step lies beyond training, or the model has nothing to prune.
        RuntimeError: While training, if two processes find different masks.
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
        # The Trainer would call it at every train(), which would undo the rewinding.
        self.model_init = None
        self.lottery = self.args
        self.score = score or SCORES[self.lottery.score]
        self.sparsities = self.lottery.get_sparsities()
        self.rewind_point = parse_rewind(self.lottery.rewind or self._default_rewind)
        self.weights = prunable(self.network, include=self.lottery.include, exclude=self.lottery.exclude)
        self.scope = self.lottery.get_scope(self.weights.kinds)
        self._check_levels()
        self.history: list[dict[str, Any]] = []
        self._level, self._trained_here = 0, False
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
        refuse_flat_weights()
        base = cast(str, self.args.output_dir)
        if trial is not None:
            raise NotImplementedError("hyperparameter search over whole runs must go through your own loop.")
        path = resume_from_checkpoint if isinstance(resume_from_checkpoint, str | Path) else base
        if Path(path).resolve() != Path(base).resolve():
            raise ValueError(
                f"a run must be resumed from its output_dir {base}; received {path}. Pass resume_from_checkpoint=True."
            )
        moment = self.rewind_step()
        run = RunFolder(base, self.get_settings(), resume=bool(resume_from_checkpoint))
        self.accelerator.wait_for_everyone()  # every process has looked before one of them writes
        self._begin(run)
        for number in range(len(run.finished), len(self.sparsities)):
            self._train_level(run, number, moment, ignore_keys_for_eval)
        return self._conclude(run)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does; every record says its level and sparsity."""
        super().log({**logs, "level": self._level, "sparsity": self._held_sparsity}, start_time)

    def _check_arguments(self) -> None:
        for name in ("norm_interpolation", "norm_include", "norm_exclude"):
            if not self._knows_norms and (given := getattr(self.args, name, None)) is not None:
                raise ValueError(f"{name} must be left out here; received {given!r}. Use WinningSignTrainer.")
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
        pruned = self.sparsities[: -1 if self.lottery.final_run else None]
        check_levels(self.weights, pruned, scope=self.scope, min_density=self.lottery.min_density)
        for name, weight in self.weights.items():
            if self.score is saliency and not weight.requires_grad:
                raise ValueError(f"saliency must be able to train {name!r}; received a frozen one. Exclude it.")
            if self.score is wanda and self.weights.kinds[name] in ("experts", "MultiheadAttention"):
                raise ValueError(
                    f"wanda must see the input of a weight; received {name!r}, a {self.weights.kinds[name]} parameter. "
                    "Exclude it, or choose another score."
                )

    def _begin(self, run: RunFolder) -> None:
        self._run = run
        has_start = run.has_start(0)
        self._write(lambda: (run.save(), run.sweep()))
        if not has_start:
            self._hand_over(run, 0, Mask.dense(self.weights))

    def _hand_over(self, run: RunFolder, number: int, mask: Mask) -> None:
        """Make the model as it is the start of a level."""
        save_snapshot(self.network, run.handed_over, write=self.args.should_save)
        self._write(lambda: run.write_start(number, mask, run.handed_over))

    def _train_level(self, run: RunFolder, number: int, moment: int, ignore_keys) -> None:
        mask, start = run.read_start(number)
        start.restore_(self.network)
        self.mask = mask if number else None
        self._level, self.first_step = number, start.step
        self.optimizer = self.lr_scheduler = None
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
        self._finish_level(run, mask, start, metrics, output, moment)

    def _finish_level(
        self, run: RunFolder, mask: Mask, start: Snapshot, metrics: dict, output: TrainOutput, moment: int
    ) -> None:
        number = self._level
        self._save_trained(run.trained(number))
        if number + 1 < len(self.sparsities):
            following = self._prune(mask, start)
            if self.rewind_point.keeps_weights:
                self._hand_over(run, number + 1, following)
            else:
                begin = run.moment if moment else run.level(0) / run.moment.name
                if not begin.exists():
                    raise ValueError(
                        f"the rewind step must lie within training; received step {moment}, "
                        f"but training stopped at step {output.global_step}. Rewind earlier."
                    )
                self._write(lambda: run.write_start(number + 1, following, begin))
        record = {"level": number, "sparsity": mask.sparsity, "metrics": plain(metrics)}
        if self.is_final_run(number):
            record["final_run"] = True
        run.finished.append({**record, "steps": output.global_step, "loss": output.training_loss})
        self._write(run.save)
        if number and not self.lottery.save_level_models:
            self._write(lambda: run.drop_trained(number - 1))

    def _conclude(self, run: RunFolder) -> TrainOutput:
        self._level = last = len(self.sparsities) - 1
        mask, start = run.read_start(last)
        self.mask = mask
        if any(map(is_sharded, named_weights(self.network).values())):
            if not self._trained_here:
                raise NotImplementedError(
                    "a finished run must be resumed with a model that is not sharded yet; received DTensors, into "
                    f"which its trained weights are not loaded. Read {run.ticket}, or start one process."
                )
            for buffer in self.network.buffers():
                buffer.copy_(cast(Tensor, broadcast(buffer)))  # each process has seen other batches
        else:
            self._load_from_checkpoint(str(run.trained(last)))
        kept = ("level", "sparsity", "metrics", "final_run")
        self.history = [{key: record[key] for key in kept if key in record} for record in run.finished]
        self.ticket = self._make_ticket(run, self._ticket_start(start))
        self._write(lambda: self.ticket.save_pretrained(run.ticket))
        if self.args.push_to_hub:
            self._write(lambda: self._push(run))
        record = run.finished[-1]
        return TrainOutput(record["steps"], record["loss"], record["metrics"])

    def _make_ticket(self, run: RunFolder, start: Snapshot) -> Ticket:
        config = getattr(self.model, "config", None)
        config = config if isinstance(config, PreTrainedConfig) else None
        info = {
            "level": len(self.sparsities) - 1,
            "architecture": class_name(self.network),
            "settings": self.get_settings(),
            "history": self.history,
        }
        if config is not None and (base := base_model(config, token=self.args.hub_token)):
            info["base_model"] = base
        series = MaskSeries(Mask.from_pretrained(run.level(number)) for number in range(len(self.sparsities)))
        by_reference = self.lottery.rewind_by_reference
        rewind = Reference.to(start, self.network, self.args.seed) if by_reference else start
        return Ticket(series[-1], rewind, info, config, series)

    def _push(self, run: RunFolder) -> None:
        """Push the ticket of every level in a commit of its own, tagged ``level-03``; the last one stays on top."""
        for level in range(len(self.sparsities)):
            ticket = self._level_ticket(run, level)
            ticket.push_to_hub(
                cast(str, self.hub_model_id), tag=f"level-{level:02d}", private=self.args.hub_private_repo,
                token=self.args.hub_token, commit_message=f"Level {level}, sparsity {ticket.mask.sparsity:.4f}",
            )  # fmt: skip

    def _level_ticket(self, run: RunFolder, level: int) -> Ticket:
        """The ticket of a level: the last one's, but for what differs."""
        series, rewind = self.ticket.series, self.ticket.start
        assert series is not None
        if level == len(series) - 1:
            return self.ticket
        if isinstance(rewind, Snapshot):  # a reference is to the same weights for every level
            rewind = run.read_start(level)[1]
        info = {**self.ticket.info, "level": level, "history": self.history[: level + 1]}
        until = MaskSeries(series[: level + 1])
        return replace(self.ticket, mask=until[-1], start=rewind, info=info, series=until)

    def _ticket_start(self, start: Snapshot) -> Snapshot:
        """What the ticket starts from, given what its level started from."""
        return start

    def _prune(self, mask: Mask, start: Snapshot) -> Mask:
        if self.is_final_run(self._level + 1):
            return mask
        set_seed(level_seed(self.args.seed, self._level, 1))  # for the random score and the batches of the evidence
        evidence: Mapping[str, Evidence] = {}
        if self.score is movement:
            evidence = {name: Evidence(start=as_shards(start.tensors[name], w)) for name, w in self.weights.items()}
        elif self.score not in (magnitude, random_score):
            evidence = self._gather_evidence(start)
        scores = score_weights(self.weights, self.score, evidence)
        sparsity, least = self.sparsities[self._level + 1], self.lottery.min_density
        pruned = prune(scores, sparsity, scope=self.scope, min_density=least, within=mask)
        self._check_equal(pruned)
        return pruned

    def _check_equal(self, mask: Mask) -> None:
        """Raise unless every process has found the same mask: their networks have come apart otherwise."""
        found = gather_object([mask.sha256()])
        if len(set(found)) > 1:
            raise RuntimeError(
                f"every process must find the same mask; received {len(set(found))} different ones of {len(found)} "
                f"processes at level {self._level}. Their weights differ, or a score of your own is not deterministic."
            )

    def _gather_evidence(self, start: Snapshot) -> dict[str, Evidence]:
        count = self.lottery.score_batches * self.args.gradient_accumulation_steps
        batches = map(self._prepare_inputs, islice(self.get_train_dataloader(), count))
        mine = gather_evidence(self.network, batches, self.loss, within=self.weights)

        def total(tensor: Tensor) -> Tensor:
            if is_sharded(tensor):  # FSDP2 has put the mean over the processes here
                return tensor * self.args.world_size
            return cast(Tensor, self.accelerator.reduce(tensor, "sum"))

        return {
            name: Evidence(
                gradient=total(cast(Tensor, known.gradient)),
                input_norm=None if known.input_norm is None else total(known.input_norm.square()).sqrt(),
                start=as_shards(start.tensors[name], self.weights[name]),
            )
            for name, known in mine.items()
        }

    def _measure(self, mask: Mask, start: Snapshot, ignore_keys) -> dict[str, float]:
        """The metrics of the level that was just trained."""
        metrics = self.evaluate(ignore_keys=ignore_keys) if self.eval_dataset is not None else {}
        return {**metrics, "sign_flips": 1 - sign_agreement(mask, start.tensors, named_weights(self.network)).overall}

    def rewind_step(self) -> int:
        """The optimizer step that levels rewind to."""
        moment, last = self.rewind_point.in_steps(self.count_steps()[0]), len(self.sparsities) - 1
        for level in {0, min(1, last), last}:
            with changed(self.args, **self.level_arguments(level)):
                self.check_step(moment, self.count_steps()[1])
        return moment

    def is_final_run(self, level: int) -> bool:
        return bool(self.lottery.final_run) and level == len(self.sparsities) - 1

    def level_arguments(self, level: int) -> dict[str, Any]:
        """What the TrainingArguments are changed to for a level."""
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

    def _take_shards(self) -> None:
        super()._take_shards()
        named = named_weights(self.network)
        for name in self.weights:  # and let go of the whole ones
            self.weights[name] = cast(nn.Parameter, named[name])

    @property
    def _layout(self) -> str:
        """How a checkpoint of this launch stores the optimizer's state."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        return "whole" if plugin is None else plugin.state_dict_type.name

    def _save_trained(self, folder: Path) -> None:
        if self._layout == "SHARDED_STATE_DICT":  # of which the Trainer saves no model that can be loaded elsewhere
            self._save(str(folder), state_dict=self.accelerator.get_state_dict(self.model))
        self.save_model(str(folder), _internal_call=True)

    def _save_checkpoint(self, model, trial) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        folder = Path(cast(str, self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and not self.args.save_only_model:
            self._run.mark_complete(folder, self._layout)

    def get_settings(self) -> dict[str, Any]:
        score = getattr(self.score, "__name__", str(self.score))
        return run_settings(self.args, {**self.settings, "score": score, "rewind": str(self.rewind_point)})

    def loss(self, model: nn.Module, inputs: Any) -> Tensor:
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
