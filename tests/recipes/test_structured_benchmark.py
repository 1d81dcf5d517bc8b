"""The benchmark of small networks: what fails is a row, what is compared is of one size, time is limited."""

import importlib
import json
import sys
import time

import pytest
import torch
from recipe_runs import ROOT
from torch import nn


@pytest.fixture
def benchmark(monkeypatch):
    """The module structured.py, as its own folder sees it."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes" / "benchmarks"))
    return importlib.import_module("structured")


class Broken(nn.Module):
    def forward(self, input):
        raise RuntimeError("no | kernel\nmore lines")


def test_ways_that_fail_are_rows_and_the_others_are_measured(benchmark):
    ways = {
        "dense": benchmark.Way(nn.Linear(4, 4)),
        "none": benchmark.Way(failure="never made"),
        "broken": benchmark.Way(Broken()),
    }
    rows = benchmark.measure(("net", "eager", 2), ways, {"input": torch.ones(2, 4)}, benchmark.Options(seconds=0))
    dense, none, broken = (row.cells() for row in rows)
    assert all(len(cells) == len(benchmark.HEADER) for cells in (dense, none, broken))
    assert dense[-2] == "1.00 / 1.00 / 1.00 / 1.00" and dense[-3].count("/") == 3
    assert none[-3:] == ["never made", "-", "-"] and broken[-3:] == ["RuntimeError: no / kernel", "-", "-"]


def test_nothing_new_is_measured_after_the_limit(benchmark):
    options = benchmark.Options(until=time.perf_counter() - 1)
    assert "limit of time" in benchmark.made(lambda: nn.Linear(4, 4), {}, options).failure
    ways = {"dense": benchmark.Way(nn.Linear(4, 4))}
    (row,) = benchmark.measure(("net", "eager", 2), ways, {"input": torch.ones(2, 4)}, options)
    assert row.failure == "not reached within the limit of time" and not row.seconds


def test_half_of_heads_and_feed_forward_units_and_as_many_weights_under_the_mask(benchmark, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    ways = benchmark.ways_of("bert-base", benchmark.Options(quick=True))
    dense, small, mask = (dict(ways[name].model.named_parameters()) for name in ("dense", "small", "mask"))
    layer = "bert.encoder.layer.3."
    assert small[f"{layer}attention.self.key.weight"].shape == (128, 256)
    assert small[f"{layer}output.dense.weight"].shape == (256, 512)
    assert small["bert.pooler.dense.weight"].shape == dense["bert.pooler.dense.weight"].shape
    lost = sum(weight.numel() - small[name].numel() for name, weight in dense.items() if weight.ndim == 2)
    covered = [weight for name, weight in mask.items() if weight.ndim == 2 and "embeddings" not in name]
    assert sum(int((weight == 0).sum()) for weight in covered) == lost
    assert ways["small"].flops < 0.6 * ways["dense"].flops == 0.6 * ways["mask"].flops
    assert ways["small"].bytes - 4 * ways["small"].parameters == ways["dense"].bytes - 4 * ways["dense"].parameters
    assert ways["Torch-Pruning"].failure.startswith("ModuleNotFoundError")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vit-b"])
def test_other_networks_are_cut_to_the_size_that_the_options_ask_for(benchmark, name):
    ways = benchmark.ways_of(name, benchmark.Options(quick=True, peer=False))
    assert not [way.failure for way in ways.values() if way.failure]
    share = ways["small"].parameters / ways["dense"].parameters
    assert 0.24 < share < 0.27 if name == "resnet18" else 0.5 < share < 0.52


def test_2_of_4_is_refused_in_its_row_where_there_is_no_gpu_for_it(benchmark, monkeypatch, tmp_path, capsys):
    output = tmp_path / "numbers.json"
    command = ["structured.py", "--quick", "--only", "n_of_m", "--batch_sizes", "1", "--output", str(output)]
    monkeypatch.setattr("sys.argv", command)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    benchmark.main()
    rows = json.loads(output.read_text())["rows"]
    assert [row["name"] for row in rows] == ["dense", "2:4", "half of the units"]
    assert "must be on a CUDA device" in rows[1]["failure"] and not rows[1]["seconds"]
    assert all(len(row["seconds"]) >= benchmark.FEWEST == len(row["base"]) for row in (rows[0], rows[2]))
    assert "must be on a CUDA device" in capsys.readouterr().out
