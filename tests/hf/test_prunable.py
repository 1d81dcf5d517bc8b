import re
from functools import partial

import pytest
import torch
import transformers as hf
from torch import nn

from hf_lottery.hf.prunable_weights import Prunable, prunable

TEXT = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, vocab_size=20)
BERT = dict(**TEXT, max_position_embeddings=12)
GPT2 = dict(n_embd=8, n_layer=1, n_head=2, n_positions=12, vocab_size=20)
LLAMA = dict(**BERT, num_key_value_heads=1, head_dim=4)
BART = dict(
    d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=12, decoder_ffn_dim=12, vocab_size=20, max_position_embeddings=12,
)  # fmt: skip
VIT = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, image_size=8, patch_size=4)
RESNET = dict(num_channels=3, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
CONVNEXT = dict(num_stages=2, hidden_sizes=[4, 8], depths=[1, 1])
T5 = dict(d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, vocab_size=20, tie_word_embeddings=False)
MOE = dict(
    **LLAMA, num_local_experts=3, num_experts=3, num_experts_per_tok=1, moe_intermediate_size=12,
    shared_expert_intermediate_size=12,
)  # fmt: skip
LATENT = dict(
    n_routed_experts=4, n_group=1, topk_group=1, first_k_dense_replace=0, q_lora_rank=4, kv_lora_rank=4,
    qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
)  # fmt: skip
WAV2VEC2 = dict(**TEXT, conv_dim=(4,), conv_stride=(2,), conv_kernel=(3,), num_conv_pos_embedding_groups=2)
DINOV3 = dict(**VIT, num_register_tokens=1)


def build(architecture, config):
    torch.manual_seed(0)
    cls = getattr(hf, architecture)
    return cls(cls.config_class(**config, pad_token_id=0) if "vocab_size" in config else cls.config_class(**config))


def prefixed(prefix, names):
    return [f"{prefix}{name}.weight" for name in names.split()]


BERT_SELF = "attention.self.query attention.self.key attention.self.value"
BERT_BODY = prefixed("encoder.layer.0.", f"{BERT_SELF} attention.output.dense intermediate.dense output.dense")
GPT2_BODY = prefixed("h.0.", "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj")
ATTENTION = prefixed("model.layers.0.self_attn.", "q_proj k_proj v_proj o_proj")
BART_LAYERS = [
    *prefixed("encoder.layers.0.", "self_attn.k_proj self_attn.v_proj self_attn.q_proj self_attn.out_proj fc1 fc2"),
    *prefixed("decoder.layers.0.", "self_attn.k_proj self_attn.v_proj self_attn.q_proj self_attn.out_proj"),
    *prefixed("decoder.layers.0.encoder_attn.", "k_proj v_proj q_proj out_proj"),
    *prefixed("decoder.layers.0.", "fc1 fc2"),
]
T5_BODY = [
    *prefixed("encoder.block.0.layer.", "0.SelfAttention.q 0.SelfAttention.k 0.SelfAttention.v 0.SelfAttention.o"),
    *prefixed("encoder.block.0.layer.1.DenseReluDense.", "wi wo"),
    *prefixed("decoder.block.0.layer.", "0.SelfAttention.q 0.SelfAttention.k 0.SelfAttention.v 0.SelfAttention.o"),
    *prefixed("decoder.block.0.layer.1.EncDecAttention.", "q k v o"),
    *prefixed("decoder.block.0.layer.2.DenseReluDense.", "wi wo"),
]
EXACT = {
    "BertModel": (BERT, [*BERT_BODY, "pooler.dense.weight"], ()),
    "BertForSequenceClassification": (
        BERT,
        [f"bert.{name}" for name in [*BERT_BODY, "pooler.dense.weight"]],
        ("classifier",),
    ),
    "RobertaForSequenceClassification": (BERT, [f"roberta.{name}" for name in BERT_BODY], ("classifier",)),
    "BertForMaskedLM": (BERT, [f"bert.{name}" for name in BERT_BODY], ("cls",)),
    "GPT2LMHeadModel": (GPT2, [f"transformer.{name}" for name in GPT2_BODY], ("lm_head",)),
    "GPT2ForSequenceClassification": (GPT2, [f"transformer.{name}" for name in GPT2_BODY], ("score",)),
    "LlamaForCausalLM": (
        LLAMA,
        [*ATTENTION, *prefixed("model.layers.0.mlp.", "gate_proj up_proj down_proj")],
        ("lm_head",),
    ),
    "T5ForConditionalGeneration": (T5, T5_BODY, ("lm_head",)),
    "BartForSequenceClassification": (BART, [f"model.{name}" for name in BART_LAYERS], ("classification_head",)),
    "ResNetForImageClassification": (
        RESNET,
        prefixed(
            "resnet.",
            "embedder.embedder.convolution "
            "encoder.stages.0.layers.0.layer.0.convolution encoder.stages.0.layers.0.layer.1.convolution "
            "encoder.stages.1.layers.0.shortcut.convolution encoder.stages.1.layers.0.layer.0.convolution "
            "encoder.stages.1.layers.0.layer.1.convolution",
        ),
        ("classifier",),
    ),
    "ConvNextForImageClassification": (
        CONVNEXT,
        prefixed(
            "convnext.",
            "embeddings.patch_embeddings encoder.stages.0.layers.0.dwconv encoder.stages.0.layers.0.pwconv1 "
            "encoder.stages.0.layers.0.pwconv2 encoder.stages.1.downsampling_layer.1 encoder.stages.1.layers.0.dwconv "
            "encoder.stages.1.layers.0.pwconv1 encoder.stages.1.layers.0.pwconv2",
        ),
        ("classifier",),
    ),
    "MixtralForCausalLM": (
        MOE,
        [*ATTENTION, "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"],
        ("lm_head",),
    ),
    "Qwen2MoeForCausalLM": (
        MOE,
        [
            *ATTENTION,
            "model.layers.0.mlp.experts.gate_up_proj",
            "model.layers.0.mlp.experts.down_proj",
            *prefixed("model.layers.0.mlp.shared_expert.", "gate_proj up_proj down_proj"),
        ],
        ("lm_head",),
    ),
}


@pytest.mark.parametrize("architecture", EXACT)
def test_covers_exactly(architecture):
    config, names, head = EXACT[architecture]
    found = prunable(build(architecture, config))
    assert sorted(found) == sorted(names)
    assert found.head == head


def test_covers_the_patch_embedding_of_a_vision_transformer():
    found = prunable(build("ViTForImageClassification", VIT))
    assert "vit.embeddings.patch_embeddings.projection.weight" in found and found.head == ("classifier",)
    # `base_model` of this one is its encoder; the embeddings outside it are no head
    body = prunable(build("DINOv3ViTModel", DINOV3))
    assert "embeddings.patch_embeddings.weight" in body and body.head == ()


SURVEY = {name: config for name, (config, _, _) in EXACT.items()} | {
    "ViTForImageClassification": VIT,
    "DINOv3ViTModel": DINOV3,
    "DistilBertForMaskedLM": dict(dim=8, n_layers=1, n_heads=2, hidden_dim=12, vocab_size=20),
    "DebertaV2ForTokenClassification": BERT,
    "CamembertForMaskedLM": BERT,
    "OPTForCausalLM": dict(**TEXT, ffn_dim=12, word_embed_proj_dim=8),
    "BloomForCausalLM": dict(hidden_size=8, n_layer=1, n_head=2, vocab_size=20),
    "Wav2Vec2ForCTC": WAV2VEC2,
    "GptOssForCausalLM": MOE,
    "Qwen3MoeForCausalLM": MOE,
    "JetMoeForCausalLM": MOE,
    "DeepseekV3ForCausalLM": TEXT | LATENT | dict(num_key_value_heads=2, moe_intermediate_size=12),
    "HunYuanMoEV1ForCausalLM": MOE,
    "SwitchTransformersForConditionalGeneration": T5 | dict(num_experts=2, num_sparse_encoder_layers=1),
    "GraniteMoeForCausalLM": MOE,
}
ROUTER_PARTS = {"router", "shared_expert_gate", "gate"}  # `gate_proj` is another part


@pytest.mark.filterwarnings("ignore:.*pos_conv_embed.conv.weight. To cover it")  # the weight norm of wav2vec 2.0
@pytest.mark.parametrize("architecture", SURVEY)
def test_no_norm_bias_embedding_router_or_head_and_every_other_layer(architecture):
    model = build(architecture, SURVEY[architecture])
    found, everything = prunable(model), prunable(model, include=".*")
    assert set(found) <= set(everything) <= set(dict(model.named_parameters()))
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in everything.items():
        assert not {"bias", "norm", "layernorm"} & set(re.split(r"[._]", name.lower()))
        assert parameter.ndim >= 2 and id(parameter) not in embeddings
        assert not ROUTER_PARTS & set(name.split("."))
    assert not [name for name in found for head in found.head if name.startswith(f"{head}.")]
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, hf.pytorch_utils.Conv1D)
    owners = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        owner, _, own_name = name.rpartition(".")
        ordinary = own_name == "weight" and isinstance(owners[owner], layers) and id(parameter) not in embeddings
        if ordinary and not ROUTER_PARTS & set(name.split(".")):
            assert name in everything
            assert (name in found) != any(name.startswith(f"{head}.") for head in found.head)


