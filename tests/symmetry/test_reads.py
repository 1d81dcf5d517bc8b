"""What a pass does not read of a tensor belongs to the same axes: tables of positions, experts, windows of outputs."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hf_lottery.symmetry.discovery import discover
from hf_lottery.symmetry.permutation import permute_

MOST = 24


def copied(pieces):
    return [piece.clone() for piece in pieces]


READS = {
    "slice": lambda table, n: table[:n],
    "slice from the end": lambda table, n: table[-n:],
    "slice in the middle": lambda table, n: table[1 : n + 1],
    "every other": lambda table, n: table[: 2 * n : 2],
    "narrow": lambda table, n: table.narrow(0, 0, n),
    "rows one by one": lambda table, n: torch.stack([table[i] for i in range(n)]),
    "unbind": lambda table, n: torch.stack(table.unbind(0)[:n]),
    "split, and the rest is not used": lambda table, n: table.split([n, MOST - n])[0],
    "split and copied, and the rest is not used": lambda table, n: copied(table.split([n, MOST - n]))[0],
    "index_select": lambda table, n: table.index_select(0, torch.arange(n)),
    "index": lambda table, n: table[torch.arange(n)],
    "index by a list of one": lambda table, n: torch.cat([table[[i]] for i in range(n)]),
    "mask": lambda table, n: table[torch.arange(MOST) < n],
    "embedding": lambda table, n: F.embedding(torch.arange(n), table),
    "gather": lambda table, n: table.gather(0, torch.arange(n)[:, None].expand(n, table.shape[1])),
    "flip": lambda table, n: table.flip(0)[:n],
    "roll": lambda table, n: table.roll(1, 0)[:n],
    "two slices": lambda table, n: torch.cat([table[: n // 2], table[n : n + n - n // 2]]),
    "crop by padding": lambda table, n: F.pad(table, (0, 0, 0, n - MOST)),
    "crop twice by padding": lambda table, n: F.pad(table, (0, 0, -1, n - MOST + 1)),
    "padding and slice": lambda table, n: F.pad(table, (0, 0, 1, 0))[:n],
    "windows": lambda table, n: table.unfold(0, 3, 1)[:n].sum(-1),
    "transposed": lambda table, n: table.t()[:, :n].t(),
    "a copy": lambda table, n: table.t().contiguous()[:, :n].t(),
    "another view": lambda table, n: table.view(4, MOST // 4, -1)[:, : n // 4].flatten(0, 1),
    "without gradient": lambda table, n: table.detach()[:n],
    "as another dtype": lambda table, n: table.to(torch.float64)[:n].to(table.dtype),
    "joined and cut": lambda table, n: torch.cat([table.new_zeros(1, table.shape[1]), table])[:n],
}


class Reader(nn.Module):
    """Adds a table of positions, of which it reads as many rows as the input is long."""

    def __init__(self, read, buffer=False):
        super().__init__()
        self.read, self.embed = read, nn.Embedding(20, 16)
        if buffer:
            self.register_buffer("table", torch.zeros(MOST, 16))
        else:
            self.table = nn.Parameter(torch.randn(MOST, 16))
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 20)

    def forward(self, ids):
        x = self.embed(ids) + self.read(self.table, ids.shape[1])
        return self.head(x + self.down(torch.relu(self.up(x))))


def ids(length):
    return torch.randint(20, (2, length))


@torch.no_grad()
def change_of(model, spec, inputs):
    """How much a legal permutation of a model changes its output, in float64."""
    model = copy.deepcopy(model).double()
    before = model(inputs)
    permute_(model, spec.random(1))
    return float((model(inputs) - before).abs().max())


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_what_was_not_read_of_a_table_moves_along(read):
    model = Reader(read)
    spec = discover(model, (ids(8),))
    assert ("embed.weight", 1) in spec.members["table[1]"] and len(spec.free) == 2, spec
    assert change_of(model, spec, ids(12)) < 1e-10


def test_a_buffer_whose_values_training_writes():
    model = Reader(READS["slice"], buffer=True)
    spec = discover(model, (ids(8),))
    model.table.normal_()
    assert change_of(model, spec, ids(12)) < 1e-10


class Scores(Reader):
    """Computes the weights of all positions that there may be, and uses as many as there are (Synthesizer)."""

    def __init__(self):
        super().__init__(None)
        self.scores, self.table = nn.Linear(16, MOST), None

    def forward(self, ids):
        x = self.embed(ids)
        x = x + self.scores(x)[..., : ids.shape[1]].softmax(-1) @ x
        return self.head(self.down(torch.relu(self.up(x))))


class Square(Reader):
    """A table with two axes of positions, each of which is cut."""

    def forward(self, ids):
        n, x = ids.shape[1], self.embed(ids)
        return self.head(self.down(torch.relu(self.up(x + self.table[:n, :n] @ x))))


class Experts(Reader):
    """One parameter for all experts, of which only those that a token is sent to are taken."""

    def __init__(self):
        super().__init__(None)
        self.table = nn.Parameter(torch.randn(4, 16, 16))

    def forward(self, ids):
        x, out = self.embed(ids), 0
        for expert in range(1 + ids.shape[1] // 6):
            out = out + torch.relu(x @ self.table[expert])
        return self.head(self.down(torch.relu(self.up(out))))


def test_outputs_for_positions_that_are_not_there_stay_in_order():
    model = Scores()
    spec = discover(model, (ids(8),))
    assert "read in part" in spec.explain("scores.weight")
    assert change_of(model, spec, ids(12)) < 1e-10


def test_a_table_that_is_cut_on_both_axes():
    model = Square(None)
    model.table = nn.Parameter(torch.randn(MOST, MOST))
    spec = discover(model, (ids(8),))
    assert change_of(model, spec, ids(12)) < 1e-10


def test_experts_that_no_token_was_sent_to():
    model = Experts()
    spec = discover(model, (ids(8),))
    assert {("table", 2), ("down.weight", 1)} <= {pair for name in spec.free for pair in spec.members[name]}
    assert change_of(model, spec, ids(23)) < 1e-10


def test_a_tensor_that_is_read_in_all_its_parts_loses_nothing():
    """Half after half is the fused q|k|v, where each block has an order of its own."""

    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.head = nn.Linear(6, 24), nn.Linear(8, 5)

        def forward(self, x):
            w, b = self.qkv.weight, self.qkv.bias
            q, k, v = (F.linear(x, w[at : at + 8], b[at : at + 8]) for at in (0, 8, 16))
            return self.head((q @ k.transpose(1, 2)).softmax(-1) @ v)

    assert len(discover(Fused(), (torch.randn(2, 7, 6),)).free) == 2
