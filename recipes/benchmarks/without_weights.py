"""Measure what it takes to find the symmetries of models that do not fit into memory: their weights are on meta.

    OMP_NUM_THREADS=1 python recipes/benchmarks/without_weights.py

Every row is a process of its own: its memory is the largest resident size of the whole process, with torch and
transformers. The spec is not proven (``proof="later"``). Models are traced with 16 and 128 tokens, without a cache.
"""

from __future__ import annotations

import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from timing import show, timed
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from hf_lottery import discover

HEADER = [
    "model",
    "weights",
    "tokens",
    "discover, CPU s",
    "groups that move",
    "coverage of both axes",
    "GB of the process",
]
_SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 100,
          "num_attention_heads": 8}  # fmt: skip
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
NETWORKS = {
    "Llama-7B": (LlamaForCausalLM, LlamaConfig),
    "Mixtral-8x7B": (MixtralForCausalLM, MixtralConfig),
    "BERT-large": (BertForMaskedLM, BertConfig),
}


def build(name: str, quick: bool) -> PreTrainedModel:
    """Build a model of the published size, without weights; in quick runs a small one of its kind."""
    kind, config = NETWORKS[name]
    sizes = _SMALL if quick else _LARGE if name == "BERT-large" else {}
    with torch.device("meta"):
        return kind(config(**sizes)).eval()


def measure(name: str, tokens: int, quick: bool) -> list[str]:
    """Measure one row, in a process that has done nothing else."""
    torch.set_num_threads(1)
    model = build(name, quick)
    inputs = {"input_ids": torch.randint(5, 90, (2, tokens)), "attention_mask": torch.ones(2, tokens, dtype=torch.long)}
    if name != "BERT-large":
        inputs |= {"use_cache": False}
    seconds, spec = timed(lambda: discover(model, inputs, proof="later"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    prunable = [name for name, tensor in model.named_parameters() if tensor.ndim > 1 and "embed" not in name]
    weights = sum(parameter.numel() for parameter in model.parameters())
    coverage = spec.coverage(names=prunable)[1]
    return [name, f"{weights:,}", str(tokens), f"{seconds:.1f}", str(len(spec.free)), f"{coverage:.3f}",
            f"{peak / 1e9:.2f}"]  # fmt: skip


def rows(*, quick: bool = False) -> list[list[str]]:
    """Measure all rows of the table under HEADER."""
    found = []
    for name in NETWORKS:
        for tokens in (16, 128):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                found.append(process.submit(measure, name, tokens, quick).result())
    return found


if __name__ == "__main__":
    show(__doc__, HEADER, rows, quick="small models of the same kinds")
