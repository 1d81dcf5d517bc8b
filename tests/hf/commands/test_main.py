"""The command line, on folders and on the Hub."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_task import vit
from transformers.utils import logging

from hf_lottery import Mask, MaskSeries, SignedMask, Snapshot, Ticket, discover, prunable
from hf_lottery.hf.commands.main import main


def mask(seed=0, keep=0.3):
    generator = torch.Generator().manual_seed(seed)
    return Mask({name: torch.rand(p.shape, generator=generator) < keep for name, p in prunable(vit(0)).items()})


def ticket(**info):
    model = vit(0)
    return Ticket(mask(), Snapshot.capture(model, step=5), {"architecture": type(model).__name__, **info}, model.config)


@pytest.fixture
def run(capsys):
    """Run the command line; return its status and what it printed."""

    def call(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    verbosity = logging.get_verbosity()
    yield call
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def test_inspect_says_what_each_kind_holds(run, tmp_path):
    history = [{"level": 1, "sparsity": 0.2, "metrics": {"eval_accuracy": 0.875}}]
    ticket(level=1, history=history, parents=["abc"]).save_pretrained(tmp_path / "ticket")
    SignedMask.from_model(vit(0), mask()).save_pretrained(tmp_path / "signed")
    MaskSeries([mask(keep=1.1), mask()]).save_pretrained(tmp_path / "series")
    model = vit(0, hidden_dropout_prob=0.0)
    discover(model, {"pixel_values": torch.randn(2, 1, 8, 8)}).random(1).save_pretrained(tmp_path / "moved")
    for kind in ("signed", "series"):
        status, out, _ = run("inspect", tmp_path / kind)
        assert status == 0
        assert "| kind " in out and f"{kind} mask" in out
        assert f"{mask().kept:,}" in out and mask().sha256()[:12] in out
    negative = sum(int((sign < 0).sum()) for sign in SignedMask.from_pretrained(tmp_path / "signed").values())
    assert f"{negative:,}" in run("inspect", tmp_path / "signed")[1]
    assert "| levels " in run("inspect", tmp_path / "series")[1]
    status, out, _ = run("inspect", tmp_path / "ticket")
    assert "ticket, binary mask" in out and "step 5, by value, sha256 " in out
    assert status == 0 and "0.8750" in out and "ViTForImageClassification" in out and "['abc']" in out
    name, sparsity = next(iter(mask().layer_sparsities().items()))
    assert f"{name} " in out and f"{sparsity:.4f}" in out
    status, out, _ = run("inspect", tmp_path / "moved")
    assert status == 0 and out.startswith("Permutation of spec ")


def test_diff_counts_the_overlap(run, tmp_path):
    mask().save_pretrained(tmp_path / "a")
    mask(1).save_pretrained(tmp_path / "b")
    other = Mask({"x": torch.tensor([True, False])})
    other.save_pretrained(tmp_path / "c")
    status, out, _ = run("diff", tmp_path / "a", tmp_path / "b")
    overlap = mask().overlap(mask(1))
    last = out.splitlines()[-1]
    assert status == 1 and f"{overlap.iou:.4f}" in last and f"{overlap.chance:.4f}" in last and "no" in last
    assert "1.0000" in run("diff", tmp_path / "a", tmp_path / "a")[1].splitlines()[-1]
    out = run("diff", tmp_path / "a", tmp_path / "c")[1]
    assert "| x " in out and "[2]" in out and "| all" not in out


def test_verify_finds_differences(run, tmp_path):
    ticket().save_pretrained(tmp_path / "ticket")
    pruned = vit(0)
    ticket().apply_(pruned)
    pruned.save_pretrained(tmp_path / "pruned")
    vit(0).save_pretrained(tmp_path / "dense")
    vit(0, num_labels=7).save_pretrained(tmp_path / "other")
    status, out, _ = run("verify", tmp_path / "ticket", "--model", tmp_path / "pruned")
    assert status == 0 and "all zero" in out and "the same structure, class and configuration" in out
    status, out, _ = run("verify", tmp_path / "ticket", "--model", tmp_path / "dense")
    alive = f"{mask().weights - mask().kept:,} are not zero"
    assert status == 1 and alive in out
    status, out, _ = run("verify", tmp_path / "ticket", "--model", tmp_path / "dense", "--dense-base")
    assert status == 0 and alive in out
    status, out, _ = run("verify", tmp_path / "ticket", "--model", tmp_path / "other")
    assert status == 1 and "'classifier.bias' [2] torch.float32 in the ticket, [7]" in out
    data = bytearray((tmp_path / "ticket/mask.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "ticket/mask.safetensors").write_bytes(bytes(data))
    status, _, err = run("verify", tmp_path / "ticket", "--model", tmp_path / "pruned")
    assert status == 1 and "must have the sha256" in err


def test_pack_adopts_zeros(run, tmp_path):
    model = vit(0)
    mask().apply_(model)
    model.save_pretrained(tmp_path / "model")
    status, out, _ = run("pack", tmp_path / "model", "--output", tmp_path / "mask")
    assert status == 0 and "bytes in" in out
    assert Mask.from_pretrained(tmp_path / "mask") == mask() == Mask.from_checkpoint(tmp_path / "model")
    status, _, _ = run("pack", tmp_path / "model", "--output", tmp_path / "part", "--exclude", "attention")
    assert status == 0 and not any("attention" in name for name in Mask.from_pretrained(tmp_path / "part"))
    vit(0).save_pretrained(tmp_path / "dense")
    status, _, err = run("pack", tmp_path / "dense", "--output", tmp_path / "none")
    assert status == 1 and "must hold pruned weights" in err


def test_repositories_work_everywhere(run, hub, tmp_path):
    ticket().push_to_hub("alice/ticket", tag="v1")
    model = vit(0)
    mask().apply_(model)
    model.push_to_hub("alice/model")
    assert run("inspect", "alice/ticket", "--revision", "v1")[0] == 0
    assert "yes" in run("diff", "alice/ticket", "alice/ticket")[1].splitlines()[-1]
    assert run("verify", "alice/ticket", "--model", "alice/model")[0] == 0
    assert run("pack", "alice/model", "--output", tmp_path / "m")[0] == 0
    assert Mask.from_pretrained(tmp_path / "m") == mask() == Mask.from_checkpoint("alice/model")
    status, _, err = run("inspect", "alice/nothing")
    assert status == 1 and "received 'alice/nothing'" in err


def test_what_is_wrong_is_said_in_one_line(run, tmp_path):
    status, _, err = run("inspect", tmp_path / "nothing")
    assert status == 1 and err.startswith("hf-lottery ") and err.count("\n") == 1
    status, _, err = run("verify")
    assert status == 2 and err == "hf-lottery verify: the following arguments are required: source. See " + (
        "hf-lottery verify --help.\n"
    )
    (tmp_path / "x").mkdir()
    (tmp_path / "x/config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["os.system"]}))
    mask().save_pretrained(tmp_path / "m")
    status, _, err = run("verify", tmp_path / "m", "--model", tmp_path / "x")
    assert status == 1 and "must be a model of the transformers library" in err


def test_one_pruned_weight_that_is_alive_is_enough(run, tmp_path):
    model = vit(0)
    mask().apply_(model)
    name, entry = next(iter(mask().items()))
    with torch.no_grad():
        model.get_parameter(name).view(-1)[int((~entry).flatten().nonzero()[0])] = float("nan")
    model.save_pretrained(tmp_path / "model")
    mask().save_pretrained(tmp_path / "mask")
    status, out, _ = run("verify", tmp_path / "mask", "--model", tmp_path / "model")
    assert status == 1 and "| 1 are not zero" in out


def test_without_a_model_the_files_are_verified(run, tmp_path):
    ticket().save_pretrained(tmp_path / "ticket")
    mask().save_pretrained(tmp_path / "mask")
    status, out, _ = run("verify", tmp_path / "ticket")
    assert status == 0 and "| whole" in out and "not checked: name a model" in out and "Snapshot(step 5" in out
    assert run("verify", tmp_path / "mask")[0] == 0
    status, _, err = run("verify", tmp_path / "ticket", "--dense-base")
    assert status == 2 and "--dense-base must come with --model" in err
    data = bytearray((tmp_path / "ticket/rewind.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "ticket/rewind.safetensors").write_bytes(bytes(data))
    assert run("verify", tmp_path / "ticket")[0] == 1


def hollow(folder):
    """A folder with the configuration of a model, and no weights."""
    vit(0).config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["ViTForImageClassification"]}))


def incomplete(folder):
    vit(0).save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    stored.pop(next(name for name in stored if "classifier" in name))
    save_file(stored, folder / "model.safetensors", {"format": "pt"})


def damaged(folder):
    vit(0).save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"garbage!" * 9)


def pickled(folder):
    hollow(folder)
    torch.save(vit(0).state_dict(), folder / "pytorch_model.bin")


def quantised(folder):
    vit(0).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "torchao"}}))


def resized(folder):
    vit(0).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 7}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder.mkdir(), "must be a folder with a config.json"),
        (lambda folder: folder.write_text("x"), "must be a folder with a config.json|neither"),
        (hollow, "model.safetensors"),
        (incomplete, "must hold every weight; received none for"),
        (damaged, "must fit the ViTForImageClassification of config.json"),
        (pickled, "model.safetensors"),
        (quantised, "received a quantised or compressed one .quantization_config"),
        (resized, "must fit the ViTForImageClassification of config.json"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_line(run, make, message, tmp_path):
    mask().save_pretrained(tmp_path / "mask")
    make(tmp_path / "model")
    status, _, err = run("verify", tmp_path / "mask", "--model", tmp_path / "model")
    assert status == 1 and re.match(f"hf-lottery verify: .*({message})", err) and err.count("\n") == 1


@pytest.mark.parametrize("command", ["inspect", "diff", "verify", "pack"])
@pytest.mark.parametrize("source", ["nothing", "no/such", "empty", "file", "model", "cut", "list"])
def test_every_source_that_is_no_mask_is_one_line(run, command, source, tmp_path):
    path = tmp_path / source if source != "no/such" else source
    if source == "model":
        vit(0).save_pretrained(path)
    elif source == "file":
        path.write_text("x")
    elif source in ("empty", "cut", "list"):
        path.mkdir()
    if source in ("cut", "list"):
        mask().save_pretrained(path)
        text = (path / "mask_config.json").read_text()
        (path / "mask_config.json").write_text(text[:40] if source == "cut" else "[1]")
    more = {"diff": [path], "pack": ["--output", tmp_path / "out"]}.get(command, [])
    status, _, err = run(command, path, *more)
    assert status == 1 and err.startswith("hf-lottery ") and err.count("\n") == 1 and "Errno" not in err


def test_an_output_that_is_a_file_is_refused_before_any_work(run, tmp_path):
    (tmp_path / "file").write_text("kept")
    for output in ("file", "file/below"):
        status, _, err = run("pack", tmp_path / "nothing", "--output", tmp_path / output)
        assert status == 1 and "the output must be a folder" in err and "file is a file" in err
    assert (tmp_path / "file").read_text() == "kept"
