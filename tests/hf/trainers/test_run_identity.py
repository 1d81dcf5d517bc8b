"""A run goes on only from the model, the initial weights and the data that it began with."""

import json
from functools import partial

import pytest
import torch
from datasets import Dataset
from small_searches import Images, quick, state
from small_task import Killed, Net, Points, arguments, net, vit
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
    set_seed,
)

from hf_lottery import LotteryTrainer, Snapshot, WinningSignTrainer, magnitude
from hf_lottery.hf.trainers.run_folder import RunFolder
from hf_lottery.hf.trainers.run_identity import hash_weights, identify_model
from hf_lottery.hf.trainers.search_tickets import last_ticket


class Flipped(Points):
    def __init__(self, n=48, *, at=-1):
        super().__init__(n)
        self.labels[at] = (self.labels[at] + 1) % 3


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([Points()[i] for i in range(48)])


class Noisy(Points):
    """An augmentation that draws from torch's generator."""

    def __getitem__(self, i):
        return {**super().__getitem__(i), "x": self.x[i] + 0.1 * torch.randn(6)}


def points(**changes):
    data = Points()
    return Dataset.from_dict({"x": data.x.tolist(), "labels": data.labels.tolist(), **changes})


def search(folder, *, model=None, data=None, held_out=None, kind=LotteryTrainer, extra=None, **changes):
    """A search of two levels of three steps."""
    settings = {"num_train_epochs": 1, "sparsity": None, "levels": 1, "save_strategy": "no", **changes}
    return kind(
        model=model or net(),
        args=arguments(folder, **settings),
        train_dataset=data or Points(),
        eval_dataset=held_out,
        **(extra or {}),
    )


def dropout(p):
    model = net()
    model.dropout = nn.Dropout(p)
    return model


def sixteen_bit():
    return net().double()


class Other(Net):
    pass


def other_class():
    torch.manual_seed(1)
    return Other()


def buffer_changed():
    model = net()
    model.norm.running_mean += 1e-3
    return model


def last_weight_changed():
    model = net()
    with torch.no_grad():
        model.outer.bias[-1] += 1e-6
    return model


@pytest.mark.parametrize(
    ("other", "part", "words"),
    [
        (partial(net, 7), "weights", "received other values of 'inner.bias' and 3 more"),
        (buffer_changed, "weights", "received other values of 'norm.running_mean'"),
        (last_weight_changed, "weights", "received other values of 'outer.bias'"),
        (sixteen_bit, "weights", "received other values of 'inner.bias'"),
        (partial(dropout, 0.5), "model", "received other layers"),
        (other_class, "model", "received class='Other' instead of 'Net'"),
    ],
    ids=["seed", "buffer", "one number", "dtype", "dropout", "class"],
)
def test_another_model_or_other_weights_are_refused(tmp_path, other, part, words):
    search(tmp_path).train()
    before = (tmp_path / "lottery_state.json").read_bytes()
    with pytest.raises(ValueError, match=f"{words}.*list {part} in resume_with_other; or choose another output_dir"):
        search(tmp_path, model=other()).train(resume_from_checkpoint=True)
    assert (tmp_path / "lottery_state.json").read_bytes() == before
    search(tmp_path).train(resume_from_checkpoint=True)


def test_a_configuration_is_compared_key_by_key(tmp_path):
    def run(**changes):
        return search(tmp_path, model=vit(1, **changes), data=Images())

    run().train()
    with pytest.raises(ValueError, match="must have the model.*received hidden_dropout_prob=0.5 instead of"):
        run(hidden_dropout_prob=0.5).train(resume_from_checkpoint=True)
    used = run()
    used.network.config.problem_type = "single_label_classification"  # as its first forward pass sets it
    used.train(resume_from_checkpoint=True)


