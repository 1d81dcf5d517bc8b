"""Small models of many architectures, and modules that show one phenomenon each.

Each row says how many groups are expected (and how many of them are nested), and the least share of the prunable
elements that a free group reaches on one axis and on both. The counts follow from the layers: an encoder has its stream
and, for each layer, heads, the inner dimensions of q/k and of v/o, and the feed-forward units. Coverage depends on the
size: the frozen axes (image patches, classes, vocabulary) weigh more in a small model, as comments say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import nn
from torch.nn import functional as F

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """One row: how to build it, its inputs (0 for tracing, 1 of another length for checking), and what is expected."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    groups: int
    nested: int
    some: float
    both: float
    slow: bool = True


ARCHITECTURES: dict[str, Architecture] = {}


def add(name, build, inputs, groups, nested=0, some=1.0, both=0.9, slow=True):
    ARCHITECTURES[name] = Architecture(build, inputs, groups, nested, some, both, slow)


def ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(5, 90, (batch, length), generator=torch.Generator().manual_seed(length))


def text(k: int) -> Inputs:
    """Token ids; the second batch is longer and partly padded."""
    tokens = ids(2 + k, 12 + 5 * k)
    mask = torch.ones_like(tokens)
    if k:
        mask[0, -3:] = 0
    return {"input_ids": tokens, "attention_mask": mask}


def long_text(k: int) -> Inputs:
    """Enough tokens for every expert."""
    return {"input_ids": ids(4 + k, 40 + 5 * k)}


def pair(k: int) -> Inputs:
    return {**text(k), "decoder_input_ids": ids(2 + k, 7 + 4 * k)}


def image(size: int) -> Callable[[int], Inputs]:
    return lambda k: {"pixel_values": noise(2 + k, 3, size, size, seed=k)}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens_like(*shape: int) -> Callable[[int], Inputs]:
    """``x`` of a shape whose first two sizes grow for the second batch."""
    return lambda k: {"x": noise(shape[0] + k, shape[1] + 3 * k, *shape[2:], seed=k)}


def fixed(*shape: int) -> Callable[[int], Inputs]:
    """``x`` of which only the batch grows."""
    return lambda k: {"x": noise(shape[0] + k, *shape[1:], seed=k)}


# Transformers. Three layers for encoders and GPT-2, two for other decoders.

TOKENS = dict(vocab_size=100, pad_token_id=0, bos_token_id=1, eos_token_id=2)
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, **TOKENS)
ENCODER = {**SMALL, "num_hidden_layers": 3}
SHARED_KEYS = {**SMALL, "num_key_value_heads": 2}
PATCHES = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, image_size=16,
               patch_size=4)  # fmt: skip
T5 = dict(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=100, decoder_start_token_id=0,
          pad_token_id=0, eos_token_id=1)  # fmt: skip
BART = dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=48, decoder_ffn_dim=48, **TOKENS)  # fmt: skip


def make(model: str, config: str, **settings) -> Callable[[], nn.Module]:
    return lambda: getattr(hf, model)(getattr(hf, config)(**settings))


add("resnet18", make("ResNetForImageClassification", "ResNetConfig", embedding_size=8, hidden_sizes=[8, 16, 24],
                     depths=[2, 2, 2], layer_type="basic"), image(32), 9, both=0.96, slow=False)  # fmt: skip
add("resnet50", make("ResNetForImageClassification", "ResNetConfig", embedding_size=16, hidden_sizes=[32, 64, 96],
                     depths=[2, 2, 2], layer_type="bottleneck"), image(32), 16, both=0.93)  # fmt: skip
add("convnext", make("ConvNextForImageClassification", "ConvNextConfig", depths=[1, 1, 2, 1],
                     hidden_sizes=[8, 16, 24, 32]), image(64), 9, both=0.98, slow=False)  # fmt: skip
add("mobilenet_v2", make("MobileNetV2ForImageClassification", "MobileNetV2Config", depth_multiplier=0.25), image(64),
    25, both=0.98)  # fmt: skip
add("efficientnet", make("EfficientNetForImageClassification", "EfficientNetConfig", width_coefficient=0.25,
                         depth_coefficient=0.5, hidden_dim=320, image_size=64), image(64), 28, both=0.99)  # fmt: skip
add("regnet", make("RegNetForImageClassification", "RegNetConfig", embedding_size=8, hidden_sizes=[16, 32, 48],
                   depths=[1, 2, 2], groups_width=8), image(32), 24, 10, both=0.97)  # fmt: skip
add("vit", make("ViTForImageClassification", "ViTConfig", **PATCHES), image(16), 13, 6, both=0.83, slow=False)
add("deit", make("DeiTForImageClassification", "DeiTConfig", **PATCHES), image(16), 13, 6, both=0.83)
add("swin", make("SwinForImageClassification", "SwinConfig", image_size=32, patch_size=2, embed_dim=16, depths=[2, 2],
                 num_heads=[2, 4], window_size=4), image(32), 18, 8, both=0.97)  # fmt: skip
