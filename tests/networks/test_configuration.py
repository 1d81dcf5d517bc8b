"""Which values of a configuration count, and how two configurations are compared."""

import json
from enum import Enum
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from hf_lottery.networks.configuration import configuration_differences, configuration_of, deciding


class Config:
    """What has ``to_dict``, with the defaults that its class declares."""

    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, **changes):
        self.values = self.defaults | changes

    def to_dict(self):
        return {name: v.to_dict() if isinstance(v, Config) else v for name, v in self.values.items()}


class Small(Config):
    defaults: ClassVar = {"heads": 4, "eps": 1e-5, "sizes": (3, 4), "dropout": 0.1}


class Whole(Config):
    defaults: ClassVar = {"text_config": Small(), "act": "relu"}


class Act(Enum):
    RELU = "relu"


def differences(a, b):
    return configuration_differences(deciding(a), deciding(b), like=b, where=("there", "here"))


def test_nested_configurations_are_flat_and_in_the_terms_of_json():
    found = deciding(Whole(text_config=Small(sizes=(1, 2)), act=Act.RELU))
    assert found == {"text_config.heads": 4, "text_config.eps": 1e-5, "text_config.sizes": [1, 2], "act": "relu"}
    assert deciding(json.loads(json.dumps(found))) == found
    assert deciding({"a": {3: {1, 2}}, "kind": torch.int8}) == {"a.3": [1, 2], "kind": "torch.int8"}


@pytest.mark.parametrize(
    "name",
    [
        "hidden_dropout_prob", "attention_dropout", "resid_pdrop", "encoder_layerdrop", "drop_path_rate", "dropout",
        "id2label", "problem_type", "_attn_implementation", "dtype", "torch_dtype", "use_cache", "output_attentions",
        "output_hidden_states", "return_dict", "_name_or_path", "transformers_version", "architectures", "num_beams",
        "initializer_range", "init_std", "gradient_checkpointing", "mask_time_prob", "router_aux_loss_coef",
    ],
)  # fmt: skip
def test_what_cannot_change_the_function_is_ignored_at_every_depth(name):
    assert deciding({name: 1, "text_config": {name: 2, "heads": 3}}) == {"text_config.heads": 3}


@pytest.mark.parametrize(
    "name",
    [
        "num_attention_heads", "hidden_act", "layer_norm_eps", "rope_theta", "norm_topk_prob", "mask_feature_size",
        "token_dropout", "moe_token_dropout", "speech_decoder_prenet_dropout", "drop_vision_last_layer",
        "normalize_router_prob_before_dropping", "output_stride", "is_decoder", "num_experts_per_tok",
        "scale_embedding", "logit_scale_init_value", "dropping", "dtypes",
    ],
)  # fmt: skip
def test_what_can_change_it_counts(name):
    assert deciding({name: 1}) == {name: 1}


def test_each_difference_is_named_with_both_values():
    assert differences(Whole(text_config=Small(heads=2), act="gelu"), Whole()) == [
        "text_config.heads is 2 there, 4 here",
        "act is 'gelu' there, 'relu' here",
    ]
    long = differences({"a": list(range(99))}, {"a": None})
    assert long[0].endswith("... there, not set here") and len(long[0]) < 120
    assert not differences(Small(dropout=0.5), Small())


def test_equal_values_of_other_types_are_equal():
    pairs = [(1, 1.0), ((1, 2), [1, 2]), (float("nan"), float("nan")), (Act.RELU, "relu"), (torch.int8, "torch.int8")]
    for a, b in pairs:
        assert not differences({"a": a}, {"a": b})
    assert differences({"a": "1"}, {"a": 1}) == ["a is '1' there, 1 here"]
    assert differences({"a": [1, 2]}, {"a": [2, 1]})


def test_what_only_one_of_them_has_is_compared_with_the_default():
    older = {"heads": 4, "sizes": [3, 4]}
    assert not differences(older, Small())
    assert differences(older, Small(eps=1.0)) == ["eps is 1e-05 there, 1.0 here"]
    assert not differences({"pruned_heads": {}, "is_decoder": False, "prefix": None, **older}, Small())
    assert not differences({"position_embedding_type": "absolute", **older}, Small())
    assert differences({"position_embedding_type": "relative_key", **older}, Small())
    assert differences({"rope": {"factor": 2.0}, **older}, Small()) == ["rope.factor is 2.0 there, not set here"]


def test_a_special_token_may_be_open_but_not_another_one():
    assert not differences({"pad_token_id": 3}, {"pad_token_id": None})
    assert differences({"pad_token_id": 3}, {"pad_token_id": 0}) == ["pad_token_id is 3 there, 0 here"]
    # The default of the class, which a small model inherits, is no token of it.
    assert not differences({"vocab_size": 8, "eos_token_id": 1}, {"vocab_size": 8, "eos_token_id": 50256})
    assert differences({"vocab_size": 60000, "eos_token_id": 1}, {"vocab_size": 60000, "eos_token_id": 50256})


def test_a_model_has_a_configuration_if_it_has_to_dict():
    model: Any = nn.Sequential(nn.Linear(2, 2))
    assert configuration_of(model) is None
    model.config = Small()
    assert configuration_of(model) is model.config is configuration_of(nn.DataParallel(model))
    for settings in ("words", {"seed": 3}, None):
        model.config = settings
        assert configuration_of(model) is None


def test_a_class_that_cannot_be_built_alone_has_no_defaults():
    class Strict(Config):
        def __init__(self, heads):
            super().__init__(heads=heads)

    assert differences({"heads": 4, "eps": 1.0}, Strict(4)) == ["eps is 1.0 there, not set here"]


def test_defaults_are_not_asked_for_where_they_are_not_needed():
    """A class may look for its defaults on the Hub."""

    class Remote(Small):
        def __init__(self, *, here=False, **changes):
            super().__init__(**changes)
            assert here, "asked for the defaults"

    assert not differences(Remote(here=True), Remote(here=True))
