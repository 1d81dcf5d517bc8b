import itertools

import pytest
import torch
from torch import nn, optim

from hf_lottery import (
    Mask,
    Snapshot,
    find_ticket,
    movement,
    one_shot,
    prunable,
    random_score,
    rewind,
    saliency,
    uniform,
)
from hf_lottery.pruning.evidence import Evidence


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


def same(a: Snapshot, b: Snapshot) -> bool:
    return a.sha256() == b.sha256()


class Trainer:
    """Eight steps from wherever the level starts; remembers what it was given."""

    def __init__(self, steps=8):
        self.steps, self.seen, self.starts, self.moments = steps, [], [], {}

    def __call__(self, model, start):
        self.seen.append(start)
        self.starts.append(Snapshot.capture(model))
        optimizer = optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
        generator = torch.Generator().manual_seed(start.level)
        for step in range(start.step, self.steps):
            x = torch.randn(16, 6, generator=generator)
            loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if start.level == 0:
                self.moments[step + 1] = Snapshot.capture(model)
        return {"loss": loss.item()}


def masked(snapshot: Snapshot, mask: Mask) -> Snapshot:
    model = network()
    snapshot.restore_(model)
    mask.apply_(model)
    return Snapshot.capture(model)


def run(rewind_to=rewind.init, **kwargs):
    model, train = network(), Trainer()
    initial = Snapshot.capture(model)
    kwargs = {"sparsity": 0.7, "within": prunable(model)} | kwargs
    return list(find_ticket(model, train, rewind=rewind_to, **kwargs)), train, model, initial


def test_levels_nest_and_hit_the_target_exactly():
    levels, _, model, _ = run()
    weights = levels[0].mask.weights
    assert [level.number for level in levels] == list(range(len(levels)))
    assert levels[0].sparsity == 0.0 and levels[-1].mask.kept == weights - round(0.7 * weights)
    for before, after in itertools.pairwise(levels):
        assert before.mask & after.mask == after.mask
        assert after.mask.kept == weights - round(weights * min(1 - 0.8**after.number, 0.7))
    assert Mask.from_model(prunable(model)) == levels[-1].mask
    assert all(level.metrics["loss"] > 0 for level in levels)


def test_init_starts_every_level_from_the_initial_weights():
    levels, train, _, initial = run()
    for level, start in zip(levels, train.starts, strict=True):
        assert same(start, masked(initial, level.mask)) and same(level.start, initial)
    assert [start.step for start in train.seen] == [0] * len(levels)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_step_starts_from_the_weights_and_buffers_after_k_steps(k):
    levels, train, _, initial = run(rewind.step(k))
    assert same(train.starts[0], initial)
    for level, start in zip(levels[1:], train.starts[1:], strict=True):
        assert same(start, masked(train.moments[k], level.mask))
    assert [start.step for start in train.seen] == [0] + [k] * (len(levels) - 1)


@pytest.mark.parametrize("kind", [rewind.learning_rate, rewind.none])
def test_kept_weights_go_on_from_the_level_before(kind):
    model, train = network(), Trainer()
    ends = []
    for level in find_ticket(model, train, rewind=kind, sparsity=0.5, within=prunable(model)):
        if ends:
            assert same(train.starts[-1], masked(ends[-1], level.mask)) and same(level.start, ends[-1])
        ends.append(Snapshot.capture(model))
    assert [start.step for start in train.seen] == [0] * len(ends)
    assert [start.fine_tune for start in train.seen] == [False] + [kind is rewind.none] * (len(ends) - 1)


def test_a_rewind_that_is_text_is_explained():
    with pytest.raises(ValueError, match=r"rewind must be a point such as rewind.step\(500\); received 'init'"):
        run("init")


def test_rewind_beyond_training():
    with pytest.raises(ValueError, match="rewind step must lie within training; received 9 of 8"):
        run(rewind.step(9))


def test_steps_are_counted_of_the_models_own_optimizer_and_while_it_trains():
    class Distilled(Trainer):
        def __call__(self, model, start):
            teacher = network()
            optimizer = optim.SGD(teacher.parameters(), lr=0.1)
            teacher(torch.ones(2, 6)).sum().backward()
            optimizer.step()
            return super().__call__(model, start)

    model, train = network(), Distilled()
    levels = list(find_ticket(model, train, rewind=rewind.step(2), levels=1, within=prunable(model)))
    assert same(levels[1].start, train.moments[2])