def test_special_tokens_that_train_takes_from_the_tokenizer_are_no_difference(tmp_path):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1, "a": 2})), pad_token="<pad>", eos_token="<eos>"
    )

    def run(**changes):
        set_seed(1)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2, n_positions=8, **changes))
        data = Dataset.from_dict({"input_ids": [[2, 2, 2]] * 48, "labels": [[2, 2, 2]] * 48})
        return search(tmp_path, model=model, data=data, extra={"processing_class": tokenizer})

    ours = run()
    ours.train()
    assert ours.network.config.eos_token_id == 1
    ours.train(resume_from_checkpoint=True)
    run(eos_token_id=1).train(resume_from_checkpoint=True)
    ours.ticket.apply_(run().network)
    with pytest.raises(ValueError, match="received bos_token_id=3 instead of"):
        run(bos_token_id=3).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("data", "other", "words"),
    [
        (Points, Flipped, "train_dataset of class Flipped instead of Points"),
        (Flipped, partial(Flipped, at=0), "train_dataset with other samples"),
        (Points, partial(Points, 32), "train_dataset of length 32 instead of 48"),
        (points, lambda: points(labels=Flipped(at=5).labels.tolist()), "train_dataset with another fingerprint"),
        (points, lambda: points().shuffle(seed=1), "train_dataset with another fingerprint"),
        (Points, Noisy, "train_dataset of class Noisy instead of Points"),
    ],
    ids=["class", "samples", "length", "labels of a Dataset", "order of a Dataset", "augmentation"],
)
def test_other_data_are_refused(tmp_path, data, other, words):
    search(tmp_path, data=data()).train()
    with pytest.raises(ValueError, match=f"must have the data that it began with; received {words}"):
        search(tmp_path, data=other()).train(resume_from_checkpoint=True)
    search(tmp_path, data=data()).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("part", "other"),
    [("model", {"model": dropout(0.5)}), ("weights", {"model": net(7)}), ("data", {"data": Points(32)})],
)
def test_what_may_differ_is_listed_and_said(tmp_path, caplog, part, other):
    search(tmp_path).train()
    whole = search(tmp_path)
    whole.train(resume_from_checkpoint=True)
    for allowed in ([], [name for name in ("model", "weights", "data") if name != part]):
        with pytest.raises(ValueError, match=f"list {part} in resume_with_other"):
            search(tmp_path, **other, resume_with_other=allowed).train(resume_from_checkpoint=True)
    again = search(tmp_path, **other, resume_with_other=[part])
    again.train(resume_from_checkpoint=True)
    assert again.mask == whole.mask
    assert "goes on with another start, as resume_with_other asks" in caplog.text
    with pytest.raises(ValueError, match="resume_with_other must be among model, weights, data; received 'seed'"):
        search(tmp_path, resume_with_other=["seed"])


@pytest.mark.parametrize(("kind", "why"), [(Stream, "it is a stream"), (Noisy, "its samples differ at every read")])
def test_data_that_cannot_be_compared_are_named_once(tmp_path, caplog, kind, why):
    search(tmp_path, data=kind(), max_steps=3).train()
    said = f"will not notice another train_dataset, because {why}"
    assert caplog.text.count(said) == 1
    recorded = json.loads((tmp_path / "lottery_state.json").read_text())["began_from"]["data"]["train_dataset"]
    assert recorded["unknown"] == why
    search(tmp_path, data=kind(), max_steps=3).train(resume_from_checkpoint=True)
    assert caplog.text.count(said) == 1


def test_evaluation_data_count_where_they_decide_or_are_given_twice(tmp_path):
    search(tmp_path / "a", held_out=Points(20)).train()
    with pytest.raises(ValueError, match="received eval_dataset of length 16 instead of 20"):
        search(tmp_path / "a", held_out=Points(16)).train(resume_from_checkpoint=True)
    search(tmp_path / "a").train(resume_from_checkpoint=True)
    best = {"load_best_model_at_end": True, "save_strategy": "epoch", "eval_strategy": "epoch"}
    search(tmp_path / "b", held_out={"x": Points(20), "y": Points(8)}, metric_for_best_model="x_loss", **best).train()
    again = {"held_out": {"x": Points(20)}, "metric_for_best_model": "x_loss", **best}
    with pytest.raises(ValueError, match="received eval_dataset y none instead of given"):
        search(tmp_path / "b", **again).train(resume_from_checkpoint=True)


def test_a_run_of_an_older_version_says_nothing_of_its_start(tmp_path):
    search(tmp_path).train()
    file = tmp_path / "lottery_state.json"
    stored = json.loads(file.read_text())
    for name in ("began_from", "format_version", "text_sha256"):
        del stored[name]
    file.write_text(json.dumps(stored))
    with pytest.raises(
        ValueError, match="must have the model that it began with; received class='Net' instead of None"
    ):
        search(tmp_path).train(resume_from_checkpoint=True)
    search(tmp_path, resume_with_other=["model", "weights", "data"]).train(resume_from_checkpoint=True)


