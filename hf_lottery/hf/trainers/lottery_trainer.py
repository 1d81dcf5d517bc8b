"""LotteryTrainer: a Trainer whose train() finds a ticket."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from accelerate.utils import broadcast
from torch import Tensor, nn
from transformers import ProgressCallback, enable_full_determinism, set_seed
from transformers.trainer_utils import TrainOutput

from ...masks.mask import Mask
from ...networks.names import named_weights
from ...networks.shards import is_sharded
from ...pruning.scores import Score, score_weights
from ...signs.signed_mask import sign_agreement
from ...symmetry.spec import PermutationSpec
from ...training.levels import Level, run_levels
from ...training.rewind import parse_rewind
from ...training.snapshot import Snapshot
from ..hub.reference import Reference
from .arguments import SCORES, LotteryArguments
from .callbacks import refuse_flat_weights
from .garbage import frozen_collector
from .level_bar import LevelBar
from .level_pruning import WeightPruning, check_same_mask, level_evidence
from .run_folder import RunFolder
from .run_identity import RunIdentity
from .run_lock import locked_folder
from .run_settings import level_seed, name_of, run_settings
from .search_checks import check_arguments, check_search
from .search_on_disk import SearchOnDisk
from .search_tickets import last_ticket, push_level, push_levels
from .sparse_trainer import SparseTrainer, changed
from .unit_pruning import UnitPruning

logger = logging.getLogger(__name__)


class LotteryTrainer(SparseTrainer):
    """A Trainer whose :meth:`train` finds a lottery ticket: it trains, scores, prunes and rewinds at every level.

    Each level trains in its own folder, such as ``level-03/`` in ``args.output_dir``, with a fresh optimizer. Its data
    order depends only on the seed and the level; with ``data_seed`` set, all levels share one order. See
    :class:`~hf_lottery.hf.trainers.run_folder.RunFolder` for the files on disk.

    Args:
        args: :class:`LotteryArguments`, with ``sparsity`` or ``levels``.
        score: Your own score, which replaces ``args.score``.
        spec: The symmetries of the model, whose units a structured search prunes. Default: they are discovered on a
            batch of the training data without its labels.
        settings: Further settings that must be the same when a run is resumed, as JSON values, such as the name of the
            data set. The other arguments are the Trainer's; a ``model_init`` is called once.

    Attributes:
        weights: Name -> parameter that may be pruned.
        pruning: What is pruned: single weights, or with ``args.structured`` whole units.
        about: What the ticket will say of how it was found, beside settings, versions, date and hardware.
        history: One ``{"level", "sparsity", "metrics"}`` for each finished level; the final run also has ``"final_run":
            True``. The metric ``sign_flips`` is the fraction of kept weights whose sign changed in training.

    Raises:
        ValueError: A setting is out of range, the rewind step lies beyond training, or the model has nothing to prune.
        RuntimeError: Two processes found different masks during training.
    """

    _default_rewind = "init"
    _keeps_stops = True
    _knows_norms = False  # whether norm_interpolation means anything

    def __init__(
        self,
        *args,
        score: Score | None = None,
        spec: PermutationSpec | None = None,
        settings: Mapping[str, Any] | None = None,
        **kwargs,
    ):
        if given := {"mask", "first_step"} & kwargs.keys():
            raise TypeError(f"a LotteryTrainer must find its own mask; received {min(given)}. Use SparseTrainer.")
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, LotteryArguments):
            raise TypeError(f"args must be LotteryArguments; received {type(self.args).__name__}.")
        check_arguments(self, knows_norms=self._knows_norms)
        self.settings, self.about = dict(settings or {}), {}
        # The Trainer would call model_init at every train(), which would undo the rewinding.
        self.model_init = None
        self.lottery = self.args
        self.score = score or SCORES[self.lottery.score]
        self._score_name = name_of(score) if score else self.lottery.score
        self.sparsities = self.lottery.get_sparsities()
        self.rewind_point = parse_rewind(self.lottery.rewind or self._default_rewind)
        self.pruning = self._what_to_prune(spec)
        self.weights = self.pruning.weights
        check_search(self.network, self.weights, score=self.score)
        self.pruning.check(self.sparsities[: -1 if self.lottery.final_run else None])
        self.history: list[dict[str, Any]] = []
        self._level, self._level_sparsity, self._trained_here = 0, 0.0, False
        self._identity, self._resumes = RunIdentity(self, self.lottery), False
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(LevelBar(self._describe_level))

    def _what_to_prune(self, spec: PermutationSpec | None) -> WeightPruning | UnitPruning:
        if self.lottery.structured:
            return UnitPruning(self, self.lottery, spec)
        if spec is not None:
            raise ValueError("spec must come with structured=True, which prunes the units of its groups; received one.")
        return WeightPruning(self.network, self.lottery)

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
            ValueError: The run in ``args.output_dir`` has other settings, or began from another model, other initial
                weights or other data; see ``args.resume_with_other``.
            RuntimeError: Another process uses ``args.output_dir``.
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
        with locked_folder(base, main=self.is_world_process_zero()), frozen_collector():
            run = RunFolder(base, self.get_settings(), resume=bool(resume_from_checkpoint))
            self._identity.check(run)  # no process writes before all have read
            kept = {
                "keep_models": self.lottery.save_level_models,
                "keep_checkpoints": self.lottery.save_level_checkpoints,
            }
            self._search = SearchOnDisk(self, run, rewind=self.rewind_point, moment=moment, **kept)
            self._resumes = run.exists
            with self._says_how_to_go_on():
                self._run_levels(ignore_keys_for_eval)
                return self._conclude()

    def _run_levels(self, ignore_keys: Any) -> None:
        """Train the levels that are not finished yet."""
        search, run = self._search, self._search.run
        search.open(self.pruning.dense(), levels=len(self.sparsities))
        if len(run.finished) == len(self.sparsities):
            self._say("The search in %s is finished: its ticket is loaded, and nothing is trained.", run.root)
        levels = run_levels(
            self.sparsities,
            begin=self._begin_level,
            train=partial(self._train_level, ignore_keys),
            next_mask=self._next_mask,
            hand_over=search.hand_over,
            first=len(run.finished),
        )
        for level in levels:
            search.record(level, sparsity=self._level_sparsity, final_run=self.is_final_run(level.number))
            del level  # free its weights before the next level loads its own

    @contextmanager
    def _says_how_to_go_on(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._say(
                "The search in %s stopped at level %d, step %d. Call train(resume_from_checkpoint=True), or run the "
                "same command again, to go on from its last checkpoint.",
                self._search.run.root, self._level, self.state.global_step,
            )  # fmt: skip
            raise

    def _say(self, message: str, *values: Any) -> None:
        if self.is_world_process_zero():
            logger.warning(message, *values)  # what is less than a warning is not shown by default

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does, with level and sparsity in every record."""
        super().log({**logs, "level": self._level, "sparsity": self._level_sparsity}, start_time)

    def rewind_step(self) -> int:
        """Return the optimizer step that levels rewind to.

        Raises:
            ValueError: The step lies beyond training, or is given in epochs of a stream.
        """
        per_epoch, last = self.count_steps()[0], len(self.sparsities) - 1
        if per_epoch is None and self.rewind_point.kind == "epoch":
            raise ValueError(
                "rewind must be in steps for a stream, whose epochs have no known length; received "
                f"{self.rewind_point}. Pass rewind='step:K'."
            )
        moment = self.rewind_point.in_steps(steps_per_epoch=per_epoch)
        for level in {0, min(1, last), last}:
            with changed(self.args, **self.level_arguments(level)):
                self.check_step(moment, self.count_steps()[1])
        return moment

    def is_final_run(self, level: int) -> bool:
        """Tell whether a level is the final run, which trains at the last mask after the search."""
        return bool(self.lottery.final_run) and level == len(self.sparsities) - 1

    def level_arguments(self, level: int) -> dict[str, Any]:
        """Return the TrainingArguments that are changed for a level, with their values."""
        return {} if self.is_final_run(level) else self.lottery.get_level_arguments(level)

    def get_settings(self) -> dict[str, Any]:
        """Return the settings that must be the same when a run is resumed, as JSON values."""
        own = {**self.settings, "score": self._score_name, "rewind": str(self.rewind_point)}
        own |= {"data_collator": name_of(self.data_collator), **self.pruning.settings}
        if self.compute_loss_func is not None:
            own["compute_loss_func"] = name_of(self.compute_loss_func)
        if self.optimizer_cls_and_kwargs is not None:
            kind, settings = self.optimizer_cls_and_kwargs
            own["optimizer"] = name_of(partial(kind, **settings))
        return run_settings(self.args, own)

    def _begin_level(self, number: int) -> tuple[Mask, Snapshot]:
        begun = self._search.begin(number)
        self._level, self._level_sparsity = number, self.pruning.sparsity_of(begun[0])  # counted once, not at every log
        return begun

    def _train_level(self, ignore_keys: Any, number: int, mask: Mask, start: Snapshot) -> TrainOutput:
        """Train one level in its own folder, measure it, and save the trained model."""
        run = self._search.run
        checkpoint = self.last_whole_checkpoint(run.level(number))
        if self._resumes:
            where = f"after step {checkpoint.rpartition('-')[2]}" if checkpoint else "from its start"
            self._say("The search in %s goes on at level %d, %s.", run.root, number, where)
            self._resumes = False
        with self._search.capture(number):
            seed = level_seed(self.args.seed, number)
            (enable_full_determinism if self.args.full_determinism else set_seed)(seed)
            settings = {"output_dir": str(run.level(number)), "push_to_hub": False, **self.level_arguments(number)}
            settings["eval_on_start"] = self.args.eval_on_start and not checkpoint  # it was done at the start
            with changed(self.args, **settings):
                output = self._train_from(checkpoint, ignore_keys_for_eval=ignore_keys)
                metrics = dict(output.metrics) | self._measure(mask, start, ignore_keys)
            self._trained_here = True
        folder = str(run.trained(number))
        if self.layout == "SHARDED_STATE_DICT":  # for which the Trainer saves no loadable model
            self._save(folder, state_dict=self.accelerator.get_state_dict(self.model))
        self.save_model(folder, _internal_call=True)
        self._search.record_trained(number)
        return output._replace(metrics=metrics)

    def _next_mask(self, level: Level, sparsity: float) -> Mask:
        if self.is_final_run(level.number + 1):
            return level.mask
        set_seed(level_seed(self.args.seed, level.number, 1))  # for random scores and the batches of the evidence
        count = self.lottery.score_batches
        evidence = level_evidence(self, self.weights, self.score, level.start, batches=count)
        scores = score_weights(self.weights, self.score, evidence=evidence)
        pruned = self.pruning.prune(scores, sparsity, within=level.mask)
        check_same_mask(pruned, level.number)
        return pruned

    def _conclude(self) -> TrainOutput:
        """Load the last level, and write and push its ticket."""
        search, run = self._search, self._search.run
        self._level = last = len(self.sparsities) - 1
        self.mask, start = run.read_start(last)
        self._load_trained(run.trained(last))
        self.history = search.history()
        begin = self._ticket_start(start)
        if self.lottery.rewind_by_reference:
            begin = Reference.to(begin, self.network, self.args.seed)
        self.ticket = last_ticket(
            run, self, begin, settings=self.get_settings(), history=self.history, about=self.about
        )
        search.write(lambda: self.ticket.save_pretrained(run.ticket))
        if self.args.push_to_hub:
            where = {"private": self.args.hub_private_repo, "token": self.args.hub_token}
            search.write(lambda: push_levels(self.ticket, run, cast(str, self.hub_model_id), **where))
        record = run.finished[-1]
        return TrainOutput(record["steps"], record["loss"], record["metrics"])

    def add_to_ticket(self, **info: Any) -> None:
        """Add what was found out after the search to the ticket's info, and write and push the ticket again.

        Args:
            info: Further keys of the info, such as ``comparison``.
        """
        self.ticket = replace(self.ticket, info={**self.ticket.info, **info})
        self._search.write(lambda: self.ticket.save_pretrained(self._search.run.ticket))
        if self.args.push_to_hub:
            where = {"private": self.args.hub_private_repo, "token": self.args.hub_token}
            self._search.write(lambda: push_level(self.ticket, cast(str, self.hub_model_id), **where))

    def _load_trained(self, folder: Path) -> None:
        """Put the trained weights of the last level into the network."""
        if not any(map(is_sharded, named_weights(self.network).values())):
            return self._load_from_checkpoint(str(folder))
        if not self._trained_here:
            raise NotImplementedError(
                "a finished run must be resumed with a model that is not sharded yet; received DTensors, which "
                f"cannot load its weights. Load the ticket in {self._search.run.ticket}, or start one process."
            )
        for buffer in self.network.buffers():
            buffer.copy_(cast(Tensor, broadcast(buffer)))  # each process has seen different batches

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

    def _files_beside(self) -> list[Path]:
        return self._search.files_beside(self._level)

    def _describe_level(self) -> str:
        return f"level {self._level}/{len(self.sparsities) - 1}, sparsity {self.sparsities[self._level]:.3f}"
