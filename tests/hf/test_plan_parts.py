"""The parts of a plan: sizes of files, moments of levels, units."""

import io

import pytest
import torch
from safetensors.torch import save
from small_task import arguments

from hf_lottery.hf.plan.files import compressed_bits, json_file, tensors_file, torch_file
from hf_lottery.hf.plan.levels import LevelPlan
from hf_lottery.hf.plan.memory import MemoryPlan
from hf_lottery.hf.plan.search import size_text, time_text


def test_sizes_of_files_are_those_of_real_ones():
    tensors = {"a": torch.randn(30, 20), "b.long.name": torch.zeros(7, dtype=torch.bfloat16), "c": torch.tensor(1)}
    meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
    assert tensors_file(meta) == pytest.approx(len(save(tensors, {"format": "pt"})), abs=16)
    assert json_file({"a": [1, 2]}) == len('{\n  "a": [\n    1,\n    2\n  ]\n}\n')
    for many in (tensors, {str(i): torch.randn(40) for i in range(200)}):
        file = io.BytesIO()
        torch.save({"state": many, "text": "x"}, file)
        virtual = {"state": {name: tensor.to("meta") for name, tensor in many.items()}, "text": "x"}
        assert torch_file(virtual) == pytest.approx(len(file.getvalue()), rel=0.1, abs=100)


def test_compressed_bits():
    assert compressed_bits(1000, 1.0) == compressed_bits(1000, 0.0) == compressed_bits(0, 0.5) == 0
    assert compressed_bits(8 * 10**6, 0.5) == pytest.approx(10**6, rel=0.01)
    assert compressed_bits(8 * 10**6, 0.8) < 0.85 * 10**6
    assert compressed_bits(10**6, 0.01) < 0.2 * 10**6 / 8


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"save_steps": 4}, [4, 8, 10]),
        ({"save_steps": 5}, [5, 10]),
        ({"save_steps": 0.25}, [3, 6, 9, 10]),
        ({"save_strategy": "epoch"}, [3, 6, 9, 10]),
        ({"save_strategy": "no"}, []),
        ({"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 4}, [4, 8, 10]),
    ],
)
def test_when_checkpoints_are_saved(tmp_path, changes, steps):
    args = arguments(tmp_path, **changes)
    assert LevelPlan(1, 0.5, steps=10, steps_per_epoch=3).checkpoint_steps(args) == steps


def test_when_the_trainer_logs(tmp_path):
    level = LevelPlan(1, 0.5, steps=10, steps_per_epoch=4)
    assert level.log_steps(arguments(tmp_path, logging_steps=4)) == [4, 8]
    assert level.log_steps(arguments(tmp_path, logging_strategy="epoch")) == [4, 8, 10]
    assert level.evaluation_steps(arguments(tmp_path)) == []


def test_units():
    assert [size_text(n) for n in (0, 999, 1000, 50_754_891, 2.5e12, 4e16)] == [
        "0 B", "999 B", "1 kB", "50.8 MB", "2.5 TB", "4e+04 TB",
    ]  # fmt: skip
    assert [time_text(n) for n in (0.04, 119, 120, 9000, 86400 * 3)] == [
        "0.0 seconds", "119.0 seconds", "2.0 minutes", "2.5 hours", "3.0 days",
    ]  # fmt: skip
    assert MemoryPlan(1, 1, 1, 0, 0, None, 0, shards=2).per_process == 2