@pytest.mark.parametrize(
    ("architecture", "owner", "names"),
    [
        ("GptOssForCausalLM", "model.layers.0.mlp.experts", {"gate_up_proj", "down_proj"}),
        ("Qwen3MoeForCausalLM", "model.layers.0.mlp.experts", {"gate_up_proj", "down_proj"}),
        ("JetMoeForCausalLM", "model.layers.0.mlp.input_linear", {"weight"}),
    ],
)
def test_stacked_experts_without_their_biases(architecture, owner, names):
    found = prunable(build(architecture, SURVEY[architecture]))
    own = {name for name in found if name.rpartition(".")[0] == owner}
    assert own == {f"{owner}.{name}" for name in names}
    assert {found.kinds[name] for name in own} == {"experts"}


def test_experts_stacked_in_two_dimensions():
    class ExpertGLU(nn.Module):  # like DBRX's
        def __init__(self):
            super().__init__()
            self.w1, self.scale = nn.Parameter(torch.zeros(6, 2)), nn.Parameter(torch.zeros(3, 2))
            self.temperature = nn.Parameter(torch.zeros(3))

    assert prunable(Block(mlp=ExpertGLU())).kinds == {"mlp.w1": "experts"}


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)


class Block(nn.Module):
    """A block of a mixture of experts as remote code writes it, with experts in a ModuleList."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def test_router_linears_are_told_from_gates_of_layers():
    experts = nn.ModuleList([Block(gate_proj=nn.Linear(4, 4), up=nn.Linear(4, 4))])
    moe = Block(
        experts=experts, gate=nn.Linear(4, 1), wg=nn.Linear(4, 1), shared_expert_gate=nn.Linear(4, 1),
        selector=Router(), per_layer_input_gate=nn.Linear(4, 4),
    )  # fmt: skip
    assert list(prunable(moe)) == ["experts.0.gate_proj.weight", "experts.0.up.weight", "per_layer_input_gate.weight"]
    ordinary = Block(gate=nn.Linear(4, 4), attn_gate=nn.Linear(4, 4), modality_router=nn.Linear(4, 2))
    assert list(prunable(ordinary)) == ["gate.weight", "attn_gate.weight"]


def test_plain_torch_layers():
    model = Block(
        a=nn.Conv1d(2, 2, 1), b=nn.Conv3d(2, 2, 1), c=nn.ConvTranspose2d(2, 2, 1), d=nn.BatchNorm1d(2), e=nn.LSTM(2, 2),
        f=nn.MultiheadAttention(4, 2), g=nn.MultiheadAttention(4, 2, kdim=3, vdim=3), h=nn.EmbeddingBag(3, 2),
        i=nn.Bilinear(2, 2, 2), j=hf.pytorch_utils.Conv1D(3, 2),
    )  # fmt: skip
    model.table = nn.Parameter(torch.zeros(3, 3))
    found = prunable(model)
    assert found.kinds == {
        "a.weight": "Conv1d",
        "b.weight": "Conv3d",
        "f.in_proj_weight": "MultiheadAttention",
        "f.out_proj.weight": "Linear",
        "g.q_proj_weight": "MultiheadAttention",
        "g.k_proj_weight": "MultiheadAttention",
        "g.v_proj_weight": "MultiheadAttention",
        "g.out_proj.weight": "Linear",
        "j.weight": "Conv1D",
    }
    assert list(found) == [name for name, _ in model.named_parameters() if name in found]


def test_a_plain_module_has_no_known_head_and_a_subclass_counts():
    class MyLinear(nn.Linear):
        pass

    found = prunable(nn.Sequential(nn.Linear(2, 3), MyLinear(3, 1)))
    assert list(found) == ["0.weight", "1.weight"] and found.head == ()


def test_tied_weights_come_once_and_not_if_tied_to_an_embedding():
    model = Block(first=nn.Linear(3, 3), second=nn.Linear(3, 3), out=nn.Linear(3, 5), table=nn.Embedding(5, 3))
    model.second.weight, model.out.weight = model.first.weight, model.table.weight
    found = prunable(model)
    assert list(found) == ["first.weight"] and found["first.weight"] is model.second.weight


def test_names_and_head_of_a_wrapped_model_are_plain():
    model = build("BertForSequenceClassification", BERT)
    plain, compiled = prunable(model), partial(torch.compile, backend="eager")
    model.bert.encoder.layer[0] = compiled(model.bert.encoder.layer[0])
    for wrapped in (model, compiled(model), nn.DataParallel(model), compiled(nn.DataParallel(model))):
        found = prunable(wrapped)
        assert list(found) == list(plain) and found.head == plain.head == ("classifier",)
        assert all(found[name] is plain[name] for name in plain)


def test_names_of_a_distributed_model_are_plain():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = build("BertForSequenceClassification", BERT)
        found = prunable(nn.parallel.DistributedDataParallel(model))
    finally:
        torch.distributed.destroy_process_group()
    assert list(found) == list(prunable(model)) and found.head == ("classifier",)


def test_a_head_registered_in_the_body_as_well_is_a_head():
    class Detector(nn.Module):  # like Deformable DETR
        def __init__(self):
            super().__init__()
            self.base_model = Block(layer=nn.Linear(2, 2))
            self.box = nn.Linear(2, 4)
            self.base_model.box = self.box

        def get_output_embeddings(self):
            return None

    found = prunable(Detector())
    assert list(found) == ["base_model.layer.weight"] and found.head == ("box",)


def test_a_head_beside_a_nested_body_and_inside_a_compiled_part():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.wrap = Block(body=nn.Linear(2, 2), neck=nn.Linear(2, 2))
            self.decoder = torch.compile(Block(out=nn.Linear(2, 4)), backend="eager")

        base_model = property(lambda self: self.wrap.body)

        def get_output_embeddings(self):
            return self.decoder.out

    class Composite(Nested):  # like EncoderDecoderModel
        base_model = property(lambda self: self)

    assert list(prunable(Nested())) == ["wrap.body.weight"] and prunable(Nested()).head == ("wrap.neck", "decoder")
    found = prunable(Composite())
    assert list(found) == ["wrap.body.weight", "wrap.neck.weight"] and found.head == ("decoder.out",)


def test_include_and_exclude():
    model = build("BertForSequenceClassification", BERT)
    default, everything = list(prunable(model)), list(prunable(model, include=".*"))
    assert set(everything) - set(default) == {"classifier.weight"}
    assert list(prunable(model, include=["value", "query"])) == [n for n in default if "query" in n or "value" in n]
    assert list(prunable(model, include=r"^classifier\.")) == ["classifier.weight"]
    assert list(prunable(model, exclude="pooler")) == default[:-1]
    assert list(prunable(model, exclude="classifier")) == default  # left out anyway
    assert list(prunable(model, include="attention", exclude=["query", "key|value"])) == [default[3]]


def test_a_table_is_printed():
    model = build("BertForSequenceClassification", BERT)
    found = prunable(model, exclude=["attention", "encoder.*output"])
    assert isinstance(found, Prunable) and found.weights == 160
    lines = str(found).splitlines()
    assert [line.split() for line in lines[:-1]] == [
        ["name", "shape", "weights", "kind"],
        ["bert.encoder.layer.0.intermediate.dense.weight", "[12,", "8]", "96", "Linear"],
        ["bert.pooler.dense.weight", "[8,", "8]", "64", "Linear"],
        ["parameters:", "2,", "weights:", "160"],
    ]
    assert lines[-1] == "task head left out: classifier"
    assert repr(prunable(model, include=".*")).endswith("task head left out: none")
    assert repr(prunable(model.bert)).endswith("task head left out: none known")
    # the head is the embedding here, which is never prunable
    assert repr(prunable(build("GPT2LMHeadModel", GPT2), include=".*")).endswith("task head left out: lm_head")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(include="("), r"include must be a valid regular expression; received '\(' \(missing \)"),
        (dict(exclude="*"), r"exclude must be a valid regular expression; received '\*' \(nothing to repeat"),
        (
            dict(include="quary"),
            r"include must match the name of a prunable weight; received 'quary', which matches none\. "
            r"Near names: query",
        ),
        (dict(include=["query", "xyz"]), r"received 'xyz', which matches none\. The names are like 'bert\.encoder"),
        (
            dict(exclude="LayerNorm"),
            r"exclude must match the name of a prunable weight; received 'LayerNorm', which matches none\. "
            r"It matches 'bert\.embeddings\.LayerNorm\.weight', but norms",
        ),
        (
            dict(include="query", exclude="attention"),
            r"the selection must leave at least one weight; received include='query', exclude='attention', which "
            r"leave none of 8 parameters",
        ),
        (dict(include=[]), r"the selection must leave at least one weight; received include=\[\], exclude=None"),
    ],
)
def test_bad_patterns(options, message):
    with pytest.raises(ValueError, match=message):
        prunable(build("BertForSequenceClassification", BERT), **options)


def test_a_model_without_prunable_weights():
    message = "the model must have weights of linear layers, .*; received LayerNorm without any. Parametrized"
    with pytest.raises(ValueError, match=message):
        prunable(nn.LayerNorm(3))
    with pytest.raises(ValueError, match="received ParametrizedLinear without any"):
        prunable(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match=r"the model must be a torch\.nn\.Module; received str"):
        prunable("bert-base-uncased")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("empty", ["", [""]])
def test_an_empty_pattern_is_refused(option, empty):
    with pytest.raises(ValueError, match=f"{option} must be a regular expression; received an empty one"):
        prunable(nn.Linear(2, 2), **{option: empty})
