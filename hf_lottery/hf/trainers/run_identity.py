"""What a run begins from: its model, its initial weights and its data. Going on from others is refused.

A run goes on from the weights in its folder, whatever model it is given. Without this check, the ticket of another
seed or of other data would come back as if it were the one that was asked for.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from ...networks.names import named_state, unwrap
from ...networks.shards import class_name, is_sharded, whole
from ...training.snapshot import Snapshot
from .arguments import STARTS, LotteryArguments
from .data_identity import identify_data
from .main_process import on_main
from .run_folder import RunFolder
from .run_settings import plain
from .sparse_trainer import SparseTrainer

# What does not change what a model computes in training.
_FREE = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
_FILLED_IN = "problem_type"  # set by the first forward pass if it is not set before
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")  # set by train() to those of the tokenizer
_PLATEAU = ("reduce_lr_on_plateau", "greedy")  # schedules that look at the evaluation
_WORDS = {"model": "model", "weights": "initial weights", "data": "data"}
_KEYS = ("class", "length", "unknown", "fingerprint", "samples")
logger = logging.getLogger(__name__)


class RunIdentity:
    """Records what a Trainer begins its runs from, and checks it when they go on.

    Args:
        trainer: The Trainer.
        args: Its arguments.
    """

    def __init__(self, trainer: SparseTrainer, args: LotteryArguments):
        self._trainer, self._args = trainer, args
        self._hashed: dict[str, str] = {}
        self._hashed_for: tuple[nn.Module | None, Path] | None = None

    def check(self, run: RunFolder) -> None:
        """Record what a new run begins from, or check that an earlier one goes on from what it began from.

        Every process must call this. A Trainer that goes on with its own run is compared as it was before it trained.

        Raises:
            ValueError: The model, its initial weights or the data are others, and ``resume_with_other`` does not list
                them.
        """
        main, key = self._trainer.is_world_process_zero(), (self._trainer.network, run.root.resolve())
        if not run.exists or self._hashed_for != key:
            self._hashed, self._hashed_for = hash_weights(self._trainer.network, main=main), key
        given = on_main(self._identify, main=main)
        if run.exists:
            on_main(lambda: self._compare(run, given), main=main)
            return
        run.began_from = given
        unknown = {name: part["unknown"] for name, part in given["data"].items() if part and "unknown" in part}
        for name, reason in unknown.items() if main else ():
            logger.warning("A resume of this run will not notice another %s, because %s.", name, reason)

    def _identify(self) -> dict[str, Any]:
        workers = self._args.dataloader_num_workers
        data = {"train_dataset": identify_data(self._trainer.train_dataset, workers=workers)}
        held_out = self._trainer.eval_dataset
        for name, part in (held_out if isinstance(held_out, dict) else {"": held_out}).items():
            data[f"eval_dataset {name}".strip()] = identify_data(part, workers=workers)
        digest = hashlib.sha256(json.dumps(self._hashed, sort_keys=True).encode()).hexdigest()
        model = identify_model(self._trainer.network, self._trainer.processing_class)
        return plain({"model": model, "weights": digest, "data": data})

    def _compare(self, run: RunFolder, given: Mapping[str, Any]) -> None:
        began = run.began_from or {part: {} for part in STARTS}  # of an older version, which did not record it
        for part in STARTS:
            if part == "model":
                found = _model_difference(began[part], given[part])
            elif part == "weights":
                found = self._other_weights(run) if began[part] != given[part] else None
            else:
                found = _data_difference(began[part], given[part], decides=self._evaluation_decides())
            if found and part not in (self._args.resume_with_other or ()):
                seed = " Seed before a new model is built (transformers.set_seed)." if part == "weights" else ""
                raise ValueError(
                    f"a resumed run must have the {_WORDS[part]} that it began with; received {found}.{seed} To go on "
                    f"from the weights in {run.root} all the same, list {part} in resume_with_other; or choose "
                    "another output_dir."
                )
            if found:
                logger.warning("%s goes on with another start, as resume_with_other asks: %s.", run.root, found)

    def _other_weights(self, run: RunFolder) -> str:
        """Name weights whose values differ from those that the run began with."""
        stored = run.read_start(0)[1].tensors if run.has_start(0) else {}
        other = [name for name in stored if Snapshot(0, {name: stored[name]}).sha256() != self._hashed.get(name)]
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        return f"other values of {other[0]!r}{more}" if other else "others"

    def _evaluation_decides(self) -> bool:
        schedules = (self._args.lr_scheduler_type, self._args.level_lr_scheduler_type)
        return self._args.load_best_model_at_end or any(schedule in _PLATEAU for schedule in schedules)


def hash_weights(model: nn.Module, *, main: bool) -> dict[str, str]:
    """Return name -> hash of each parameter and buffer on the main process, and nothing on the others.

    Only one tensor at a time is copied. If the model is sharded, every process must call this.
    """
    state, hashes = named_state(model), {}
    for name in sorted(state):
        if main:
            hashes[name] = Snapshot(0, {name: whole(state[name]).cpu()}).sha256()
        elif is_sharded(state[name]):
            whole(state[name])
    return hashes


def identify_model(model: nn.Module, tokenizer: Any = None) -> dict[str, Any]:
    """Return the class of a model and its configuration; without a configuration, a hash of how it prints.

    Args:
        model: The model.
        tokenizer: The Trainer's ``processing_class``, whose special tokens replace those of the configuration.
    """
    model = unwrap(model)
    config = cast(Any, getattr(model, "config", None))
    if callable(getattr(config, "to_diff_dict", None)):
        config = copy.deepcopy(config)
        inner = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
        tokens = {name: getattr(inner, name, None) for name in _TOKENS}
        vars(config.get_text_config()).update((name, token) for name, token in tokens.items() if token is not None)
        settings = {name: value for name, value in dict(config.to_diff_dict()).items() if name not in _FREE}
    else:
        layers = re.sub(r"0x[0-9a-f]+", "", repr(model))  # without addresses of functions
        settings = {"layers": hashlib.sha256(layers.encode()).hexdigest()}
    return {"class": class_name(model), **settings}


def _model_difference(began: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
    for name in ("class", *sorted(began.keys() | given.keys())):
        old, new = began.get(name), given.get(name)
        if old != new and not (name == _FILLED_IN and None in (old, new)):
            return "other layers" if name == "layers" else f"{name}={new!r} instead of {old!r}"
    return None


def _data_difference(began: Mapping[str, Any], given: Mapping[str, Any], *, decides: bool) -> str | None:
    for name in sorted(began.keys() | given.keys(), reverse=True):
        old, new = began.get(name), given.get(name)
        # Without evaluation data a finished run can be read, and a metric is missing where it is looked for.
        if old == new or (name != "train_dataset" and not decides and None in (old, new)):
            continue
        if old is None or new is None:
            return f"{name} {'none' if new is None else 'given'} instead of {'none' if old is None else 'given'}"
        key = next(key for key in _KEYS if old.get(key) != new.get(key))
        if key in ("class", "length"):
            return f"{name} of {key} {new.get(key)} instead of {old.get(key)}"
        if key == "unknown":
            return f"{name} that cannot be compared with the earlier one"
        if key == "fingerprint":  # also of the same samples in files that were moved or written anew
            return f"{name} with another fingerprint (of its files, and of the functions that were applied to them)"
        return f"{name} with other samples"
    return None
