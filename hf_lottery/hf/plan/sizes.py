"""Sizes of the files that a search will write, one function for each kind of file."""

from __future__ import annotations

import dataclasses
import importlib.util
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, TrainerControl, TrainerState

from ...masks.mask import Mask
from ...networks.names import named_state
from ...networks.shards import class_name
from ...report.style import PICTURE_BYTES
from ...storage.encoding import packed_size
from ...training.snapshot import Snapshot
from ..hub.about import changed_settings, surroundings
from ..hub.ticket_card import ticket_card
from ..hub.ticket_model import defined_in, known_class
from ..trainers.lottery_trainer import LotteryTrainer
from ..trainers.winning_sign_trainer import WinningSignTrainer
from .files import compressed_bits, json_file, tensors_file, torch_file
from .levels import LevelPlan
from .optimizer import OptimizerPlan

_FLOAT = 0.12345678901234568  # as long as most numbers are in JSON
_TRAINED = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss")
_EVALUATED = ("eval_loss", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
_LOGGED = {"epoch": 1.5, "grad_norm": _FLOAT, "learning_rate": _FLOAT, "level": 1, "loss": 0.1234, "sparsity": _FLOAT}


def state_file(trainer: LotteryTrainer) -> int:
    """Return the bytes of ``lottery_state.json`` at the end of the run."""
    return json_file({"settings": trainer.get_settings(), "finished": [_record(trainer)] * len(trainer.sparsities)})


def record_file(files: int) -> int:
    """Return the bytes of a file with the checksums of some files."""
    hashes = {f"{'x' * 18}{number}": "0" * 64 for number in range(files)}
    return json_file({"format_version": 2, "files": hashes, "text_sha256": "0" * 64})


def mask_files(trainer: LotteryTrainer) -> int:
    """Return the bytes of an uncompressed mask with its configuration."""
    bits = {f"{name}.mask": _packed(packed_size(weight.numel())) for name, weight in trainer.weights.items()}
    specs = {
        name: {"shape": list(weight.shape), "kept": weight.numel(), "encoding": "bits"}
        for name, weight in trainer.weights.items()
    }
    return tensors_file(bits) + json_file({**_mask_config(), "tensors": specs})


def start_file(trainer: LotteryTrainer) -> int:
    """Return the bytes of a snapshot: weights and buffers at one moment."""
    return tensors_file(named_state(trainer.network, numbers=False), {"format": "pt", "step": "0"})


def model_files(trainer: LotteryTrainer) -> int:
    """Return the bytes of a saved model: weights, configuration, tokenizer or image processor, and arguments."""
    config = getattr(trainer.network, "config", None)
    config = _text_size(config) if hasattr(config, "save_pretrained") else 0
    return _weights_file(trainer) + config + _processing_files(trainer) + torch_file(trainer.args)


def _weights_file(trainer: LotteryTrainer) -> int:
    """Return the bytes of saved weights, with the settings of generation."""
    weights = {id(value): (name, value) for name, value in trainer.network.state_dict(keep_vars=True).items()}
    generation = getattr(trainer.network, "generation_config", None)
    generation = _text_size(generation) if hasattr(generation, "save_pretrained") else 0
    return tensors_file(dict(weights.values())) + generation  # tied weights are saved once


def _processing_files(trainer: LotteryTrainer) -> int:
    """Return the bytes of a tokenizer or image processor."""
    processor = trainer.processing_class or getattr(trainer.data_collator, "tokenizer", None)
    return _text_size(getattr(processor, "backend_tokenizer", None)) + _text_size(processor)


def resumable_files(trainer: LotteryTrainer, optimizer: OptimizerPlan) -> int:
    """Return the bytes of a checkpoint without its model and the Trainer's state."""
    if trainer.args.save_only_model:
        return 0
    generators = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    scheduler = torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD([torch.zeros(1)]), lambda step: 1.0)
    return (
        torch_file(optimizer.state)
        + torch_file(scheduler.state_dict())
        + torch_file(generators) * 2 * trainer.args.world_size  # now, and when the epoch began
        + record_file(10 + 2 * trainer.args.world_size)
    )


def trainer_state_file(trainer: LotteryTrainer, level: LevelPlan, step: int) -> int:
    """Return the bytes of the Trainer's state in a checkpoint, which grows with every log."""
    args = trainer.args
    logs = [{**_LOGGED, "step": at} for at in level.log_steps(args) if at <= step]
    logs += [{**_evaluation(trainer), "step": at} for at in level.evaluation_steps(args) if at <= step]
    state = dataclasses.asdict(TrainerState(log_history=logs))
    return json_file({**state, "stateful_callbacks": {"TrainerControl": TrainerControl().state()}})


