"""The same inputs at other lengths and sizes, and the proof that runs on them."""

import pytest
import torch
from architectures import ARCHITECTURES, TwoLayers
from torch import nn
from torch.nn import functional as F

from hf_lottery.symmetry.discovery import discover
from hf_lottery.symmetry.errors import SymmetryVerificationError
from hf_lottery.symmetry.inputs import other_inputs
from hf_lottery.symmetry.spec import PermutationSpec
from hf_lottery.symmetry.verification import verify


def ids(*shape):
    return torch.randint(5, shape)


SHAPES = {
    "ids": ((ids(2, 8),), [[(1, 12)], [(1, 4)], [(1, 8)]]),
    "ids and masks": (
        (ids(2, 8), ids(2, 8).bool(), torch.zeros(2, 1, 8, 8), torch.randn(2, 8, 16)),
        [[(1, n), (1, n), (1, 1, n, n), (1, n, 16)] for n in (12, 4, 8)],
    ),
    "encoder and decoder": ((ids(2, 8), ids(2, 6)), [[(1, 12), (1, 9)], [(1, 4), (1, 3)], [(1, 8), (1, 6)]]),
    "ids and an image": (
        (ids(2, 8), torch.randn(2, 3, 8, 8)),
        [[(1, n), (1, 3, 8, 8)] for n in (12, 4, 8)],
    ),
    "ids of one text": ((ids(8),), [[(12,)], [(4,)]]),
    "one row": ((ids(1, 8),), [[(1, 12)], [(1, 4)], [(2, 8)]]),
    "embeddings": ((torch.randn(2, 8, 6),), [[(1, 12, 6)], [(1, 4, 6)], [(1, 8, 9)], [(1, 8, 3)], [(1, 8, 6)]]),
    "images": ((torch.randn(2, 3, 8, 8), ids(2)), [[(1, 3, n, n), (1,)] for n in (4, 12, 8)]),
    "images and their masks": (
        (torch.randn(2, 3, 8, 8), torch.ones(2, 8, 8).bool()),
        [[(1, 3, n, n), (1, n, n)] for n in (4, 12, 8)],
    ),
    "rows": ((torch.randn(4, 6),), [[(1, 9)], [(1, 3)], [(1, 6)]]),
    "patches of several images": ((ids(2, 8), torch.randn(9, 5)), [[(2, 12), (9, 5)], [(2, 4), (9, 5)]]),
    "no tensor": ((3,), []),
}


@pytest.mark.parametrize(("inputs", "expected"), SHAPES.values(), ids=SHAPES)
def test_other_lengths(inputs, expected):
    found = [[tuple(tensor.shape) for tensor in others if isinstance(tensor, torch.Tensor)]
             for others in other_inputs(inputs)]  # fmt: skip
    assert found == expected


def test_longer_inputs_repeat_what_is_there():
    longer = next(other_inputs({"ids": torch.tensor([[3, 1, 4], [1, 5, 9]]), "n": 7}))
    assert longer["ids"].tolist() == [[3, 1, 4, 3, 1]] and longer["n"] == 7


class Switch(nn.Module):
    """Reads its weights in another order when the input is longer than eight."""

    def __init__(self, kind=None):
        super().__init__()
        self.embed, self.kind = nn.Embedding(5, 8), kind
        self.up, self.head = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, ids):
        x = self.up(self.embed(ids)).relu()
        if self.kind == "refuses" and ids.shape != (2, 8):
            raise ValueError("another shape")
        if self.kind == "cumulative" and ids.shape[1] > 8:
            x = x.cumsum(-1)
        if self.kind == "not a number" and ids.shape[1] != 8:
            x = x * torch.nan
        return self.head(x)


def test_what_does_not_hold_at_another_length_is_frozen():
    with pytest.warns(UserWarning, match=r"traced on 0 \(2, 8\) and does not hold on 0 \(1, 12\): give longer"):
        spec = discover(Switch("cumulative"), (ids(2, 8),))
    assert list(spec.free) == ["embed.weight[1]"]


def test_verify_finds_it_too_and_names_the_group():
    spec = discover(Switch(), (ids(2, 8),))
    with pytest.raises(SymmetryVerificationError, match=r"by \['up.weight\[0\]'\] on inputs of another length \(0 \(1"):
        verify(spec, Switch("cumulative"), (ids(2, 8),))


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        (None, ["0 (2, 8)", "0 (1, 12)"]),
        ("not a number", ["0 (2, 8)", "0 (1, 8)"]),  # another batch is all that it takes
        ("refuses", ["0 (2, 8)"]),
    ],
)
def test_the_report_says_what_was_proved(kind, inputs):
    model = Switch(kind)
    report = verify(discover(model, (ids(2, 8),)), model, (ids(2, 8),))
    assert report.inputs == inputs and report.error < 1e-10
    assert ("no other length" in repr(report)) == (len(inputs) == 1)


class Grows(TwoLayers):
    """Extends its table of positions when it meets a longer input, and remembers that it did."""

    def __init__(self):
        super().__init__()
        self.embed, self.most = nn.Embedding(5, 6), 8
        self.register_buffer("table", torch.arange(8.0)[:, None].repeat(1, 6), persistent=False)

    def forward(self, ids):
        n = ids.shape[1]
        if n > self.most:
            self.most, self.table = n, torch.arange(float(n), dtype=self.table.dtype)[:, None].repeat(1, 6)
        return super().forward(self.embed(ids) + self.table[:n])


def test_a_model_that_extends_its_tables_is_proved_at_its_length_alone():
    model = Grows()
    report = verify(discover(model, (ids(2, 8),)), model, (ids(2, 8),))
    assert report.inputs == ["0 (2, 8)"] and model.most == 8


@pytest.mark.parametrize(("name", "taken"), [("llama", True), ("bert", True), ("resnet18", True), ("vit", False)])
def test_architectures_at_another_length(name, taken):
    architecture = ARCHITECTURES[name]
    model = architecture.build().eval()
    inputs = architecture.inputs(0)
    report = verify(discover(model, inputs), model, inputs, negative_control=False)
    shapes = [text[text.index("(") :].split(", ", 1)[1] for text in report.inputs]
    assert len(shapes) == 2 and (shapes[0] != shapes[1]) == taken, report.inputs


class Windows(nn.Module):
    """A head that takes only inputs of a multiple of four, as patches do."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 5)

    def forward(self, x):
        assert x.shape[-1] % 4 == 0
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


def test_images_of_half_the_size():
    spec = discover(Windows(), (torch.randn(2, 3, 8, 8),))
    assert isinstance(spec, PermutationSpec)
    assert verify(spec, Windows(), (torch.randn(2, 3, 8, 8),)).inputs == ["0 (2, 3, 8, 8)", "0 (1, 3, 4, 4)"]