add("bert", make("BertForSequenceClassification", "BertConfig", **ENCODER), text, 14, 6, both=0.99, slow=False)
add("bert-mlm", make("BertForMaskedLM", "BertConfig", **ENCODER), text, 13, 6, both=1.0)
add("roberta", make("RobertaForSequenceClassification", "RobertaConfig", **ENCODER), text, 14, 6, both=0.99)
add("distilbert", make("DistilBertForSequenceClassification", "DistilBertConfig", dim=32, n_layers=3, n_heads=4,
                       hidden_dim=48, vocab_size=100), text, 14, 6, both=0.99)  # fmt: skip
add("albert", make("AlbertForSequenceClassification", "AlbertConfig", **SMALL, embedding_size=16), text, 7, 2,
    both=0.99)  # fmt: skip
add("electra", make("ElectraForSequenceClassification", "ElectraConfig", **ENCODER, embedding_size=16), text, 15, 6,
    both=0.99)  # fmt: skip
add("modernbert", make("ModernBertForSequenceClassification", "ModernBertConfig", **ENCODER, cls_token_id=3,
                       sep_token_id=4), text, 11, 3, both=0.99)  # fmt: skip
add("gpt2", make("GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=3, n_head=4, n_positions=32, vocab_size=100,
                 bos_token_id=1, eos_token_id=2), text, 13, 6, both=1.0, slow=False)  # fmt: skip
# At real size 0.91 to 0.93: here the untied vocabulary of 100 weighs more.
add("gpt_neox", make("GPTNeoXForCausalLM", "GPTNeoXConfig", **SMALL), text, 9, 4, both=0.81)
add("opt", make("OPTForCausalLM", "OPTConfig", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
                word_embed_proj_dim=32, **TOKENS), text, 9, 4, both=1.0)  # fmt: skip
add("bloom", make("BloomForCausalLM", "BloomConfig", hidden_size=32, n_layer=2, n_head=4, **TOKENS), text, 7, 4,
    both=1.0, slow=False)  # fmt: skip
add("falcon-gqa", make("FalconForCausalLM", "FalconConfig", hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                       num_kv_heads=2, new_decoder_architecture=True, **TOKENS), text, 9, 4, both=1.0)  # fmt: skip
add("llama", make("LlamaForCausalLM", "LlamaConfig", **SHARED_KEYS), text, 9, 4, both=0.82, slow=False)
add("llama-tied", make("LlamaForCausalLM", "LlamaConfig", **SHARED_KEYS, tie_word_embeddings=True), text, 9, 4,
    both=1.0)  # fmt: skip
add("mistral", make("MistralForCausalLM", "MistralConfig", **SHARED_KEYS), text, 9, 4, both=0.82)
add("qwen2", make("Qwen2ForCausalLM", "Qwen2Config", **SHARED_KEYS), text, 9, 4, both=0.82)
add("qwen3", make("Qwen3ForCausalLM", "Qwen3Config", **SHARED_KEYS, head_dim=8), text, 9, 4, both=0.82)
add("gemma2", make("Gemma2ForCausalLM", "Gemma2Config", **SHARED_KEYS, head_dim=8), text, 9, 4, both=1.0)
add("phi3", make("Phi3ForCausalLM", "Phi3Config", **SHARED_KEYS), text, 9, 4, both=0.82)
add("mixtral", make("MixtralForCausalLM", "MixtralConfig", **SHARED_KEYS, num_local_experts=4), long_text, 11, 6,
    both=0.93, slow=False)  # fmt: skip
add("qwen2_moe", make("Qwen2MoeForCausalLM", "Qwen2MoeConfig", **SHARED_KEYS, num_experts=4, moe_intermediate_size=24,
                      shared_expert_intermediate_size=40, num_experts_per_tok=2), long_text, 13, 6,
    both=0.9)  # fmt: skip
add("t5", make("T5ForConditionalGeneration", "T5Config", **T5), pair, 21, 12, both=1.0, slow=False)
add("t5-gated", make("T5ForConditionalGeneration", "T5Config", **T5, feed_forward_proj="gated-gelu",
                     tie_word_embeddings=False), pair, 21, 12, both=1.0)  # fmt: skip
add("bart", make("BartForConditionalGeneration", "BartConfig", **BART), pair, 23, 12, both=0.96)


# One phenomenon each.