def ticket_files(trainer: LotteryTrainer) -> int:
    """Return the bytes of the last ticket: masks of all levels, weights, configuration, card and picture."""
    history, settings = [_record(trainer)] * len(trainer.sparsities), trainer.get_settings()
    name, config = class_name(trainer.network), getattr(trainer.network, "config", None)
    config = config if isinstance(config, PreTrainedConfig) else None
    about = {**surroundings(), "changed": changed_settings(settings, type(trainer.args))}
    info = {"architecture": name, "settings": settings, "history": history, "about": about}
    kind = None if config is None else known_class(name, config, defined_in(trainer.network))
    stored = None if trainer.lottery.rewind_by_reference else kind
    mask = Mask({name: torch.ones(1, dtype=torch.bool) for name in trainer.weights})
    told = {"builds": kind is not None, "stored": stored, "processing": {}, "picture": None}
    drawn = trainer.compute_metrics is not None and len(history) > 1 and importlib.util.find_spec("matplotlib")
    return (
        series_files(trainer, {"info": info, "rewind": {"by": "value", "sha256": "0" * 64}})
        + len(ticket_card(mask, Snapshot(0, {}), info, "x", **told))
        + (0 if config is None else _text_size(config))
        + _processing_files(trainer)
        + (0 if trainer.lottery.rewind_by_reference else start_file(trainer))
        + (0 if stored is None else _weights_file(trainer))
        + (PICTURE_BYTES if drawn else 0)
    )


def series_files(trainer: LotteryTrainer, extra: Mapping[str, Any]) -> int:
    """Return the bytes of the masks of all levels. Each level stores bits only for what the level before keeps."""
    kept = [1 - sparsity for sparsity in trainer.sparsities]
    bits, specs = {}, {}
    for name, weight in trainer.weights.items():
        for number in range(1, len(kept)):
            before = round(weight.numel() * kept[number - 1])
            share = round(kept[number] / kept[number - 1], 6)
            if size := compressed_bits(before, share):
                bits[f"{name}.level-{number:02}"] = _packed(size)
        counts = [round(weight.numel() * share) for share in kept]
        specs[name] = {"shape": list(weight.shape), "kept": counts, "encoding": ["zstd"] * len(kept)}
    return tensors_file(bits) + json_file({**_mask_config(), "levels": len(kept), "tensors": specs, **extra})


def signed_files(trainer: WinningSignTrainer) -> int:
    """Return the bytes of the last mask, and of the signs of kept weights and of parameters that it does not cover."""
    bits: dict[str, Tensor] = {}
    specs: dict[str, dict[str, Any]] = {"tensors": {}, "signs": {}}
    density = round(1 - trainer.sparsities[-1], 6)
    for name, parameter in trainer.network.named_parameters():
        if name in trainer.norms:
            continue
        signs = parameter.numel()
        spec = {"shape": list(parameter.shape), "kept": signs}
        if name in trainer.weights:
            bits[f"{name}.mask"] = _packed(compressed_bits(signs, density))
            signs = round(signs * density)
            specs["tensors"][name] = spec
        bits[f"{name}.sign"] = _packed(packed_size(signs))
        specs["signs"][name] = {**spec, "zeros": 0, "median": _FLOAT}
    return tensors_file(bits) + json_file({**_mask_config(), **specs})


def _mask_config() -> dict[str, Any]:
    """Return the entries that every mask configuration has."""
    return {
        "format_version": 1, "library_name": "hf_lottery", "library_version": "0.1.0", "bit_order": "little",
        "mask_type": "binary", "sparsity": _FLOAT, "sha256": "0" * 64,
    }  # fmt: skip


def _record(trainer: LotteryTrainer) -> dict[str, Any]:
    """Return a finished level as it is recorded."""
    metrics = {**dict.fromkeys(_TRAINED, 1234.567), **_evaluation(trainer), "sign_flips": _FLOAT}
    return {"level": 1, "sparsity": _FLOAT, "metrics": metrics, "steps": 1000, "loss": _FLOAT}


def _evaluation(trainer: LotteryTrainer) -> dict[str, float]:
    if trainer.eval_dataset is None:
        return {}
    measured = {"eval_accuracy": _FLOAT} if trainer.compute_metrics is not None else {}
    return {**dict.fromkeys(_EVALUATED, _FLOAT), **measured}


def _packed(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device="meta")


def _text_size(thing: Any) -> int:
    """Return the bytes of a configuration, image processor or fast tokenizer as text, and 0 for anything else."""
    if hasattr(thing, "to_json_string"):
        return len(thing.to_json_string())
    return len(thing.to_str(pretty=True)) if hasattr(thing, "to_str") else 0
