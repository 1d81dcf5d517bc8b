"""Inputs made of a configuration run through the model: texts, images, sounds, pairs of texts."""

import pytest
import torch
import transformers as hf

from hf_lottery.hf.tasks.example_inputs import example_inputs

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
TINY = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
TINY |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
SPEECH = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}

MODELS = {
    "BERT": (hf.BertForSequenceClassification, {**SMALL, "vocab_size": 50}, {"input_ids"}),
    "ViT": (hf.ViTForImageClassification, {**SMALL, "image_size": 8, "patch_size": 4, "num_channels": 1},
            {"pixel_values"}),
    "ResNet": (hf.ResNetForImageClassification, {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8},
               {"pixel_values"}),
    "BART": (hf.BartForConditionalGeneration, {**TINY, "vocab_size": 50}, {"input_ids", "decoder_input_ids"}),
    "Whisper": (hf.WhisperForConditionalGeneration,
                {**TINY, **SPEECH, "vocab_size": 50, "max_source_positions": 20, "num_mel_bins": 8},
                {"input_features", "decoder_input_ids"}),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_runs_on_the_inputs_that_its_configuration_asks_for(name):
    kind, values, wanted = MODELS[name]
    model = kind(kind.config_class(**values)).eval()
    inputs = example_inputs(model)
    assert inputs.keys() == wanted
    again = example_inputs(model)
    assert all(torch.equal(inputs[key], again[key]) for key in inputs)
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


def test_a_model_of_something_else_is_refused():
    class Other(hf.BertModel):
        main_input_name = "graph"

    with pytest.raises(ValueError, match="must take one of input_ids, .*; received a Other, which takes 'graph'"):
        example_inputs(Other(hf.BertConfig(**SMALL, vocab_size=50)))
