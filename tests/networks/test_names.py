"""Plain names of parameters and buffers, whatever wraps the model."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from hf_lottery.networks.names import named_state, named_tensors, named_weights, plain_name, replaced_weights, unwrap


class Tied(nn.Module):
    """A tied head, a saved buffer and one that is not saved."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("cache", torch.zeros(2), persistent=False)


def compiled(model):
    return torch.compile(model, backend="eager")


WRAPPERS = {
    "none": lambda model: model,
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "both": lambda model: nn.DataParallel(compiled(model)),
    "the other way round": lambda model: compiled(nn.DataParallel(model)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrappers_are_looked_through(wrap):
    model = Tied()
    wrapped = wrap(model)
    assert unwrap(wrapped) is model
    assert list(named_weights(wrapped)) == ["embedding.weight", "head.weight"]
    assert list(named_state(wrapped)) == ["embedding.weight", "seen", "cache"]
    assert list(named_tensors(wrapped)) == ["embedding.weight", "head.weight", "seen", "cache"]


def test_a_model_with_a_part_that_is_named_module_is_not_a_wrapper():
    model = nn.Sequential()
    model.module = nn.Linear(2, 2)
    assert unwrap(model) is model and list(named_weights(model)) == ["module.weight", "module.bias"]


def test_parts_that_are_wrapped_have_plain_names():
    model = nn.Sequential(checkpoint_wrapper(nn.Linear(2, 2)), compiled(nn.BatchNorm1d(2)))
    names = ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert list(named_weights(model)) == names
    assert list(named_state(model)) == [*names, "1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert plain_name("_orig_mod.a._fsdp_wrapped_module.b._checkpoint_wrapped_module.c") == "a.b.c"
    assert plain_name("module.weight") == "module.weight"


class Detector(nn.Module):
    """Has the methods and parts of PEFT's models and layers, but is not of PEFT."""

    def __init__(self):
        super().__init__()
        self.base_model = self.base_layer = nn.Linear(3, 3)
        self.original_module, self.modules_to_save = nn.Linear(3, 3), nn.ModuleDict({"default": nn.Linear(3, 3)})
        self.head = nn.Linear(3, 2)

    def get_base_model(self):
        return self.base_model

    get_base_layer = get_base_model


@pytest.mark.parametrize("around", [lambda model: model, nn.Sequential])
def test_a_model_that_only_looks_like_one_of_peft_keeps_its_parts(around):
    model = around(Detector())
    assert named_weights(model).keys() == dict(model.named_parameters(remove_duplicate=False)).keys()
    assert not replaced_weights(model)


def test_tied_names_share_their_tensor():
    model = Tied()
    weights = named_weights(model)
    assert weights["embedding.weight"] is weights["head.weight"] is model.head.weight
    assert named_tensors(model)["cache"] is model.cache


@pytest.mark.parametrize("names", [named_weights, named_tensors])
def test_a_mapping_is_copied(names):
    given = {"_orig_mod.a": torch.ones(1)}
    found = names(given)
    assert found == given and found is not given
