"""Small models of transformers whose units were cut, and other processes that load what was saved."""

import subprocess
import sys
from pathlib import Path

import torch
import transformers as hf

from hf_lottery import discover, score_weights, uniform
from hf_lottery.hf.hub.shrunk import save_shrunk
from hf_lottery.hf.tasks.example_inputs import example_inputs
from hf_lottery.hf.tasks.paper_networks import LeNetConfig, LeNetForImageClassification
from hf_lottery.structured import prune_units, shrunk, unit_candidates

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
WORDS = {**SMALL, "vocab_size": 100}
IMAGES = {"image_size": 8, "patch_size": 4, "num_channels": 1}
STAGES = {"hidden_sizes": [16, 32], "depths": [2, 1], "embedding_size": 8, "layer_type": "basic", "num_channels": 1}

MODELS = {
    "LeNet": lambda: LeNetForImageClassification(LeNetConfig(hidden_sizes=[20, 12], image_size=8, num_channels=1)),
    "ResNet": lambda: hf.ResNetForImageClassification(hf.ResNetConfig(**STAGES)),
    "ViT": lambda: hf.ViTForImageClassification(hf.ViTConfig(**SMALL, **IMAGES)),
    "BERT": lambda: hf.BertForSequenceClassification(hf.BertConfig(**WORDS)),
    "Llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**WORDS, num_key_value_heads=2)),
}


def model(name, seed=0):
    torch.manual_seed(seed)
    return MODELS[name]().eval()


def cut(large, groups=None, **options):
    """Cut half of the units; return what was cut, and what to save it with."""
    inputs = example_inputs(large)
    spec = discover(large, inputs)
    chosen = unit_candidates(spec) if groups is None else [g for g in spec.select(groups) if g in spec.free]
    options = {"sparsity": 0.5, "scope": uniform, "include": chosen, **options}
    found = shrunk(large, spec, prune_units(large, spec, score_weights(large), **options), inputs=inputs)
    return found, {"large": large, "inputs": inputs}


def saved(name, folder, groups=None, **options):
    """Cut half of the units and save what is left; return the small model, its inputs, and whether it is plain."""
    found, rest = cut(model(name), groups, **options)
    save_shrunk(found, folder, large=rest["large"])
    return found.model, rest["inputs"], found.config_fits


def logits(network, inputs):
    with torch.no_grad():
        return network(**inputs).logits


_ELSEWHERE = """
import sys, torch
kind, folder, place = sys.argv[1:]
inputs = torch.load(place + "/inputs.pt")
if kind == "load_shrunk":
    from hf_lottery.hf.hub.shrunk import load_shrunk
    from hf_lottery.hf.tasks import paper_networks
    model = load_shrunk(folder)
else:
    import transformers
    model = getattr(transformers, kind).from_pretrained(folder)
    assert "hf_lottery" not in sys.modules
with torch.no_grad():
    torch.save(model(**inputs).logits, place + "/logits.pt")
"""


def logits_elsewhere(kind, folder, inputs, place):
    """Load a model in another process, by the Auto class of this name or by load_shrunk, and return its logits."""
    Path(place).mkdir(exist_ok=True)
    torch.save(inputs, Path(place) / "inputs.pt")
    run = [sys.executable, "-c", _ELSEWHERE, kind, str(folder), str(place)]
    subprocess.run(run, check=True, capture_output=True, text=True)
    return torch.load(Path(place) / "logits.pt")
