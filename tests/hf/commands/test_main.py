"""The command line, on folders and on the Hub."""

import json

import pytest
import torch
from small_task import vit

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
    def call(*arguments):
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


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
    assert status == 0 and f"{overlap.iou:.4f}" in last and f"{overlap.chance:.4f}" in last and "no" in last
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
    assert status == 0 and "all zero" in out and "the same structure and class" in out
    status, out, _ = run("verify", tmp_path / "ticket", "--model", tmp_path / "dense")
    assert status == 0 and f"{mask().weights - mask().kept:,} are not zero" in out
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
    assert status == 1 and err.startswith("hf-lottery: ") and err.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["verify", str(tmp_path)])
    (tmp_path / "x").mkdir()
    (tmp_path / "x/config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["os.system"]}))
    mask().save_pretrained(tmp_path / "m")
    status, _, err = run("verify", tmp_path / "m", "--model", tmp_path / "x")
    assert status == 1 and "must be a model of the transformers library" in err