class KillOnce(TrainerCallback):
    def __init__(self):
        self.done = False

    def on_step_end(self, args, state, control, **kwargs):
        if args.output_dir.endswith("level-01") and state.global_step == 2 and not self.done:
            self.done = True
            raise Killed


def test_the_same_trainer_goes_on_after_an_interruption(tmp_path):
    """Its model holds half-trained weights by then; a new Trainer of that model is refused."""
    whole = search(tmp_path / "whole")
    whole.train()
    ours = search(tmp_path / "run")
    ours.add_callback(KillOnce())
    with pytest.raises(Killed):
        ours.train()
    with pytest.raises(ValueError, match="other values of"):
        search(tmp_path / "run", model=ours.network).train(resume_from_checkpoint=True)
    ours.train(resume_from_checkpoint=True)
    assert ours.mask == whole.mask
    assert all(torch.equal(a, b) for a, b in zip(state(ours.model).values(), state(whole.model).values(), strict=True))


def test_a_trainer_that_moves_to_another_folder_begins_from_the_weights_it_has(tmp_path):
    ours = search(tmp_path / "a")
    ours.train()
    ours.args.output_dir = str(tmp_path / "b")
    ours.train()
    with pytest.raises(ValueError, match="other values of"):
        search(tmp_path / "b").train(resume_from_checkpoint=True)


def test_a_search_for_signs_does_not_go_on_from_another_kind_of_search(tmp_path):
    quick(tmp_path, rewind="learning_rate").train()
    with pytest.raises(ValueError, match="received norm_interpolation='step' instead of None"):
        quick(tmp_path, kind=WinningSignTrainer).train(resume_from_checkpoint=True)


def scaled(weight, evidence, *, by):
    return by * weight.abs()


@pytest.mark.parametrize(
    ("given", "other", "words"),
    [
        ({"score": partial(scaled, by=1)}, {"score": partial(scaled, by=2)}, r"score='scaled\(by=2\)' instead of"),
        ({}, {"data_collator": DataCollatorWithPadding(None, padding=False)}, 'data_collator="DataCollatorWithPadding'),
        ({}, {"compute_loss_func": magnitude}, "compute_loss_func='magnitude' instead of None"),
        (
            {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})},
            {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.2})},
            r"optimizer='SGD\(lr=0.2\)' instead of 'SGD\(lr=0.1\)'",
        ),
    ],
    ids=["score", "collator", "loss", "optimizer"],
)
def test_what_the_trainer_was_given_is_compared_too(tmp_path, given, other, words):
    search(tmp_path, extra=given).train()
    with pytest.raises(ValueError, match=words):
        search(tmp_path, extra=given | other).train(resume_from_checkpoint=True)
    search(tmp_path, extra=given).train(resume_from_checkpoint=True)


def test_the_way_batches_are_made_is_a_setting(tmp_path):
    search(tmp_path).train()
    with pytest.raises(ValueError, match="received accelerator_config="):
        search(tmp_path, accelerator_config={"use_seedable_sampler": False}).train(resume_from_checkpoint=True)


def test_weights_are_hashed_by_the_main_process_alone():
    assert hash_weights(net(), main=False) == {}
    assert hash_weights(net(), main=True) == hash_weights(net(), main=True) != hash_weights(net(2), main=True)


@pytest.mark.parametrize("make", [net, vit])
def test_a_compiled_model_is_known_by_its_own_class(make):
    model = make(0)
    assert identify_model(torch.compile(model, backend="eager")) == identify_model(model)


def test_the_ticket_of_a_compiled_model_names_its_own_class(tmp_path):
    ours = search(tmp_path)
    ours.train()
    start, levels = Snapshot.capture(ours.network), list(ours.history)
    ours.model = torch.compile(ours.network, backend="eager")
    run = RunFolder(tmp_path, ours.get_settings(), resume=True)
    ticket = last_ticket(run, ours, start, settings={}, history=levels, about={})
    assert ticket.info["architecture"] == "Net"
