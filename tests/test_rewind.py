import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hf_lottery import MaskFileError, MaskMismatchError, Snapshot, parse_rewind, rewind


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("table", torch.randn(3), persistent=False)

    def forward(self, x):
        return self.norm(self.conv(x)) + self.table.sum()


def state(model):
    return {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def disturb(model):
    model(torch.randn(4, 1, 5, 5)).sum().backward()
    with torch.no_grad():
        for tensor in (*model.parameters(), model.table):
            tensor.add_(torch.randn_like(tensor))


def test_restore_is_bit_exact_with_buffers(tmp_path):
    model = Net()
    disturb(model)  # moves the running statistics too
    before, snapshot = state(model), Snapshot.capture(model, 7)
    snapshot.save(tmp_path / "new/rewind.safetensors")
    disturb(model)
    assert any(not torch.equal(a, b) for a, b in zip(before.values(), state(model).values(), strict=True))
    loaded = Snapshot.load(tmp_path / "new/rewind.safetensors")
    assert loaded.step == 7 and loaded.sha256() == snapshot.sha256()
    for source in (snapshot, loaded):
        disturb(model)
        source.restore_(model)
        after = state(model)
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_snapshot_is_a_copy():
    model = Net()
    snapshot = Snapshot.capture(model)
    digest = snapshot.sha256()
    disturb(model)
    assert snapshot.sha256() == digest != Snapshot.capture(model).sha256()


def test_a_wrapped_model_has_the_same_snapshot():
    model = Net()
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        assert Snapshot.capture(wrapped).sha256() == Snapshot.capture(model).sha256()


def test_a_channels_last_model_can_be_saved(tmp_path):
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    Snapshot.capture(model).save(tmp_path / "file")
    assert torch.equal(Snapshot.load(tmp_path / "file").tensors["weight"], model.weight)


def test_the_hash_tells_name_dtype_shape_and_value_apart():
    zeros = torch.zeros(2, 3)
    versions = [{"a": zeros}, {"b": zeros}, {"a": zeros.int()}, {"a": zeros.view(3, 2)}, {"a": zeros + 1}]
    assert len({Snapshot(0, tensors).sha256() for tensors in versions}) == len(versions)
    assert Snapshot(0, {"a": zeros, "b": zeros}).sha256() == Snapshot(5, {"b": zeros, "a": zeros}).sha256()


def test_another_model_is_refused_and_unchanged():
    snapshot = Snapshot.capture(nn.Linear(3, 2))
    cases = [
        (nn.Linear(4, 2), r"'weight' must have .* \[2, 3\] and .*; received \[2, 4\] and"),
        (nn.Linear(3, 2, bias=False), "'bias' is in one only"),
        (nn.BatchNorm1d(2), "'num_batches_tracked' is in one only"),
    ]
    for other, message in cases:
        before = state(other)
        with pytest.raises(MaskMismatchError, match=message):
            snapshot.restore_(other)
        assert all(torch.equal(before[name], tensor) for name, tensor in state(other).items())


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="rewind weights must be in"):
        Snapshot.load(tmp_path / "none")
    path = tmp_path / "rewind.safetensors"
    Snapshot.capture(Net()).save(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(MaskFileError, match="must be a whole safetensors file"):
        Snapshot.load(path)
    for metadata in (None, {"step": "-1"}):
        save_file({"a": torch.zeros(1)}, path, metadata)
        with pytest.raises(MaskFileError, match="must state the step it was captured at; received"):
            Snapshot.load(path)


def test_parse_rewind_reads_what_str_writes():
    for one in (rewind.init, rewind.pretrained, rewind.learning_rate, rewind.none, rewind.step(5), rewind.epoch(2)):
        assert parse_rewind(str(one)) == one


@pytest.mark.parametrize("text", ["", "step", "step:", "step:-1", "step:1.5", "init:3", "late", "epoch:two"])
def test_parse_rewind_refuses(text):
    with pytest.raises(ValueError, match=rf"rewind must be init, step:K.*received '{text}'"):
        parse_rewind(text)


@pytest.mark.parametrize("k", [-1, 1.5, True])
def test_bad_steps(k):
    with pytest.raises(ValueError, match=f"step to rewind to must be a whole number, 0 or more; received {k}"):
        rewind.step(k)
    with pytest.raises(ValueError, match=f"epoch to rewind to must be a whole number, 0 or more; received {k}"):
        rewind.epoch(k)


def test_moments_in_steps():
    assert rewind.step(0).in_steps() == rewind.init.in_steps() == rewind.pretrained.in_steps(10) == 0
    assert rewind.step(3).in_steps() == rewind.step(3).in_steps(10) == 3
    assert [one.keeps_weights for one in (rewind.init, rewind.learning_rate, rewind.none)] == [False, True, True]


def test_epochs_need_steps_per_epoch():
    assert rewind.epoch(3).in_steps(10) == 30
    with pytest.raises(ValueError, match="epoch:3 must be given in steps here"):
        rewind.epoch(3).in_steps()


def test_another_dtype_is_refused():
    with pytest.raises(MaskMismatchError, match=r"float32; received \[2, 3\] and torch.bfloat16"):
        Snapshot.capture(nn.Linear(3, 2)).restore_(nn.Linear(3, 2).to(torch.bfloat16))
