import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_lottery import MaskFileError, MaskMismatchError, Snapshot, rewind
from hf_lottery.training.rewind import parse_rewind
from hf_lottery.training.snapshot import save_snapshot


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
    before, snapshot = state(model), Snapshot.capture(model, step=7)
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


STORED = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool, torch.float8_e4m3fn,
    torch.float8_e5m2,
]  # fmt: skip


def test_every_type_and_shape_is_read_by_safetensors(tmp_path):
    ones = {f"{dtype}": torch.ones(24, dtype=torch.uint8).view(dtype) for dtype in STORED}
    shapes = {
        "empty": torch.empty(0, 3), "no axes": torch.tensor(2.5), "turned": torch.arange(6.0).view(2, 3).t(),
        "ä": torch.ones(3, dtype=torch.int8), "trained": nn.Parameter(torch.ones(2)),
        "conjugate": torch.full((2,), 1j, dtype=torch.complex64).conj(), "half": torch.arange(8.0)[::2],
    }  # fmt: skip
    tensors = {**ones, **shapes}
    Snapshot(3, tensors).save(tmp_path / "file")
    read, ours = load_file(tmp_path / "file"), Snapshot.load(tmp_path / "file")
    assert ours.step == 3 and read.keys() == ours.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = tensor.detach().resolve_conj().contiguous()
        for found in (read[name], ours.tensors[name]):
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(found.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8))


def test_every_number_lies_at_a_multiple_of_its_size(tmp_path):
    tensors = {"b": torch.ones(3, dtype=torch.bool), "a": torch.ones(1, dtype=torch.int8), "c": torch.ones(5).double()}
    Snapshot(0, {**tensors, "d": torch.ones(3).half()}).save(tmp_path / "file")
    data = (tmp_path / "file").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0 and sorted(header) == ["__metadata__", "a", "b", "c", "d"]
    sizes = {"F64": 8, "F16": 2, "I8": 1, "BOOL": 1}
    assert not any(header[name]["data_offsets"][0] % sizes[header[name]["dtype"]] for name in "abcd")


def test_other_types_are_refused_and_leave_no_file(tmp_path):
    odd = {"a": torch.ones(2), "b": torch.zeros(1, dtype=torch.complex128)}
    with pytest.raises(TypeError, match="'b' must be of a type that safetensors stores; received torch.complex128"):
        Snapshot(0, odd).save(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    save_snapshot(nn.Linear(3, 2), path, step=5)
    before = path.read_bytes()
    monkeypatch.setattr(
        "hf_lottery.training.snapshot.whole", lambda tensor: tensor.detach() if tensor.ndim == 1 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        save_snapshot(nn.Linear(3, 2), path, step=6)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert Snapshot.load(path).step == 5


def test_the_hash_tells_name_dtype_shape_and_value_apart():
    zeros = torch.zeros(2, 3)
    versions = [{"a": zeros}, {"b": zeros}, {"a": zeros.int()}, {"a": zeros.view(3, 2)}, {"a": zeros + 1}]
    assert len({Snapshot(0, tensors).sha256() for tensors in versions}) == len(versions)
    assert Snapshot(0, {"a": zeros, "b": zeros}).sha256() == Snapshot(5, {"b": zeros, "a": zeros}).sha256()


def test_another_model_is_refused_and_unchanged():
    snapshot = Snapshot.capture(nn.Linear(3, 2))
    cases = [
        (nn.Linear(4, 2), r"'weight' must have .* \[2, 3\] and .*; received \[2, 4\] and"),
        (nn.Linear(3, 2, bias=False), "only one has 'bias'"),
        (nn.BatchNorm1d(2), "only one has 'num_batches_tracked'"),
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
    assert rewind.step(0).in_steps() == rewind.init.in_steps() == rewind.pretrained.in_steps(steps_per_epoch=10) == 0
    assert rewind.step(3).in_steps() == rewind.step(3).in_steps(steps_per_epoch=10) == 3
    assert [one.keeps_weights for one in (rewind.init, rewind.learning_rate, rewind.none)] == [False, True, True]


def test_epochs_need_steps_per_epoch():
    assert rewind.epoch(3).in_steps(steps_per_epoch=10) == 30
    with pytest.raises(ValueError, match="epoch:3 must be given in steps here"):
        rewind.epoch(3).in_steps()


def test_another_dtype_is_refused():
    with pytest.raises(MaskMismatchError, match=r"float32; received \[2, 3\] and torch.bfloat16"):
        Snapshot.capture(nn.Linear(3, 2)).restore_(nn.Linear(3, 2).to(torch.bfloat16))


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta:UserWarning")
@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_coo])
def test_sparse_layouts_are_refused_whatever_they_are_stored_as(layout, tmp_path):
    for model, name in ((nn.Linear(3, 2), "weight"), (Net(), "table")):
        if name == "weight":
            model.weight = nn.Parameter(torch.eye(2, 3).to_sparse(layout=layout))
        else:
            model.table = torch.eye(3).to_sparse(layout=layout)
        for capture in (Snapshot.capture, lambda model: save_snapshot(model, tmp_path / "rewind.safetensors")):
            with pytest.raises(ValueError, match=f"received '{name}' in the layout {layout}. Put {name}.to_dense"):
                capture(model)
