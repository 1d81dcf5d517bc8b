"""keep_sparse must train bit-equal to a network whose forward uses weight * mask."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import nn, optim
from torch.func import functional_call
from transformers.optimization import Adafactor as HFAdafactor

from hf_lottery import Mask, MaskMismatchError, SparsityLeakError, keep_sparse

OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd-fused": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam-l2": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adam-amsgrad": lambda p: optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw-fused": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "adamax": lambda p: optim.Adamax(p, lr=0.01),
    "nadam": lambda p: optim.NAdam(p, lr=0.01),
    "radam": lambda p: optim.RAdam(p, lr=0.01),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "rprop": lambda p: optim.Rprop(p, lr=0.01),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: optim.Adadelta(p, lr=1.0),
    "asgd": lambda p: optim.ASGD(p, lr=0.01),
    "adafactor": lambda p: optim.Adafactor(p, lr=0.01, weight_decay=0.01),
    "hf-adafactor": lambda p: HFAdafactor(p, lr=0.01, relative_step=False, scale_parameter=False, weight_decay=0.01),
}


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(10, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 3))


def mask_for(model: nn.Module) -> Mask:
    generator = torch.Generator().manual_seed(2)
    return Mask({n: torch.rand(p.shape, generator=generator) > 0.7 for n, p in model.named_parameters() if p.ndim > 1})


def batches(steps: int):
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        yield torch.randn(8, 10, generator=generator), torch.randint(3, (8,), generator=generator)


def train(model, optimizer, forward, *, steps=6, clip=None, accumulate=1, autocast=False):
    """Train and return the gradient norm of every step."""
    norms = []
    for i, (x, y) in enumerate(batches(steps * accumulate)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = nn.functional.cross_entropy(forward(x), y)
        loss.backward()
        if (i + 1) % accumulate == 0:
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), clip or 1e9).item())
            optimizer.step()
            optimizer.zero_grad()
    return norms


def train_masked_forward(mask, make_optimizer, **kwargs):
    """The reference: the network of which only weight * mask is ever used."""
    model = network()
    mask.apply_(model)
    float_mask = {name: entry.float() for name, entry in mask.items()}

    def forward(x):
        weights = {n: p * float_mask[n] if n in float_mask else p for n, p in model.named_parameters()}
        return functional_call(model, weights, (x,))

    norms = train(model, make_optimizer(model.parameters()), forward, **kwargs)
    return {n: p * float_mask[n] if n in float_mask else p for n, p in model.named_parameters()}, norms


def pruned_are_zero(model, mask):
    weights = dict(model.named_parameters())
    return all(bool((weights[name][~entry] == 0).all()) for name, entry in mask.items())


LOOPS = {
    "plain": {},
    "clip": {"clip": 0.05},
    "clip+accumulate": {"clip": 0.05, "accumulate": 3},
    "clip+bf16": {"autocast": True, "clip": 0.05},
}


def ways_to_train():
    """Every optimizer in every loop, given or found, with numbers or bits; quick are those that make up all pairs."""
    for i, name in enumerate(OPTIMIZERS):
        for j, loop in enumerate(LOOPS):
            for late, packed in product([False, True], repeat=2):
                quick = (late, packed) == ((i + j) % 2 == 1, (i + j) // 2 % 2 == 1)
                label = f"{name}-{loop}-{'found' if late else 'given'}-{'bits' if packed else 'numbers'}"
                yield pytest.param(name, loop, late, packed, id=label, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "loop", "late", "packed"), list(ways_to_train()))
def test_bit_equal_to_masked_forward(name, loop, late, packed):
    mask, settings = mask_for(network()), LOOPS[loop]
    expected, expected_norms = train_masked_forward(mask, OPTIMIZERS[name], **settings)
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    with keep_sparse(model, mask, None if late else optimizer, packed=packed):
        norms = train(model, optimizer, model, **settings)
    assert norms == expected_norms
    assert pruned_are_zero(model, mask)
    for parameter, value in model.named_parameters():
        assert torch.equal(value, expected[parameter]), parameter


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruning_with_a_live_optimizer_leaks_nothing(name, late):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, model)  # fills momentum and moments
    mask = mask_for(model)
    with keep_sparse(model, mask, None if late else optimizer):
        for _ in range(5):
            train(model, optimizer, model, steps=1)
            assert pruned_are_zero(model, mask)


@pytest.mark.parametrize("late", [False, True])
def test_an_optimizer_that_mixes_weights_is_projected(late):
    class Mixing(optim.SGD):
        def step(self, closure=None):
            super().step()
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        p.add_(0.1)

    optimizers = [Mixing]
    if hasattr(optim, "Muon"):
        optimizers.append(lambda p, lr: optim.Muon([q for q in p if q.ndim == 2], lr=lr))
    for make in optimizers:
        model = network()
        mask = mask_for(model)
        optimizer = make(list(model.parameters()), lr=0.1)
        with keep_sparse(model, mask, None if late else optimizer):
            train(model, optimizer, model)
            assert pruned_are_zero(model, mask)


def test_loaded_optimizer_state_is_masked():
    model, other = network(), network()
    stale = optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    train(other, stale, other)
    mask = mask_for(model)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with keep_sparse(model, mask, optimizer):
        optimizer.load_state_dict(stale.state_dict())
        train(model, optimizer, model)


def test_the_wrapper_of_accelerate_is_looked_through():
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, model)
    with keep_sparse(model, mask_for(model), SimpleNamespace(optimizer=optimizer)):
        train(model, optimizer, model)


def test_gradients_of_an_earlier_backward_are_masked():
    model = network()
    nn.functional.cross_entropy(model(torch.ones(2, 10)), torch.tensor([0, 1])).backward()
    mask = mask_for(model)
    with keep_sparse(model, mask):
        assert all(bool((p.grad[~mask[n]] == 0).all()) for n, p in model.named_parameters() if n in mask)


def test_other_models_are_left_alone():
    model, other = network(), network()
    with keep_sparse(model, mask_for(model)):
        train(other, optim.SGD(other.parameters(), lr=0.1), other)
    assert (other[0].weight != 0).all()


def test_a_step_of_another_model_hides_no_leak():
    model, other = network(), network()
    with pytest.raises(SparsityLeakError), keep_sparse(model, mask_for(model)):
        model[0].weight.data.add_(1)
        train(other, optim.SGD(other.parameters(), lr=0.1), other)


def test_an_optimizer_that_was_found_is_met_once():
    class Counting(optim.AdamW):
        hooks = 0

        def register_load_state_dict_post_hook(self, hook, prepend=False):
            self.hooks += 1
            return super().register_load_state_dict_post_hook(hook, prepend)

    model = network()
    optimizer = Counting(model.parameters())
    with keep_sparse(model, mask_for(model)):
        train(model, optimizer, model)
        assert optimizer.hooks == 1


def test_it_lets_go():
    model = network()
    mask = mask_for(model)
    optimizer = optim.AdamW(model.parameters())
    with keep_sparse(model, mask, optimizer):
        pass
    train(model, optimizer, model)
    assert not pruned_are_zero(model, mask)


def test_verify_finds_a_leak():
    model = network()
    mask = mask_for(model)
    handle = keep_sparse(model, mask)
    row, column = (~mask["0.weight"]).nonzero()[0].tolist()
    for value, words in ((0.25, "1 others, up to 0.25"), (float("nan"), "1 NaN"), (float("-inf"), "up to inf")):
        with torch.no_grad():
            model[0].weight[row, column] = value
        with pytest.raises(SparsityLeakError, match=rf"'0.weight' must be exactly 0; received .*{words}"):
            handle.verify()
    handle.remove()


@pytest.mark.parametrize("packed", [False, True])
def test_leaving_the_block_verifies_but_hides_no_error(packed):
    model = network()
    mask = mask_for(model)
    with pytest.raises(SparsityLeakError), keep_sparse(model, mask, packed=packed), torch.no_grad():
        model[3].weight.add_(1)
    with pytest.raises(KeyError), keep_sparse(model, mask, packed=packed), torch.no_grad():
        model[3].weight.add_(1)
        raise KeyError


def test_a_dense_mask_is_refused_at_the_end():
    model = network()
    handle = keep_sparse(model, Mask.dense(model))
    with pytest.raises(SparsityLeakError, match="must remove at least one weight; received a dense one"), handle:
        pass


def test_a_mask_for_another_model():
    with pytest.raises(MaskMismatchError):
        keep_sparse(nn.Linear(2, 2), mask_for(network()))


@pytest.mark.parametrize("packed", [False, True])
def test_frozen_and_channels_last_and_half(packed):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, 3, 6, 6))
    model = model.to(torch.bfloat16).to(memory_format=torch.channels_last)
    model[2].weight.requires_grad_(False)
    mask = Mask({n: torch.rand(p.shape) > 0.5 for n, p in model.named_parameters() if p.ndim > 1})
    optimizer = optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with keep_sparse(model, mask, optimizer, packed=packed):
        for _ in range(3):
            x = torch.rand(2, 3, 6, 6, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
            model(x).sum().backward()
            optimizer.step()
    assert pruned_are_zero(model, mask)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients_that_are_no_numbers(packed, bad):
    model = nn.Linear(3, 1, bias=False)
    mask = Mask({"weight": torch.tensor([[True, False, True]])})
    with keep_sparse(model, mask, packed=packed):
        model(torch.tensor([[1.0, bad, 2.0]])).sum().backward()
        assert model.weight.grad.tolist() == [[1.0, 0.0, 2.0]]


@pytest.mark.parametrize("packed", [False, True])
def test_compiled_model(packed):
    model = network()
    mask = mask_for(model)
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = optim.AdamW(model.parameters())
    with keep_sparse(compiled, mask, optimizer, packed=packed):
        train(model, optimizer, compiled)
    assert set(model.state_dict()) == set(network().state_dict())


def test_the_model_stays_plain():
    model = network()
    with keep_sparse(model, mask_for(model)):
        assert list(model.state_dict()) == list(network().state_dict())


def test_packed_mask_takes_an_eighth_of_a_byte():
    model = nn.Linear(1001, 1001, bias=False)
    entry = torch.rand(1001, 1001) > 0.5
    handle = keep_sparse(model, Mask({"weight": entry}), packed=True)
    (_, mask), *_ = handle.bound.values()
    assert mask.bits.nbytes / 1_000_000 <= 0.13
    model(torch.ones(1, 1001)).sum().backward()
    assert torch.equal(model.weight.grad, entry.float())
    handle.verify()
    handle.remove()


@pytest.mark.parametrize("given", [0, 1, None])
def test_several_optimizers_are_all_held(given):
    model = network()
    mask = mask_for(model)
    optimizers = [
        optim.Muon([p for p in model.parameters() if p.ndim == 2], lr=0.1),
        optim.AdamW([p for p in model.parameters() if p.ndim < 2], lr=0.1),
    ]
    with keep_sparse(model, mask, None if given is None else optimizers[given]):
        for x, y in batches(4):
            nn.functional.cross_entropy(model(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        assert pruned_are_zero(model, mask)


def test_a_weight_that_is_unfrozen_later_is_held_too():
    model = network()
    mask = mask_for(model)
    model[0].weight.requires_grad_(False)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with keep_sparse(model, mask, optimizer):
        train(model, optimizer, model, steps=2)
        model[0].weight.requires_grad_(True)
        train(model, optimizer, model, steps=3)
        assert pruned_are_zero(model, mask)


def test_a_quantised_state_is_refused():
    model = nn.Linear(4, 4)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.weight] = {"moment": torch.zeros(4, 4, dtype=torch.uint8)}
    mask = Mask({"weight": torch.eye(4, dtype=torch.bool)})
    with pytest.raises(NotImplementedError, match=r"state of SGD must be floating point; received torch.uint8"):
        keep_sparse(model, mask, optimizer)