@pytest.mark.parametrize("score", [random_score, lambda w, e: -w.abs()])
def test_levels_nest_whatever_the_score(score):
    levels, *_ = run(score=score, rewind_to=rewind.learning_rate)
    assert all(before.mask & after.mask == after.mask for before, after in itertools.pairwise(levels))


def test_names_of_a_compiled_model_levels_and_min_density():
    model = network()
    within = {f"_orig_mod.{name}": p for name, p in prunable(model).items()}
    levels = list(find_ticket(model, Trainer(), within=within, levels=1, pruning_fraction=0.3, min_density=0.68))
    assert list(levels[1].mask) == ["0.weight", "3.weight"] and len(levels) == 2
    assert max(levels[1].mask.layer_sparsities().values()) <= 0.32


def test_scope_schedule_and_score_are_passed_through():
    levels, _, _, _ = run(scope=uniform, schedule=one_shot, sparsity=0.5)
    assert len(levels) == 2 and set(levels[1].mask.layer_sparsities().values()) == {0.5}


def test_movement_sees_the_start_of_its_level():
    seen = []

    def score(weight, evidence):
        seen.append((weight.detach().clone(), evidence.start.clone()))
        return movement(weight, evidence)

    levels, _train, _, initial = run(rewind.learning_rate, score=score, sparsity=0.3)
    del seen[:2]  # the dry call, once for each shape
    assert torch.equal(seen[0][1], initial.tensors["0.weight"])
    assert torch.equal(seen[2][1], levels[1].start.tensors["0.weight"]) and len(levels) == 3


def test_evidence_is_gathered_from_the_trained_model():
    trained = []

    def evidence(model):
        trained.append(Snapshot.capture(model))
        return {name: Evidence(gradient=torch.ones_like(p)) for name, p in prunable(model).items()}

    levels, train, _, _ = run(score=saliency, evidence=evidence, sparsity=0.3)
    assert len(trained) == len(levels) - 1 and same(trained[0], train.moments[8])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.5}, "received 1.5"),
        ({"sparsity": None}, "exactly one of sparsity and levels"),
        ({"pruning_fraction": 1.0}, "pruning_fraction"),
        ({"rewind_to": rewind.epoch(1)}, "epoch:1 must be given in steps"),
        ({"within": {"nope": torch.zeros(2)}}, "'nope' must name a parameter"),
    ],
)
def test_bad_settings_are_refused_before_training(settings, message):
    model, train = network(), Trainer()
    settings = {"sparsity": 0.5, "within": prunable(model)} | settings
    with pytest.raises(ValueError, match=message):
        find_ticket(model, train, rewind=settings.pop("rewind_to", rewind.init), **settings)
    assert not train.seen


def test_parameters_of_another_model_are_refused():
    model = network()
    for within in (prunable(network()), {"3.weight": model[0].weight.detach()[:3, :1].expand(3, 12)}):
        with pytest.raises(ValueError, match="within must hold parameters of this model"):
            find_ticket(model, Trainer(), within=within, sparsity=0.5)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"received another '1.weight', or the second name of a tied parameter"):
        find_ticket(model, Trainer(), within={"1.weight": model[1].weight}, sparsity=0.5)


def test_parameters_that_training_replaced_are_not_scored():
    model = network()

    def train(model, start):
        model.load_state_dict(network().state_dict(), assign=True)

    with pytest.raises(ValueError, match=r"received another '0.weight'.* load_state_dict\(assign=True\) replaces"):
        list(find_ticket(model, train, within=prunable(model), sparsity=0.5))


def test_training_may_freeze_weights_when_it_is_done():
    model, train = network(), Trainer()

    def train_and_freeze(model, start):
        model.requires_grad_(True)
        train(model, start)
        model.requires_grad_(False)

    assert len(list(find_ticket(model, train_and_freeze, within=prunable(model), levels=2))) == 3


def test_a_level_that_removes_nothing_is_refused():
    model = network()
    with pytest.raises(ValueError, match="level 1 must remove weights; received sparsity 0 and then 0.001 of 108"):
        find_ticket(model, Trainer(), within=prunable(model), sparsity=0.001)


def test_of_several_optimizers_the_first_counts():
    model = network()
    seen = []

    def train(model, start):
        groups = [list(model[0].parameters()), list(model[3].parameters())]
        optimizers = [optim.SGD(group, lr=0.1) for group in groups]
        for step in range(start.step, 6):
            model(torch.randn(8, 6)).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if start.level == 0:
                seen.append((step, model[0].weight.detach().clone()))

    levels = list(find_ticket(model, train, within=prunable(model), levels=1, rewind=rewind.step(4)))
    assert torch.equal(levels[1].start.tensors["0.weight"], seen[3][1])
