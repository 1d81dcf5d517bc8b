"""A ticket by value loads by habit, in a process that never heard of this library, and replaces nobody's model."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small_task import Points, arguments, vit
from small_tickets import mask, ticket
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    BertTokenizerFast,
    GPT2Config,
    GPT2LMHeadModel,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_lottery import LotteryTrainer, Mask, MaskFileError, MaskMismatchError, Snapshot, Ticket, prunable
from hf_lottery.hf.hub.reference import Reference
from hf_lottery.hf.tasks.models import load_network

ELSEWHERE = """
import json, sys
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(sys.argv[1])
assert "hf_lottery" not in sys.modules
print(json.dumps({name: int((p == 0).sum()) for name, p in model.named_parameters() if p.ndim > 1}))
"""


def reference():
    return Ticket(mask(), Reference("seed", "0" * 64, seed=1), {}, vit(0).config)


@pytest.mark.slow
def test_another_process_loads_it_masked_without_this_library(tmp_path):
    ticket().save_pretrained(tmp_path / "t")
    run = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "t")]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=tmp_path)
    zeros = json.loads(done.stdout.splitlines()[-1])
    assert {name: zeros[name] for name in mask()} == {name: int((~entry).sum()) for name, entry in mask().items()}


def test_it_loads_from_the_hub_and_the_dense_weights_are_kept(hub):
    made = ticket()
    made.push_to_hub("alice/t")
    loaded = AutoModelForImageClassification.from_pretrained("alice/t")
    assert Mask.from_model(prunable(loaded)) == made.mask
    found = Ticket.from_pretrained("alice/t")
    assert isinstance(found.start, Snapshot) and found.start.sha256() == made.start.sha256()
    network = load_network("alice/t", "image-classification")
    assert Snapshot.capture(network).sha256() == Snapshot.capture(loaded).sha256()


def test_a_ticket_does_not_download_the_model_that_others_load(hub):
    ticket().push_to_hub("alice/t")
    Ticket.from_pretrained("alice/t")
    assert hub.requests(r"GET .*/rewind\.safetensors") and not hub.requests(r"(GET|HEAD) .*/model\.safetensors")


def test_tied_weights_and_half_precision_are_as_they_were(tmp_path):
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 30}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)).bfloat16()
    kept = Mask({name: torch.rand(p.shape) < 0.5 for name, p in prunable(model).items()})
    Ticket.of(model, kept, Snapshot.capture(model, step=3)).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    kept.apply_(model)
    assert loaded.dtype == torch.bfloat16 and loaded.lm_head.weight is loaded.transformer.wte.weight
    assert Snapshot.capture(loaded).sha256() == Snapshot.capture(model).sha256()


def test_a_model_with_a_layer_of_ones_own_has_no_such_file(tmp_path):
    model = vit(0)
    model.more = torch.nn.Linear(2, 2)
    Ticket.of(model, mask(), Snapshot.capture(model)).save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert "ticket.apply_(model)" in (tmp_path / "README.md").read_text()


def test_a_class_of_ones_own_is_never_taken_for_that_of_transformers(tmp_path):
    own = type("ViTForImageClassification", (ViTForImageClassification,), {"__module__": "mine.models"})
    model = own(vit(0).config)
    Ticket.of(model, mask(), Snapshot.capture(model)).save_pretrained(tmp_path)
    found = Ticket.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="received 'ViTForImageClassification' of 'mine'"):
        found.build_model()
    with pytest.raises(MaskMismatchError, match="of mine in the ticket, of transformers here"):
        found.apply_(vit(0))
    found.apply_(own(vit(0).config))
    assert not (tmp_path / "model.safetensors").exists()


def test_a_ticket_replaces_its_own_model_and_no_other(tmp_path):
    ticket(0).save_pretrained(tmp_path / "t")
    ticket(1).save_pretrained(tmp_path / "t")
    assert Mask.from_model(prunable(ViTForImageClassification.from_pretrained(tmp_path / "t"))) == mask(1)
    vit(5).save_pretrained(tmp_path / "model")
    before = load_file(tmp_path / "model/model.safetensors")
    with pytest.raises(FileExistsError, match="a ticket must not replace another model.*Choose another folder"):
        ticket().save_pretrained(tmp_path / "model")
    assert all(torch.equal(a, before[k]) for k, a in load_file(tmp_path / "model/model.safetensors").items())
    Ticket(mask(), ticket().start).save_pretrained(tmp_path / "model")  # which writes neither model nor configuration
    assert (tmp_path / "model/model.safetensors").exists()


@pytest.mark.parametrize("made", [ticket, reference, lambda: replace(ticket(), model_file=False)])
@pytest.mark.parametrize("shards", ["1000TB", "5KB"])
def test_a_model_keeps_its_configuration_and_stays_the_one_that_is_loaded(tmp_path, hub, shards, made):
    vit(5, num_hidden_layers=2).save_pretrained(tmp_path / "model", max_shard_size=shards)
    before = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    with pytest.raises(FileExistsError, match="a ticket must not replace another model nor its config.json"):
        made().save_pretrained(tmp_path / "model")
    assert {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()} == before
    vit(5, num_hidden_layers=2).push_to_hub("alice/model", max_shard_size=shards)
    pushed = hub.repos["alice/model"].files("main")
    with pytest.raises(FileExistsError, match="received alice/model, which holds a model that is not that of a ticket"):
        made().push_to_hub("alice/model")
    assert hub.repos["alice/model"].files("main") == pushed


def test_a_save_that_was_killed_half_way_or_damaged_is_made_again(tmp_path):
    ticket(0).save_pretrained(tmp_path / "t")
    ticket(1).save_pretrained(tmp_path / "new")
    (tmp_path / "new/model.safetensors").replace(tmp_path / "t/model.safetensors")
    ticket(1).save_pretrained(tmp_path / "t")
    (tmp_path / "t/mask_config.json").write_text("{")
    ticket(1).save_pretrained(tmp_path / "t")
    assert Ticket.from_pretrained(tmp_path / "t").mask == mask(1)


def test_files_that_no_ticket_wrote_are_not_taken_for_those_of_a_tokenizer(tmp_path):
    def save(content):
        Ticket(mask(), ticket().start, processing={"package.json": content}).save_pretrained(tmp_path)

    (tmp_path / "package.json").write_text("mine")
    with pytest.raises(FileExistsError, match="a ticket must not replace another tokenizer.*whose package.json is not"):
        save(b"{}")
    assert [file.name for file in tmp_path.iterdir()] == ["package.json"]
    save(b"mine")
    save(b"{}")
    assert Ticket.from_pretrained(tmp_path).processing == {"package.json": b"{}"}


def test_the_model_of_an_earlier_ticket_does_not_stay(tmp_path, hub):
    ticket().save_pretrained(tmp_path / "t")
    reference().save_pretrained(tmp_path / "t")
    assert not (tmp_path / "t/model.safetensors").exists()
    ticket().push_to_hub("alice/t", subfolder="a")
    assert "a/model.safetensors" in hub.repos["alice/t"].files("main")
    reference().push_to_hub("alice/t", subfolder="a")
    assert "a/model.safetensors" not in hub.repos["alice/t"].files("main")


def test_it_is_left_out_where_nobody_asks_for_it(tmp_path):
    replace(ticket(), model_file=False).save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    card = (tmp_path / "README.md").read_text()
    assert "ticket.build_model()" in card and "AutoModel" not in card


def test_a_search_pushes_the_model_of_its_last_level_alone(hub, tmp_path):
    args = arguments(tmp_path, push_to_hub=True, hub_model_id="alice/found", sparsity=0.5, save_strategy="no")
    LotteryTrainer(vit(0, num_labels=2), args, train_dataset=Pictures()).train()
    repo = hub.repos["alice/found"]
    held = ["model.safetensors" in repo.files(repo.refs[f"refs/tags/level-{level:02d}"]) for level in range(3)]
    assert held == [False, False, True]
    loaded = AutoModelForImageClassification.from_pretrained("alice/found")
    assert Mask.from_model(prunable(loaded)) == Mask.from_pretrained("alice/found")


class Pictures(Points):
    def __getitem__(self, i):
        return {"pixel_values": self.x[i][:, None, None].expand(6, 8, 8)[:1], "labels": int(self.labels[i]) % 2}


def test_a_push_replaces_no_other_model(hub):
    vit(5).push_to_hub("alice/model")
    before = hub.repos["alice/model"].files("main")
    with pytest.raises(FileExistsError, match="received alice/model, which holds a model that is not that of a ticket"):
        ticket().push_to_hub("alice/model")
    assert hub.repos["alice/model"].files("main") == before
    mask().push_to_hub("alice/model")
    assert Mask.from_pretrained("alice/model") == mask()


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "words.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good"]))
    return BertTokenizerFast(str(tmp_path / "words.txt"), model_max_length=9)


@pytest.mark.parametrize("kind", ["tokenizer", "image processor"])
def test_tokenizer_or_image_processor_travel_with_it(hub, tokenizer, kind):
    from transformers import AutoImageProcessor, AutoTokenizer

    processor = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.1] * 3)
    thing = tokenizer if kind == "tokenizer" else processor
    model = vit(0)
    made = Ticket.of(model, mask(), Snapshot.capture(model), processing=thing)
    made.push_to_hub("alice/t")
    found = Ticket.from_pretrained("alice/t")
    assert found.processing == made.processing != {}
    found.push_to_hub("alice/again")
    if kind == "tokenizer":
        assert AutoTokenizer.from_pretrained("alice/again")("good")["input_ids"] == tokenizer("good")["input_ids"]
    else:
        assert [*AutoImageProcessor.from_pretrained("alice/again").image_mean] == [0.1] * 3


@pytest.mark.parametrize(
    "name",
    [
        "../up.json",
        "run.py",
        "a/b.json",
        "config.json",
        "mask_config.json",
        "x.bin",
        "model.txt",
        "Config.json",
        "adapter_config.json",
    ],
)
def test_only_settings_travel(tmp_path, name):
    found = Ticket(mask(), ticket().start, {}, None, processing={name: b"{}"})
    with pytest.raises(ValueError, match="processing must hold files of a tokenizer"):
        found.save_pretrained(tmp_path / "t")


def test_no_place_of_this_machine_is_pushed(hub, tmp_path):
    settings = json.dumps({"vocab_file": str(tmp_path), "pad_token": "</s>", "name_or_path": "alice/base"}).encode()
    Ticket(mask(), ticket().start, {}, None, processing={"tokenizer_config.json": settings}).push_to_hub("alice/t")
    pushed = json.loads(hub.repos["alice/t"].files("main")["tokenizer_config.json"])
    assert pushed == {"pad_token": "</s>", "name_or_path": "alice/base"}


def test_a_damaged_or_missing_file_of_a_tokenizer(tmp_path, tokenizer):
    model = vit(0)
    Ticket.of(model, mask(), Snapshot.capture(model), processing=tokenizer).save_pretrained(tmp_path / "t")
    file = tmp_path / "t/tokenizer.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(MaskFileError, match="tokenizer.json must have the sha256 that mask_config.json states"):
        Ticket.from_pretrained(tmp_path / "t")
    file.unlink()
    with pytest.raises(FileNotFoundError, match="the ticket must hold tokenizer.json"):
        Ticket.from_pretrained(tmp_path / "t")
