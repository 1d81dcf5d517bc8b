"""LotteryArguments: TrainingArguments and the settings of a search, where methods are chosen by string names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType

from ...pruning.schedules import Schedule, cubic, geometric, one_shot
from ...pruning.scopes import Scope, erk, global_ranking, n_of_m, uniform
from ...pruning.scores import Score, magnitude, movement, random_score, saliency, wanda
from ...storage.atomic import check_folder
from ...training.rewind import parse_rewind
from .bounds import check_bounds

SCORES: dict[str, Score] = {
    "magnitude": magnitude,
    "movement": movement,
    "random": random_score,
    "saliency": saliency,
    "wanda": wanda,
}
SCHEDULES: dict[str, Schedule] = {
    "cubic": cubic,
    "geometric": geometric,
    "one_shot": one_shot,
}
SCOPES: dict[str, Scope] = {"erk": erk, "global": global_ranking, "uniform": uniform}
NORM_INTERPOLATION = ("step", "micro_batch", "none")
STARTS = ("model", "weights", "data")
PRESETS: dict[str, dict[str, Any]] = {
    "imp_ft": {"rewind": "none", "level_epochs": 50, "fine_tuning_learning_rate": 0.01},
    "official": {
        "rewind": "learning_rate", "dense_epochs": 10, "level_epochs": 10, "level_lr_scheduler_type": "constant",
        "final_run": True,
    },
    "renda": {"rewind": "learning_rate"},
}  # fmt: skip


@dataclass
class LotteryArguments(TrainingArguments):
    """TrainingArguments with the settings of a :class:`~hf_lottery.LotteryTrainer` search.

    Raises:
        ValueError: A setting is out of range or unknown.
    """

    # In each pair, one flag on the command line overrides the other's value in a file.
    ALTERNATIVES: ClassVar[tuple[tuple[str, str], ...]] = (("sparsity", "levels"),)

    sparsity: float | None = field(
        default=None,
        metadata={
            "help": "Target sparsity in (0, 1), reached exactly at the last level. Give this or levels.",
        },
    )
    levels: int | None = field(default=None, metadata={"help": "Number of levels of pruning, instead of a sparsity."})
    pruning_fraction: float = field(
        default=0.2, metadata={"help": "Share of the remaining weights that each level removes, in (0, 1)."}
    )
    schedule: str = field(default="geometric", metadata={"help": f"Sparsity of each level: {', '.join(SCHEDULES)}."})
    rewind: str | None = field(
        default=None,
        metadata={
            "help": "Where a level starts: init, step:K or epoch:K (late rewinding), pretrained, learning_rate "
            "(weights kept, schedule replayed) or none (fine-tuning). Default: init, or learning_rate for A Winning "
            "Sign (AWS)."
        },
    )
    score: str = field(default="magnitude", metadata={"help": f"Importance of a weight: {', '.join(SCORES)}."})
    score_batches: int = field(
        default=8,
        metadata={"help": "Training batches that a score such as saliency reads; each is one optimizer step's batch."},
    )
    scope: str = field(
        default="global",
        metadata={"help": f"Which weights compete: {', '.join(SCOPES)}, or N:M (keep N of every M inputs)."},
    )
    min_density: float = field(
        default=0.0, metadata={"help": "Smallest fraction of every parameter to keep; with structured, of every group."}
    )
    include: list[str] | None = field(
        default=None, metadata={"help": "Prune only parameters that match one of these regular expressions."}
    )
    exclude: list[str] | None = field(
        default=None, metadata={"help": "Never prune parameters that match one of these regular expressions."}
    )
    structured: bool = field(
        default=False,
        metadata={
            "help": "Prune whole units (channels, heads, units of feed-forward layers), which hf-lottery shrink can "
            "cut out. sparsity is then the fraction of units that go."
        },
    )
    structured_groups: list[str] | None = field(
        default=None,
        metadata={"help": "With structured: prune only units of groups that match one of these regular expressions."},
    )
    structured_multiple: int = field(
        default=1,
        metadata={"help": "With structured: what remains of every group is a multiple of this, such as 8."},
    )
    fine_tuning_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Constant learning rate after level 0 with rewind=none. Default: learning_rate / 10."},
    )
    save_level_models: bool = field(
        default=True, metadata={"help": "Keep the trained model of every level, not only the last."}
    )
    save_level_checkpoints: bool = field(
        default=False,
        metadata={
            "help": "Keep the checkpoints of finished levels too, which take some 12 bytes a weight each with Adam. A "
            "resume reads only those of the level that it goes on with."
        },
    )
    rewind_by_reference: bool = field(
        default=False,
        metadata={
            "help": "Store no starting weights in the ticket, but their repository and commit, or their seed, with a "
            "hash. Only with rewind=init or pretrained."
        },
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": "Defaults for arguments that are not given. official: the AWS authors' schedule, 10 dense epochs, "
            "10 per level at a constant rate, then one final run. renda: the whole schedule at every level. Both "
            "keep the weights (rewind=learning_rate). imp_ft: no rewinding, 50 epochs of fine-tuning per level at rate "
            "0.01, as for the masks of Adnan et al. (2025)."
        },
    )
    dense_epochs: float | None = field(
        default=None, metadata={"help": "Epochs of level 0, which is dense. Default: num_train_epochs."}
    )
    level_epochs: float | None = field(
        default=None, metadata={"help": "Epochs of each later level. Default: num_train_epochs."}
    )
    level_lr_scheduler_type: str | None = field(
        default=None, metadata={"help": "Learning-rate schedule of every level. Default: lr_scheduler_type."}
    )
    final_run: bool | None = field(
        default=None,
        metadata={
            "help": "Whether to train once more at the last mask, as one more level, with num_train_epochs and "
            "lr_scheduler_type."
        },
    )
    norm_interpolation: str | None = field(
        default=None,
        metadata={
            "help": "For AWS, how often to draw the interpolation of norms towards their initial values: step (each "
            "optimizer step; the default of WinningSignTrainer), micro_batch, or none (the control)."
        },
    )
    norm_include: list[str] | None = field(
        default=None, metadata={"help": "For AWS, regular expressions for parameters to interpolate instead of norms."}
    )
    norm_exclude: list[str] | None = field(
        default=None, metadata={"help": "For AWS, regular expressions for norms not to interpolate."}
    )
    recalibration_batches: int = field(
        default=32,
        metadata={
            "help": "For AWS, training batches that recalibrate batch norms before a level is evaluated, because "
            "running statistics mix many interpolated networks."
        },
    )

    resume_with_other: list[str] | None = field(
        default=None,
        metadata={
            "help": f"What may differ when a run is resumed: {', '.join(STARTS)}. The run goes on from the weights in "
            "its folder. Default: nothing."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self._apply_preset()
        check_bounds(self)
        self._check_run()
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1); received {self.sparsity}. Pass a fraction such as 0.8.")
        tables = {"score": SCORES, "schedule": SCHEDULES, "norm_interpolation": (*NORM_INTERPOLATION, None)}
        for name, table in tables.items():
            if getattr(self, name) not in table:
                names = ", ".join(filter(None, table))
                raise ValueError(f"{name} must be one of {names}; received {getattr(self, name)!r}.")
        if self.rewind_by_reference and self.rewind not in (None, "init", "step:0", "pretrained"):
            raise ValueError(
                f"rewind_by_reference must come with rewind=init or pretrained; received {self.rewind}. "
                "Only weights from before training can be rebuilt."
            )
        if self.level_lr_scheduler_type is not None:
            SchedulerType(self.level_lr_scheduler_type)  # its error lists all names
        if self.rewind is not None:
            parse_rewind(self.rewind)
        self.get_scope()
        self._check_structured()
        if self.sparsity is not None or self.levels is not None:
            self.get_sparsities()

    def _check_structured(self) -> None:
        if not self.structured:
            for name, default in (("structured_groups", None), ("structured_multiple", 1)):
                if (given := getattr(self, name)) != default:
                    raise ValueError(f"{name} must come with structured; received {given!r} without it.")
            return
        if self.scope not in ("global", "uniform"):
            raise ValueError(
                f"structured must come with scope=global or uniform, which rank whole units; received {self.scope}."
            )
        for name in ("include", "exclude"):
            if (given := getattr(self, name)) is not None:
                raise ValueError(
                    f"{name} chooses weights, and must be left out with structured; received {given!r}. Choose groups "
                    "of units with structured_groups."
                )
        if self.structured_multiple < 1:
            raise ValueError(f"structured_multiple must be at least 1; received {self.structured_multiple}.")

    def _check_run(self) -> None:
        if unknown := set(self.resume_with_other or ()) - set(STARTS):
            raise ValueError(f"resume_with_other must be among {', '.join(STARTS)}; received {min(unknown)!r}.")
        check_folder(Path(self.output_dir or "."), what="output_dir")

    def _apply_preset(self) -> None:
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}; received {self.preset!r}.")
        for name, value in PRESETS.get(self.preset or "", {}).items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def get_scope(self, *, kinds: Mapping[str, str] | None = None) -> Scope:
        """Return the scope that ``scope`` names.

        Args:
            kinds: Name -> kind of each weight (:attr:`Prunable.kinds`), from which N:M finds the input axis.

        Raises:
            ValueError: The name is unknown, or N:M is requested for weights whose input axis is not known.
        """
        if self.scope in SCOPES:
            return SCOPES[self.scope]
        if groups := re.fullmatch(r"(\d+):(\d+)", self.scope):
            if experts := [name for name, kind in (kinds or {}).items() if kind == "experts"]:
                raise ValueError(
                    f"{self.scope} must know the input axis of every weight; received stacked experts {experts[0]!r}, "
                    "whose input axis differs between architectures. Exclude them."
                )
            # GPT-2 keeps its weights as [inputs, outputs].
            axes = {name: 0 if kind == "Conv1D" else 1 for name, kind in (kinds or {}).items()}
            return n_of_m(int(groups[1]), int(groups[2]), axis=axes or 1)
        raise ValueError(f"scope must be one of {', '.join(SCOPES)} or N:M, such as 2:4; received {self.scope!r}.")

    def get_sparsities(self) -> list[float]:
        """Return the sparsity of every level, from ``schedule``, ``sparsity``, ``levels`` and ``pruning_fraction``.

        The final run repeats the last sparsity.
        """
        sparsities = SCHEDULES[self.schedule](
            sparsity=self.sparsity, levels=self.levels, pruning_fraction=self.pruning_fraction
        )
        return [*sparsities, sparsities[-1]] if self.final_run else sparsities

    def get_level_arguments(self, level: int) -> dict[str, Any]:
        """Return the TrainingArguments that are changed for a level of the search, with their values.

        The final run changes none.
        """
        settings: dict[str, Any] = {}
        epochs = self.level_epochs if level else self.dense_epochs
        if epochs is not None:
            settings |= {"num_train_epochs": epochs, "max_steps": -1}
        if self.level_lr_scheduler_type is not None:
            settings["lr_scheduler_type"] = SchedulerType(self.level_lr_scheduler_type)
        if level and self.rewind == "none":
            rate = self.fine_tuning_learning_rate
            settings["learning_rate"] = self.learning_rate / 10 if rate is None else rate
            settings |= {"lr_scheduler_type": SchedulerType.CONSTANT, "warmup_steps": 0}
        return settings
