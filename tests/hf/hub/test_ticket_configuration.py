"""A ticket knows more of its network than shapes: the configuration that decides what the weights compute."""

import pytest
import torch
from small_task import vit
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5Model,
)

from hf_lottery import Mask, MaskMismatchError, Snapshot, Ticket, prunable

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24}
CLIP = {**SMALL, "projection_dim": 16}
PICTURES = {**CLIP, "image_size": 8, "patch_size": 4}
T5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4, "vocab_size": 30}


def bert(**changes):
    return BertModel(BertConfig(**SMALL, vocab_size=30, pad_token_id=0, **changes))


def llama(**changes):
    return LlamaModel(LlamaConfig(**SMALL, num_key_value_heads=4, vocab_size=30, **changes))


def clip(text=None, **vision):
    words = {**CLIP, "vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2, **(text or {})}
    return CLIPModel(CLIPConfig(text_config=words, vision_config={**PICTURES, **vision}, projection_dim=16))


def t5(**changes):
    return T5Model(T5Config(**T5, **changes))


def ticket_of(model, folder):
    mask = Mask({name: torch.ones_like(p, dtype=torch.bool) for name, p in prunable(model).items()})
    Ticket(mask, Snapshot.capture(model), {}, model.config).save_pretrained(folder)
    return Ticket.from_pretrained(folder)


@pytest.mark.parametrize(
    ("build", "changes", "message"),
    [
        (vit, {"num_attention_heads": 4}, "num_attention_heads is 2 in the ticket, 4 here"),
        (bert, {"hidden_act": "relu"}, "hidden_act is 'gelu' in the ticket, 'relu' here"),
        (bert, {"layer_norm_eps": 1.0}, "layer_norm_eps is 1e-12 in the ticket, 1.0 here"),
        (bert, {"is_decoder": True}, "is_decoder is False in the ticket, True here"),
        (
            llama,
            {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
            "rope_parameters.rope_theta is 10000.0 in the ticket, 7.0 here",
        ),
        (
            llama,
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
            "rope_parameters.factor is not set in the ticket, 2.0 here",
        ),
        (clip, {"num_attention_heads": 2}, "vision_config.num_attention_heads is 4 in the ticket, 2 here"),
        (clip, {"text": {"hidden_act": "relu"}}, "text_config.hidden_act is 'quick_gelu' in the ticket, 'relu' here"),
        (t5, {"relative_attention_max_distance": 9}, "relative_attention_max_distance is 128 in the ticket, 9 here"),
    ],
)
def test_the_same_shapes_and_another_function(build, changes, message, tmp_path):
    seed = (0,) if build is vit else ()
    ticket, other = ticket_of(build(*seed), tmp_path / "t"), build(*seed, **changes)
    before = Snapshot.capture(other).sha256()
    with pytest.raises(MaskMismatchError, match=message):
        ticket.apply_(other)
    assert Snapshot.capture(other).sha256() == before
    same = build(*seed)
    ticket.apply_(same)
    assert ticket.differences(same) == []


def test_what_does_not_matter_in_evaluation(tmp_path):
    ticket = ticket_of(bert(), tmp_path / "t")
    other = bert(
        hidden_dropout_prob=0.5, classifier_dropout=0.3, num_labels=5, problem_type="regression", use_cache=False,
        attn_implementation="eager", initializer_range=1.0, output_hidden_states=True, dtype="bfloat16",
    )  # fmt: skip
    other.config._name_or_path = "somewhere/else"
    ticket.apply_(other.float())
    assert ticket.differences(other) == []


def test_a_ticket_goes_on_where_only_the_configuration_differs(tmp_path):
    source = vit(0)
    ticket, other = ticket_of(source, tmp_path / "t"), vit(1, num_attention_heads=4, hidden_act="relu")
    with pytest.warns(UserWarning, match="num_attention_heads is 2 in the ticket, 4 here; hidden_act is"):
        ticket.apply_(other, strict=False)
    assert Snapshot.capture(other).sha256() == Snapshot.capture(source).sha256()
    with pytest.raises(MaskMismatchError, match="Build it from ticket.model_config, or pass strict=False"):
        ticket.apply_(other)
    built = type(source)(ticket.model_config)
    ticket.apply_(built)


def test_a_key_of_another_version_is_compared_with_the_default(tmp_path):
    ticket = ticket_of(bert(position_embedding_type="absolute", pruned_heads={}), tmp_path / "t")
    ticket.apply_(bert())
    ticket = ticket_of(bert(position_embedding_type="relative_key"), tmp_path / "u")
    with pytest.raises(
        MaskMismatchError, match="position_embedding_type is 'relative_key' in the ticket, not set here"
    ):
        ticket.apply_(bert())


def test_many_differences_are_counted(tmp_path):
    ticket = ticket_of(vit(0, num_labels=3), tmp_path / "t")
    sizes = {"num_labels": 3, "num_hidden_layers": 2}
    with pytest.raises(
        MaskMismatchError, match=r"num_hidden_layers is 1 in the ticket, 2 here; .*; and \d+ more\. Build"
    ):
        ticket.apply_(vit(0, **sizes))
