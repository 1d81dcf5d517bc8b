"""Small models whose symmetry is harder to find, and the least share of their prunable weights that it must reach.

Both axes of a weight must be free to count. Input and class axes weigh more here than in models of real size, so a
bound of 0.85 can be all there is; the test prints what holds the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers as hf
from architectures import Inputs, fixed, ids, image, make, noise, text, tokens_like
from torch import nn


@dataclass(frozen=True)
class Rare:
    """One row: how to build it, its inputs (0 for tracing, 1 for checking), the least coverage and number of groups."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    both: float
    groups: int
    slow: bool = True


RARE: dict[str, Rare] = {}


def add(name, build, inputs, both, groups, slow=True):
    RARE[name] = Rare(build, inputs, both, groups, slow)


TOKENS = dict(vocab_size=100, pad_token_id=0, bos_token_id=1, eos_token_id=2)
SIZES = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
TEXT = {**SIZES, **TOKENS, "max_position_embeddings": 32}
PATCHES = {**SIZES, "image_size": 16, "patch_size": 4}


def text_and_image(k: int) -> Inputs:
    return {"input_ids": ids(2 + k, 12 + k), "pixel_values": noise(2 + k, 3, 16, 16, seed=k)}


def segments(k: int) -> Inputs:
    """Text of two segments."""
    inputs = text(k)
    return {**inputs, "token_type_ids": (torch.arange(inputs["input_ids"].shape[1]) > 4).long().expand(2 + k, -1)}


def llava() -> nn.Module:
    vision = hf.CLIPVisionConfig(**PATCHES)
    words = hf.LlamaConfig(**{**TEXT, "num_key_value_heads": 2, "max_position_embeddings": 64})
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(vision_config=vision, text_config=words, image_token_index=99)
    )


def llava_inputs(k: int) -> Inputs:
    tokens = ids(1 + k, 10 + k)
    image_tokens = torch.full((1 + k, 16), 99)
    return {
        "input_ids": torch.cat([tokens[:, :3], image_tokens, tokens[:, 3:]], 1),
        "pixel_values": noise(1 + k, 3, 16, 16, seed=k),
    }


def detr() -> nn.Module:
    backbone = hf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1],
                               layer_type="basic", out_features=["stage4"])  # fmt: skip
    return hf.DetrForObjectDetection(
        hf.DetrConfig(use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=backbone, d_model=64,
                      encoder_layers=1, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
                      encoder_ffn_dim=128, decoder_ffn_dim=128, num_queries=6, num_labels=4)
    )  # fmt: skip


def rt_detr() -> nn.Module:
    backbone = hf.RTDetrResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1],
                                     layer_type="basic", out_features=["stage2", "stage3", "stage4"])  # fmt: skip
    return hf.RTDetrForObjectDetection(
        hf.RTDetrConfig(backbone_config=backbone, encoder_in_channels=[32, 48, 64], encoder_hidden_dim=64,
                        encoder_ffn_dim=128, encoder_attention_heads=4, d_model=64, decoder_in_channels=[64, 64, 64],
                        decoder_ffn_dim=128, decoder_attention_heads=4, decoder_layers=2, num_queries=10,
                        num_denoising=0, num_labels=4, use_timm_backbone=False, anchor_image_size=None)
    )  # fmt: skip


SPEECH = {**SIZES, "vocab_size": 32, "conv_dim": (32, 32, 32), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2),
          "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
          "mask_time_length": 2, "pad_token_id": 0}  # fmt: skip


def speech(k: int) -> Inputs:
    return {"input_values": noise(2 + k, 800 + 200 * k, seed=k)}


class Headed(nn.Module):
    """A bare encoder with a classifier."""

    def __init__(self, encoder, width, field="last_hidden_state"):
        super().__init__()
        self.encoder, self.field, self.head = encoder, field, nn.Linear(width, 5)

    def forward(self, **inputs):
        return self.head(getattr(self.encoder(**inputs), self.field).mean(1))


def dinov3(registers: int) -> Callable[[], nn.Module]:
    return lambda: Headed(hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**PATCHES, num_register_tokens=registers)), 64)


