"""A parameter is held once, a hold ends with its model or by release(), and a copy says that it is not held."""

import copy
import gc
import io
import pickle
import warnings
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn, optim

from hf_lottery import Mask, SparsityLeakError, keep_sparse
from hf_lottery.networks.names import named_weights
from hf_lottery.training import release


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def mask_for(model: nn.Module) -> Mask:
    weights = named_weights(model).items()
    return Mask({n: torch.arange(p.numel()).view(p.shape) % 2 == 0 for n, p in weights if p.ndim > 1})


def revived(model: nn.Module, mask: Mask) -> int:
    """Train one step, and count the pruned weights that are not zero."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optim.SGD(model.parameters(), lr=0.1).step()
    weights = dict(model.named_parameters())
    return sum(int((weights[name].detach()[~entry] != 0).sum()) for name, entry in mask.items())


def parts(model: nn.Sequential) -> dict[str, nn.Module]:
    tied = nn.Linear(4, 6)
    tied.weight = model[0].weight
    return {
        "itself": model,
        "a module of it": model[0],
        "a model around it": nn.ModuleDict({"body": model}),
        "a model with a tied weight": tied,
        "compiled": torch.compile(model, backend="eager"),
    }


@pytest.mark.parametrize("part", parts(network()))
def test_a_second_hold_is_refused_and_changes_nothing(part):
    model = network()
    handle = keep_sparse(model, mask_for(model))
    other = parts(model)[part]
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(RuntimeError, match=r"one mask only; received .*weight'.*release\(model\)"):
        keep_sparse(other, mask_for(other))
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    handle.remove()
    keep_sparse(other, mask_for(other)).remove()


@pytest.mark.parametrize("part", parts(network()))
def test_release_needs_no_handle(part):
    model = network()
    mask = mask_for(model)
    keep_sparse(model, mask)
    assert not revived(model, mask)
    release(parts(model)[part])
    assert revived(model, mask)
    with keep_sparse(model, mask):
        assert not revived(model, mask)
    release(model)  # nothing is held


def test_two_parts_of_a_model_may_be_held_apart():
    model = network()
    with keep_sparse(model[0], mask_for(model[0])), keep_sparse(model[2], mask_for(model[2])):
        assert not revived(model, mask_for(model))


def test_weights_and_biases_may_be_held_apart_without_handles():
    model = network()
    weights = mask_for(model)
    biases = Mask({name: torch.arange(p.numel()) % 2 == 0 for name, p in model.named_parameters() if p.ndim == 1})
    keep_sparse(model, weights)
    handle = keep_sparse(model, biases)
    gc.collect()
    assert not revived(model, weights) and not revived(model, biases)
    handle.remove()
    assert not revived(model, weights) and revived(model, biases)
    with pytest.warns(UserWarning, match="is not held"):
        copy.deepcopy(model)
    release(model)
    assert revived(model, weights)


@pytest.mark.parametrize("wrong", ["list", "not of torch"])
def test_an_optimizer_whose_steps_cannot_be_seen_is_refused(wrong):
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="must be one torch.optim.Optimizer; received (list|SimpleNamespace)"):
        keep_sparse(model, mask_for(model), [optimizer] if wrong == "list" else SimpleNamespace(step=optimizer.step))
    assert revived(model, mask_for(model))


def assigned(model: nn.Module) -> None:
    model.load_state_dict(network().state_dict(), assign=True)


def parametrized(model: nn.Sequential) -> None:
    nn.utils.parametrizations.weight_norm(model[0])


@pytest.mark.parametrize("replace", [assigned, parametrized])
def test_replaced_parameters_are_found(replace):
    model = network()
    handle = keep_sparse(model, mask_for(model))
    replace(model)
    with pytest.raises(SparsityLeakError, match=r"'0\.weight' was replaced.*Call keep_sparse after that"):
        handle.verify()


def test_replaced_parameters_that_are_sparse_are_no_leak():
    """As when the best weights are loaded at the end."""
    model = network()
    with keep_sparse(model, mask_for(model)):
        model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


def test_a_hold_that_fails_holds_nothing():
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model[0].weight] = {"moment": torch.zeros(6, 4, dtype=torch.uint8)}
    with pytest.raises(NotImplementedError):
        keep_sparse(model, mask_for(model), optimizer)
    assert revived(model, mask_for(model))


def test_a_hold_lives_as_long_as_its_model():
    model = network()
    keep_sparse(model, mask_for(model))
    gc.collect()
    assert not revived(model, mask_for(model))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


COPIES = {
    "deepcopy": lambda model: copy.deepcopy(model),
    "of a module": lambda model: copy.deepcopy(model[0]),
    "of a model around it": lambda model: copy.deepcopy(nn.ModuleList([model])),
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: torch.save(model, io.BytesIO()),
    "average": lambda model: optim.swa_utils.AveragedModel(model),
}


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_says_once_that_it_is_not_held(way):
    model = network()
    with keep_sparse(model, mask_for(model)), pytest.warns(UserWarning, match="copy .* is not held") as caught:
        COPIES[way](model)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        COPIES[way](model)  # the hold has ended


def test_a_copy_is_free_and_can_be_held():
    model = network()
    mask = mask_for(model)
    with keep_sparse(model, mask):
        with pytest.warns(UserWarning, match="is not held"):
            other = copy.deepcopy(model)
        assert revived(other, mask) and not revived(model, mask)
        with keep_sparse(other, mask):
            assert not revived(other, mask)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            copy.deepcopy(model.state_dict())
            torch.save(model.state_dict(), io.BytesIO())


@pytest.mark.parametrize("given", ["me/repository", {"0.weight": torch.ones(6, 4, dtype=torch.bool)}, None])
def test_a_mask_is_a_mask(given):
    with pytest.raises(TypeError, match=rf"must be a Mask; received {type(given).__name__}\. .*from_pretrained"):
        keep_sparse(network(), given)
