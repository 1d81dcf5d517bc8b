"""What AutoModel loads from a ticket is what the ticket holds: several precisions, and buffers that no file holds."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from hf_lottery import Mask, Snapshot, Ticket, prunable
from hf_lottery.hf import SparseModel
from hf_lottery.networks.names import named_state


def mixed():
    """A small BERT in bfloat16 with norms in float32, whose values bfloat16 cannot hold."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = BertForSequenceClassification(BertConfig(**sizes, vocab_size=30, pad_token_id=0))
    for name, parameter in model.named_parameters():
        if "norm" in name.lower():
            nn.init.uniform_(parameter)
        else:
            parameter.data = parameter.data.bfloat16()
    return model


def mask_of(model):
    return Mask({name: torch.rand(weight.shape) < 0.5 for name, weight in prunable(model).items()})


@pytest.mark.parametrize("kind", ["ticket", "sparse model"])
def test_weights_of_several_precisions_lose_no_number(tmp_path, kind):
    model = mixed()
    mask = mask_of(model)
    ticket = Ticket.of(model, mask, Snapshot.capture(model))
    mask.apply_(model)
    (ticket if kind == "ticket" else SparseModel.of(model, mask)).save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for name, tensor in named_state(model).items():
        assert torch.equal(named_state(loaded)[name].double(), tensor.double()), name
    if kind == "ticket":
        built = Ticket.from_pretrained(tmp_path).build_model()
        assert Snapshot.capture(built).sha256() == Snapshot.capture(model).sha256()


class OwnConfig(PreTrainedConfig):
    model_type = "with_a_table"
    filled: bool = True


class Own(PreTrainedModel):
    """A model with a table that is not saved; with ``filled`` it is also there if transformers loads the model."""

    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.linear = nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(4.0), persistent=False)
        self.post_init()

    def _init_weights(self, module):
        if module is self and self.config.filled:
            self.table.copy_(torch.arange(4.0))

    def forward(self, x):
        return self.linear(x * self.table)


AutoConfig.register("with_a_table", OwnConfig, exist_ok=True)
AutoModel.register(OwnConfig, Own, exist_ok=True)


@pytest.mark.parametrize("filled", [True, False])
@pytest.mark.filterwarnings("default:no model.safetensors is written")
def test_buffers_that_are_not_saved(tmp_path, filled):
    model = Own(OwnConfig(filled=filled))
    ticket = Ticket.of(model, mask_of(model), Snapshot.capture(model))
    if filled:
        ticket.save_pretrained(tmp_path)
        assert AutoModel.from_pretrained(tmp_path).table.tolist() == [0, 1, 2, 3]
    else:
        with pytest.warns(UserWarning, match=r"from_pretrained of Own would lose the values of table\. Fill these"):
            ticket.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists() == filled
    assert ("With transformers alone" in (tmp_path / "README.md").read_text()) == filled
    assert Ticket.from_pretrained(tmp_path).build_model().table.tolist() == [0, 1, 2, 3]
