"""How a search prunes a level: scores, scopes and evidence."""

import pytest
import torch
from small_searches import quick, trained_weights, trainer
from small_task import Net, Points, arguments, net
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from hf_lottery import (
    Mask,
    Snapshot,
    gather_evidence,
    movement,
    needs,
    prunable,
    prune,
    saliency,
    score_weights,
    wanda,
)


@pytest.mark.parametrize(
    ("score", "scope", "rewind"),  # every pair of two values occurs
    [
        ("saliency", "uniform", "init"),
        ("saliency", "erk", "learning_rate"),
        ("saliency", "global", "init"),
        ("wanda", "uniform", "learning_rate"),
        ("wanda", "erk", "init"),
        ("wanda", "global", "learning_rate"),
        ("movement", "uniform", "init"),
        ("movement", "erk", "learning_rate"),
        ("movement", "global", "init"),
        ("random", "uniform", "learning_rate"),
        ("random", "erk", "init"),
        ("random", "global", "learning_rate"),
    ],
)
def test_scores_and_scopes_and_rewinds_in_pairs(tmp_path, score, scope, rewind):
    ours = quick(tmp_path, score=score, scope=scope, rewind=rewind, sparsity=0.4)
    ours.train()
    assert ours.mask.kept == pytest.approx(ours.mask.weights * 0.6, abs=1)
    assert Mask.from_pretrained(tmp_path / "level-01") & ours.mask == ours.mask


@pytest.mark.parametrize("score", [movement, saliency, wanda])
def test_scores_are_of_the_trained_model_and_the_start_of_its_level(tmp_path, score):
    ours = quick(tmp_path, score=score.__name__, num_train_epochs=2, sparsity=0.5, schedule="one_shot")
    ours.train()
    model, data = Net(), Points()
    model.load_state_dict(trained_weights(tmp_path / "level-00/trained"))
    weights, start = prunable(model), Snapshot.load(tmp_path / "level-00/rewind.safetensors")
    batch = {"x": data.x, "labels": data.labels}
    evidence = gather_evidence(model, [batch], lambda m, b: m(**b)["loss"], within=weights)
    evidence = {name: known._replace(start=start.tensors[name]) for name, known in evidence.items()}
    assert ours.mask.overlap(prune(score_weights(weights, score, evidence=evidence), 0.5)).iou > 0.95


def test_an_own_score_is_given_the_evidence_that_it_declares(tmp_path):
    seen = []
    model = net()
    initial = Snapshot.capture(model).tensors["inner.weight"]

    @needs("gradient", "input_norm", "start")
    def own_score(weight, evidence):
        seen.append(evidence)
        return weight.abs()

    own = quick(tmp_path, model=model, extra={"score": own_score}, sparsity=0.5, schedule="one_shot")
    seen.clear()  # the dry call
    own.train()
    inner, outer = seen
    assert torch.equal(inner.start, initial) and inner.gradient.shape == initial.shape
    assert (inner.input_norm.shape, outer.input_norm.shape) == ((1, 6), (1, 20))
    with pytest.raises(ValueError, match="received score='magnitude' instead of 'own_score'"):
        quick(tmp_path, sparsity=0.5, schedule="one_shot").train(resume_from_checkpoint=True)


def test_evidence_is_of_as_many_batches_as_asked(tmp_path, monkeypatch):
    taken = []

    def spy(model, batches, loss, **options):
        taken.append(list(batches))
        return gather_evidence(model, taken[-1], loss, **options)

    monkeypatch.setattr("hf_lottery.hf.trainers.level_pruning.gather_evidence", spy)
    quick(tmp_path, score="saliency", score_batches=2, levels=2, sparsity=None).train()
    assert [len(batches) for batches in taken] == [2, 2]


def test_a_random_mask_depends_on_the_seed_alone(tmp_path):
    masks = []
    for name, changes in (("a", {}), ("b", {"num_train_epochs": 2}), ("c", {"seed": 7})):
        settings = {"score": "random", "sparsity": 0.5, "schedule": "one_shot", "num_train_epochs": 1} | changes
        ours = quick(tmp_path / name, **settings)
        ours.train()
        masks.append(ours.mask)
    assert masks[0] == masks[1] != masks[2]


def test_own_score_min_density_include_and_2_of_4(tmp_path):
    upside_down = quick(
        tmp_path / "a", extra={"score": lambda w, e: -w.detach().abs()}, sparsity=0.5, schedule="one_shot"
    )
    upside_down.train()
    plain = quick(tmp_path / "b", sparsity=0.5, schedule="one_shot")
    plain.train()
    assert upside_down.mask == ~plain.mask
    floor = quick(tmp_path / "c", sparsity=0.9, schedule="one_shot", min_density=0.1)
    floor.train()
    assert max(floor.mask.layer_sparsities().values()) <= 0.9
    two = quick(tmp_path / "d", sparsity=0.5, schedule="one_shot", scope="2:4", include=["outer"])
    two.train()
    assert list(two.mask) == ["outer.weight"]
    assert (two.mask["outer.weight"].view(3, 5, 4).sum(2) == 2).all()


def test_include_and_exclude_select_the_weights(tmp_path):
    assert list(trainer(tmp_path, include=["outer"]).weights) == ["outer.weight"]
    assert list(trainer(tmp_path, exclude=["outer"]).weights) == ["inner.weight"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scope": "2:4", "include": ["outer"]}, r"level 1, sparsity 0.3, cannot be pruned: .*1 - 2/4"),
        ({"scope": "erk", "min_density": 0.5, "sparsity": 0.9}, "level . cannot be pruned|cannot be pruned: "),
        ({"pruning_fraction": 0.001, "sparsity": 0.01}, "level 1 must remove weights"),
    ],
)
def test_what_cannot_be_pruned_is_refused_before_training(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **changes)


def test_2_of_4_runs_along_the_inputs_of_gpt2():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    weights = prunable(GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=8, vocab_size=20)))
    args = arguments("unused", scope="2:4")
    mask = prune(score_weights(weights), 0.5, scope=args.get_scope(kinds=weights.kinds))
    assert (mask["transformer.h.0.mlp.c_fc.weight"].T.reshape(-1, 4).sum(1) == 2).all()
    moe = prunable(MixtralForCausalLM(MixtralConfig(**sizes, intermediate_size=16, num_local_experts=2)))
    with pytest.raises(ValueError, match="must know the input axis of every weight; received stacked experts"):
        args.get_scope(kinds=moe.kinds)


def test_weights_without_inputs_are_refused_before_training(tmp_path):
    mixtral = MixtralForCausalLM(
        MixtralConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20, intermediate_size=16)
    )
    with pytest.raises(ValueError, match=r"wanda must be given.*received model.layers.0.mlp.experts.*exclude=\["):
        trainer(tmp_path, model=mixtral, score="wanda")
    attention = nn.TransformerEncoderLayer(8, 2, 16)
    with pytest.raises(ValueError, match=r"received self_attn.in_proj_weight, self_attn.out_proj.weight, which no"):
        trainer(tmp_path, model=attention, score="wanda")
    trainer(tmp_path, model=attention, score="wanda", exclude=["self_attn"])
    trainer(tmp_path, model=attention, score="saliency")