class TimmAttention(nn.Module):
    """A fused ``q|k|v``, as timm has it."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 32), nn.LayerNorm(32)
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down, self.head = nn.Linear(32, 48), nn.Linear(48, 32), nn.Linear(32, 5)

    def forward(self, x):
        x = self.embed(x)
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean(1))


class TorchEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.layer = nn.Linear(6, 32), nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.layer(self.embed(x)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn, self.head = kind(6, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Vgg(nn.Module):
    """Channels x places, flattened in front of a linear layer; channels last in the second form."""

    def __init__(self, channels_last=False):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.head, self.last = nn.Linear(12 * 4, 5), channels_last

    def forward(self, x):
        x = F.max_pool2d(self.b(self.a(x).relu()).relu(), 4)
        return self.head((x.permute(0, 2, 3, 1) if self.last else x).flatten(1))


class Dense(nn.Module):
    """Concatenated features."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(14, 6, 1)
        self.norm, self.head = nn.BatchNorm2d(14), nn.Linear(20, 5)

    def forward(self, x):
        x = self.a(x).relu()
        x = torch.cat([x, self.b(x)], 1)
        x = torch.cat([x, self.c(self.norm(x).relu())], 1)
        return self.head(x.mean((2, 3)))


class PaddedShortcut(nn.Module):
    """Option A of He et al.: half the channels of the second stage start as zeros."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1), nn.Linear(16, 5)

    def forward(self, x):
        x = self.a(x).relu()
        x = self.b(x) + F.pad(x, (0, 0, 0, 0, 4, 4))
        return self.head(x.relu().mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Group norm, squeeze and excite, depthwise convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.depthwise, self.head = nn.Conv2d(16, 16, 3, groups=16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.norm(self.a(x)).relu()
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(self.depthwise(x).mean((2, 3)))


class EinsumAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(6, 4, 8)) for _ in range(3))
        self.out, self.head = nn.Parameter(torch.randn(4, 8, 16)), nn.Linear(16, 5)

    def forward(self, x):
        q, k, v = (torch.einsum("bnc,chd->bnhd", x, w) for w in (self.q, self.k, self.v))
        weights = torch.einsum("bnhd,bmhd->bhnm", q, k).softmax(-1)
        return self.head(torch.einsum("bhnm,bmhd,hdo->bno", weights, v, self.out).mean(1))


class GatedUnits(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Linear(6, 32), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(F.glu(self.a(x)))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.t1, self.t2 = nn.Linear(6, 16), nn.Linear(7, 12), nn.Linear(12, 7)
        self.c1, self.c2, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.t2(F.gelu(self.t1(x.transpose(1, 2)))).transpose(1, 2)
        x = x + self.c2(F.gelu(self.c1(x)))
        return self.head(x.mean(1))


class Shuffled(nn.Module):
    """Channels become places, and the way back by a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.ConvTranspose2d(4, 6, 2, 2)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.b(F.pixel_shuffle(self.a(x), 2)).relu().mean((2, 3)))


class Maxout(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Linear(6, 24), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.a(x).unflatten(-1, (8, 3)).amax(-1))


class Codebook(nn.Module):
    """The nearest code's vector: positions along the codebook are values of a tensor."""

    def __init__(self):
        super().__init__()
        self.a, self.codes, self.head = nn.Linear(6, 8), nn.Parameter(torch.randn(10, 8)), nn.Linear(8, 5)

    def forward(self, x):
        nearest = torch.cdist(self.a(x), self.codes).argmin(-1)
        return self.head(F.embedding(nearest, self.codes))


class SortedPool(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.a(x).sort(1)[0][:, -1])


class Branch(nn.Module):
    """Python that depends on the data."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.a(x).relu()
        return self.head(self.b(x).relu() if x.mean() > -100 else x)


class TwoLayers(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.a, self.head = nn.Linear(6, width), nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.a(x).relu())


SEQUENCE, PICTURE = tokens_like(2, 7, 6), fixed(2, 3, 8, 8)
add("timm-qkv", TimmAttention, SEQUENCE, 5, 2, both=0.92, slow=False)
add("torch-encoder", TorchEncoder, SEQUENCE, 5, 2, both=0.92, slow=False)
add("lstm", lambda: Recurrent(nn.LSTM), SEQUENCE, 1, both=0.0, slow=False)
add("gru", lambda: Recurrent(nn.GRU), SEQUENCE, 1, both=0.0)
add("vgg", Vgg, PICTURE, 2, both=0.6, slow=False)
add("vgg-channels-last", lambda: Vgg(True), PICTURE, 2, both=0.6)
add("densenet", Dense, PICTURE, 3, both=0.4)
add("padded-shortcut", PaddedShortcut, PICTURE, 3, both=0.7)
add("squeeze-excite", SqueezeExcite, PICTURE, 3, 1, both=0.3)
add("einsum-attention", EinsumAttention, SEQUENCE, 4, 2, both=0.0)
add("gated-units", GatedUnits, SEQUENCE, 1, both=0.0)
add("mixer", Mixer, fixed(2, 7, 6), 3, both=0.5)
add("pixel-shuffle", Shuffled, PICTURE, 2, both=0.0)
add("maxout", Maxout, SEQUENCE, 2, 1, both=0.0)
add("codebook", Codebook, SEQUENCE, 2, both=0.0)
add("sorted-pool", SortedPool, SEQUENCE, 1, both=0.0)
add("data-dependent-branch", Branch, SEQUENCE, 2, both=0.59)
