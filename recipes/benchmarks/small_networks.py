"""The networks that structured.py cuts, and the ways to cut them: ours, Torch-Pruning's and single weights."""

from __future__ import annotations

import copy
import importlib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from masked_step import TRANSFORMER, resnet18
from torch import Tensor, nn

from hf_lottery import discover, magnitude, prunable, prune, score_weights, uniform
from hf_lottery.networks import select_names
from hf_lottery.structured import prune_units, shrink

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Network:
    """A network to cut.

    Attributes:
        make: Makes it; it is given whether to make a small one, to see that all runs.
        inputs: Makes its inputs, given a batch size and the same.
        groups: The groups whose units are cut, as a regular expression.
        heads: Names of the layers that write heads, which Torch-Pruning has to be told.
    """

    make: Callable[[bool], Any]
    inputs: Callable[[int, bool], Inputs]
    groups: str
    heads: str = "^$"


def bert(quick: bool) -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**(TRANSFORMER if quick else {})))


def vit(quick: bool) -> nn.Module:
    sizes = {**TRANSFORMER, "image_size": 32, "patch_size": 4} if quick else {}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes))


def tokens(batch: int, quick: bool) -> Inputs:
    return {"input_ids": torch.randint(1000, (batch, 16 if quick else 128))}


def images(batch: int, quick: bool) -> Inputs:
    return {"pixel_values": torch.randn(batch, 3, *[32 if quick else 224] * 2)}


# Heads and feed-forward units, by the names that several versions of transformers give them.
UNITS, HEADS = r"(query|q_proj|intermediate\.dense|fc1)\.weight\[0\]$", r"(query|key|value|[qkv]_proj)$"
NETWORKS = {
    "resnet18": Network(lambda quick: resnet18(1)[0], images, "."),
    "bert-base": Network(bert, tokens, UNITS, HEADS),
    "vit-b": Network(vit, images, UNITS, HEADS),
}


def ours(network: Network, model: nn.Module, inputs: Inputs, sparsity: float) -> nn.Module:
    """Cut units with our functions, from the dense network on."""
    spec = discover(model, inputs)
    scores, groups = score_weights(model, magnitude), select_names(spec.free, include=network.groups)
    return shrink(model, spec, prune_units(model, spec, scores, sparsity=sparsity, scope=uniform, include=groups))


def writers(network: Network, model: nn.Module, inputs: Inputs) -> set[str]:
    """Return the names of the layers that write units to be cut; Torch-Pruning leaves all others whole."""
    spec = discover(model, inputs, proof="later")
    cut = select_names(spec.free, include=network.groups)
    return {name.rpartition(".")[0] for group in cut for name, axis in spec.members[group] if axis == 0}


def torch_pruning(network: Network, dense: nn.Module, inputs: Inputs, sparsity: float, writes: set[str]) -> nn.Module:
    """Cut as many units with Torch-Pruning, which has to be told what are heads and which layers to leave whole."""
    peer: Any = importlib.import_module("torch_pruning")
    model: Any = copy.deepcopy(dense)
    layers = {name: module for name, module in model.named_modules() if [*module.parameters(recurse=False)]}
    heads = {m: model.config.num_attention_heads for name, m in layers.items() if re.search(network.heads, name)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = peer.pruner.BasePruner(
            model,
            inputs,
            importance=peer.importance.GroupMagnitudeImportance(p=1),
            pruning_ratio=sparsity,
            ignored_layers=[module for name, module in layers.items() if name not in writes],
            num_heads=heads,
            prune_num_heads=bool(heads),
            prune_head_dims=False,
            head_pruning_ratio=sparsity,
        )
        pruner.step()
    return model


def masked(model: nn.Module, small: nn.Module) -> nn.Module:
    """Set as many weights to zero as the small network lacks, those of least magnitude wherever they are."""
    scores, left = score_weights(prunable(model), magnitude), dict(small.named_parameters())
    kept = sum(left[name].numel() for name in scores)
    model = copy.deepcopy(model)
    prune(scores, 1 - kept / sum(score.numel() for score in scores.values())).apply_(model)
    return model
