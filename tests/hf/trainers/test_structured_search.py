"""A structured search prunes whole units, keeps them on disk, and goes on where it was killed."""

from itertools import pairwise

import pytest
import torch
from small_searches import Images, equal, quick, quick_aws, state, weights_of
from small_task import KillAt, Killed, Points, arguments, net, vit
from torch import nn

from hf_lottery import (
    LotteryArguments,
    LotteryTrainer,
    Mask,
    SparseTrainer,
    SparsityCallback,
    Ticket,
    WinningSignTrainer,
    discover,
)
from hf_lottery.hf.commands.main import main
from hf_lottery.structured import UnitMask


class Classifier(nn.Module):
    """Two hidden layers; labels may be left out."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 20), nn.Linear(20, 12), nn.Linear(12, 3)

    def forward(self, x, labels=None):
        logits = self.last(self.second(self.first(x).relu()).relu())
        return {"loss": None if labels is None else nn.functional.cross_entropy(logits, labels), "logits": logits}


def classifier(seed=1):
    torch.manual_seed(seed)
    return Classifier()


def structured(folder, *, model=None, kill=None, kind=LotteryTrainer, **changes):
    return kind(
        model=model or classifier(),
        args=arguments(folder, structured=True, **changes),
        train_dataset=Points(),
        eval_dataset=Points(20),
        callbacks=[KillAt(*kill)] if kill else [],
    )


def levels_of(folder, count):
    return [UnitMask.from_pretrained(folder / f"level-{number:02d}") for number in range(count)]


def test_every_level_removes_the_units_with_the_lowest_scores(tmp_path):
    search = structured(tmp_path, rewind="init")
    search.train()
    masks = levels_of(tmp_path, len(search.sparsities))
    for mask, sparsity in zip(masks, search.sparsities, strict=True):
        assert mask.unit_count == 32 and mask.kept_units == 32 - round(sparsity * 32)
    for before, after in pairwise(masks):
        assert all((before.units[name] | ~after.units[name]).all() for name in after.units)
    wanted = [mask.unit_sparsity for mask in masks]
    assert [record["sparsity"] for record in search.history] == wanted
    assert {log["sparsity"] for log in search.state.log_history} == {wanted[-1]}
    assert isinstance(search.mask, UnitMask) and search.mask.units.keys() == masks[-1].units.keys()
    gone = ~search.mask.units["first.weight[0]"]
    assert gone.any()
    assert not search.model.first.weight[gone].any() and not search.model.second.weight[:, gone].any()


@pytest.mark.parametrize(
    ("rewind", "level", "step"), [("init", 0, 1), ("step:2", 1, 3), pytest.param("learning_rate", 2, 6)]
)
def test_killed_and_resumed_is_bit_identical(tmp_path, rewind, level, step):
    expected = structured(tmp_path / "whole", rewind=rewind)
    expected.train()
    with pytest.raises(Killed):
        structured(tmp_path / "killed", rewind=rewind, kill=(level, step)).train()
    resumed = structured(tmp_path / "killed", model=classifier(77), rewind=rewind, resume_with_other=["weights"])
    resumed.train(resume_from_checkpoint=True)
    assert isinstance(resumed.mask, UnitMask)
    assert equal(resumed.mask.units, expected.mask.units) and resumed.mask == expected.mask
    assert equal(state(resumed.model), state(expected.model))
    start = "ticket/rewind.safetensors"
    assert weights_of(tmp_path / "killed" / start) == weights_of(tmp_path / "whole" / start)


def test_the_ticket_and_the_trained_model_keep_the_units(tmp_path):
    search = structured(tmp_path, sparsity=None, levels=1, save_strategy="no")
    search.train()
    ticket = Ticket.from_pretrained(tmp_path / "ticket")
    assert isinstance(ticket.mask, UnitMask) and equal(ticket.mask.units, search.mask.units)
    assert ticket.series is not None and ticket.series[-1] == ticket.mask
    assert equal(UnitMask.from_pretrained(tmp_path / "level-01/trained").units, search.mask.units)
    ticket.save_pretrained(tmp_path / "again")
    assert equal(Ticket.from_pretrained(tmp_path / "again").mask.units, search.mask.units)
    assert Mask.from_pretrained(tmp_path / "ticket") == search.mask


@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_groups_multiples_and_least_densities_are_kept_to(tmp_path, scope):
    chosen = {"structured_groups": ["first"], "structured_multiple": 4, "scope": scope}
    search = structured(tmp_path / "a", **chosen, save_strategy="no")
    search.train()
    assert list(search.mask.units) == ["first.weight[0]"] and search.mask.kept_units == 8
    search = structured(tmp_path / "b", scope=scope, min_density=0.45, sparsity=0.5, save_strategy="no")
    search.train()
    assert all(int(kept.sum()) >= least for kept, least in zip(search.mask.units.values(), (9, 6), strict=True))


def test_a_level_that_least_densities_leave_nothing_to_is_refused_before_any_training(tmp_path):
    with pytest.raises(ValueError, match=r"level 3 must remove units; .*min_density=0.8"):
        structured(tmp_path, min_density=0.8, sparsity=0.6, pruning_fraction=0.3)
    with pytest.raises(ValueError, match=r"level 1 must remove units; .*structured_multiple=4"):
        structured(tmp_path, min_density=0.9, structured_multiple=4, sparsity=None, levels=1)


def test_a_mask_in_a_folder_is_held_with_its_units(tmp_path):
    search = structured(tmp_path / "search", sparsity=None, levels=1, save_strategy="no")
    search.train()
    again = SparseTrainer(model=classifier(), args=search.args, mask=tmp_path / "search/ticket", train_dataset=Points())
    assert isinstance(again.mask, UnitMask) and again.mask == search.mask
    assert isinstance(SparsityCallback(tmp_path / "search/ticket").mask, UnitMask)


@pytest.mark.parametrize(("score", "kind"), [("saliency", LotteryTrainer), ("wanda", LotteryTrainer),
                                             ("movement", WinningSignTrainer)])  # fmt: skip
def test_any_score_that_can_be_gathered_ranks_units(tmp_path, score, kind):
    search = structured(tmp_path, kind=kind, score=score, sparsity=None, levels=1, save_strategy="no")
    search.train()
    assert isinstance(search.ticket.mask, UnitMask) and search.ticket.mask.kept_units == 22


def test_heads_and_units_of_a_transformer_go_whole(tmp_path):
    search = LotteryTrainer(
        model=vit(0, intermediate_size=24, num_attention_heads=4),
        args=arguments(tmp_path, structured=True, sparsity=None, levels=1, save_strategy="no", scope="uniform"),
        train_dataset=Images(),
        eval_dataset=Images(),
    )
    search.train()
    kept = {name: (kept.numel(), int(kept.sum())) for name, kept in search.mask.units.items()}
    assert sorted(kept.values()) == [(4, 3), (24, 17)]


def test_a_signed_ticket_of_units_has_units(tmp_path):
    search = structured(tmp_path, kind=WinningSignTrainer, sparsity=None, levels=1, save_strategy="no")
    search.train()
    assert equal(UnitMask.from_pretrained(tmp_path / "signed").units, search.mask.units)


def test_a_spec_of_ones_own_serves_a_model_that_cannot_do_without_labels(tmp_path):
    with pytest.raises(ValueError, match="must run on the inputs"):
        quick(tmp_path / "a", structured=True)
    batch = {"x": Points(8).x, "labels": Points(8).labels}
    with pytest.warns(UserWarning, match="nll_loss"):
        spec = discover(net(), batch)
    search = quick(tmp_path / "b", structured=True, extra={"spec": spec})
    search.train()
    assert isinstance(search.mask, UnitMask) and search.mask.kept_units == 14


def test_a_resume_with_other_groups_is_refused(tmp_path):
    structured(tmp_path, sparsity=None, levels=1, save_strategy="no").train()
    other = structured(tmp_path, sparsity=None, levels=1, save_strategy="no", structured_groups=["first"])
    with pytest.raises(ValueError, match="must have the settings it began with; received structured_groups="):
        other.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scope": "2:4"}, "structured must come with scope=global or uniform, .*; received 2:4"),
        ({"scope": "erk"}, "structured must come with scope=global or uniform, .*; received erk"),
        ({"include": ["first"]}, "include chooses weights, and must be left out with structured; received .*'first'"),
        ({"exclude": ["first"]}, "exclude chooses weights"),
        ({"structured_multiple": 0}, "structured_multiple must be at least 1; received 0"),
        ({"structured": False, "structured_groups": ["a"]}, "structured_groups must come with structured"),
        ({"structured": False, "structured_multiple": 8}, "structured_multiple must come with structured; received 8"),
    ],
)
def test_options_that_contradict_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        LotteryArguments(output_dir=str(tmp_path), use_cpu=True, **{"structured": True, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"structured_multiple": 8}, "multiple"),
        ({"structured_groups": ["nowhere"]}, "nowhere"),
        ({"pruning_fraction": 0.01, "sparsity": None, "levels": 2}, "level 1 must remove units; received .* of 32"),
    ],
)
def test_what_does_not_fit_the_groups_is_refused_before_training(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        structured(tmp_path, **changes)


def test_a_score_whose_evidence_no_module_shows_is_refused(tmp_path):
    class Attention(Classifier):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(20, 4, batch_first=True)
            self.first = nn.Linear(6, 20)

        def forward(self, x, labels=None):
            hidden = self.attention(*[self.first(x)[:, None]] * 3)[0][:, 0]
            logits = self.last(self.second(hidden).relu())
            return {"loss": None if labels is None else nn.functional.cross_entropy(logits, labels), "logits": logits}

    with pytest.raises(ValueError, match="wanda must be given the input norm of every weight; .*structured_groups"):
        structured(tmp_path, model=Attention(), score="wanda")


def test_a_spec_without_structured_is_refused(tmp_path):
    spec = discover(classifier(), {"x": Points(8).x})
    with pytest.raises(ValueError, match="spec must come with structured=True"):
        quick(tmp_path, extra={"spec": spec})


def test_a_stream_must_bring_a_spec(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from (Points()[i] for i in range(48))

    args = arguments(tmp_path, structured=True, max_steps=3, save_strategy="no", sparsity=None, levels=1)
    with pytest.raises(ValueError, match="a training set with a length, .*; received a stream"):
        LotteryTrainer(model=classifier(), args=args, train_dataset=Stream())
    spec = discover(classifier(), {"x": Points(8).x})
    search = LotteryTrainer(model=classifier(), args=args, train_dataset=Stream(), spec=spec)
    search.train()
    assert isinstance(search.mask, UnitMask)


def test_the_settings_of_other_searches_do_not_change(tmp_path):
    search = quick_aws(tmp_path)
    assert not any(name.startswith(("structured", "spec")) for name in search.get_settings())


def test_card_and_inspection_speak_of_units(tmp_path, capsys):
    structured(tmp_path, sparsity=None, levels=1, save_strategy="no").train()
    card = (tmp_path / "ticket/README.md").read_text()
    assert "22 of 32 units in 2 groups stay" in card and "sparsity **31.25%** of the units" in card
    assert "`hf-lottery shrink` cuts the units out" in card and "structured" in card
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "ticket")]) == 0
    assert "22 of 32 kept, in 2 groups" in capsys.readouterr().out