class ShuffleUnit(nn.Module):
    """The unit of ShuffleNet v2: half the channels pass, then the halves are interleaved."""

    def __init__(self, width):
        super().__init__()
        half = width // 2
        self.a, self.na = nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half)
        self.depthwise, self.nd = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False), nn.BatchNorm2d(half)
        self.b, self.nb = nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half)

    def forward(self, x):
        kept, x = x.chunk(2, 1)
        x = self.nb(self.b(self.nd(self.depthwise(self.na(self.a(x)).relu())))).relu()
        x = torch.cat([kept, x], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleNet(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.units = nn.Sequential(*(ShuffleUnit(width) for _ in range(3)))
        self.last, self.head = nn.Conv2d(width, 96, 1), nn.Linear(96, 5)

    def forward(self, x):
        return self.head(self.last(self.units(self.norm(self.stem(x)).relu())).relu().mean((2, 3)))


class DeepRecurrent(nn.Module):
    def __init__(self, kind, **settings):
        super().__init__()
        self.embed, self.rnn = nn.Linear(6, 32), kind(32, 32, batch_first=True, **settings)
        self.up, self.head = nn.LazyLinear(48), nn.Linear(48, 5)
        self(noise(1, 2, 6))

    def forward(self, x):
        return self.head(self.up(self.rnn(self.embed(x))[0][:, -1]).relu())


class Spectral(nn.Module):
    """Spectral norms: as a parametrization, and as the older hook."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Linear(6, 32), nn.Linear(32, 48), nn.Linear(48, 32), nn.Linear(32, 5)
        nn.utils.parametrizations.spectral_norm(self.b)
        nn.utils.spectral_norm(self.c)

    def forward(self, x):
        return self.head(self.c(self.b(self.a(x).relu()).relu()).relu())


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.join, self.head = (
            nn.Linear(6, 16), nn.Linear(6, 24), nn.Bilinear(16, 24, 32), nn.Linear(32, 5)
        )  # fmt: skip

    def forward(self, x):
        return self.head(self.join(self.a(x).relu(), self.b(x).relu()).relu())


class BagOfWords(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag, self.a, self.head = nn.EmbeddingBag(100, 32), nn.Linear(32, 48), nn.Linear(48, 5)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.a(self.bag(input_ids)).relu())


add("clip", make("CLIPModel", "CLIPConfig", text_config=TEXT, vision_config=PATCHES, projection_dim=48),
    text_and_image, 0.93, 18)  # fmt: skip
add("siglip", make("SiglipModel", "SiglipConfig", text_config=TEXT, vision_config=PATCHES), text_and_image, 0.83, 23)
add("llava", llava, llava_inputs, 0.93, 19)
add("gpt_oss", make("GptOssForCausalLM", "GptOssConfig", **{**TEXT, "max_position_embeddings": 128},
                    num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2),
    lambda k: {"input_ids": ids(4 + k, 40 + 5 * k)}, 0.97, 11)  # fmt: skip
add("detr", detr, image(64), 0.79, 30)
add("rt_detr", rt_detr, image(64), 0.95, 64)
add("jetmoe", make("JetMoeForCausalLM", "JetMoeConfig", **{k: v for k, v in TEXT.items() if "heads" not in k},
                   num_key_value_heads=2, kv_channels=16, num_local_experts=4, num_experts_per_tok=2),
    lambda k: {"input_ids": ids(4 + k, 40 + 5 * k)}, 0.03, 7)  # fmt: skip
add("longformer", make("LongformerForSequenceClassification", "LongformerConfig", **TEXT, attention_window=[4, 4]),
    text, 0.99, 12)  # fmt: skip
add("dinov2", make("Dinov2ForImageClassification", "Dinov2Config", **PATCHES), image(16), 0.96, 9)
add("wav2vec2", make("Wav2Vec2ForCTC", "Wav2Vec2Config", **SPEECH), speech, 0.97, 13)
add("hubert", make("HubertForCTC", "HubertConfig", **SPEECH), speech, 0.97, 13)
add("wavlm", make("WavLMForCTC", "WavLMConfig", **SPEECH), speech, 0.97, 13)
add("xlnet", make("XLNetForSequenceClassification", "XLNetConfig", vocab_size=100, d_model=64, n_layer=2, n_head=4,
                  d_inner=128), segments, 0.99, 10)  # fmt: skip
add("dinov3", dinov3(0), image(16), 0.95, 7, slow=False)
add("dinov3-registers", dinov3(2), image(16), 0.95, 8)
add("funnel", make("FunnelForSequenceClassification", "FunnelConfig", vocab_size=100, block_sizes=[1, 1], d_model=64,
                   n_head=4, d_head=16, d_inner=128, num_decoder_layers=1), text, 0.99, 10)  # fmt: skip
add("shufflenet", ShuffleNet, fixed(2, 3, 8, 8), 0.83, 9, slow=False)
add("lstm-two-layers", lambda: DeepRecurrent(nn.LSTM, num_layers=2), tokens_like(2, 7, 6), 0.78, 4, slow=False)
add("lstm-bidirectional", lambda: DeepRecurrent(nn.LSTM, bidirectional=True), tokens_like(2, 7, 6), 0.87, 4, slow=False)
add("gru-two-layers-bidirectional", lambda: DeepRecurrent(nn.GRU, num_layers=2, bidirectional=True),
    tokens_like(2, 7, 6), 0.87, 6)  # fmt: skip
add("spectral-norm", Spectral, tokens_like(2, 7, 6), 0.0, 3, slow=False)
add("bilinear", TwoInputs, tokens_like(2, 7, 6), 0.0, 3, slow=False)
add("embedding-bag", BagOfWords, text, 0.86, 2, slow=False)
