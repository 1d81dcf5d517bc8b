"""Searches on several processes, sharded (FSDP2) and not: the same ticket as on one, also when they change midway.

accelerate shards on accelerators only, so FSDP2 is emulated here: torch's own, over gloo.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
HERE = Path(__file__).parents[2] / "support"
FULL, SHARDED = {"layout": "FULL_STATE_DICT"}, {"layout": "SHARDED_STATE_DICT"}
AWS = {"kind": "WinningSignTrainer", "gradient_accumulation_steps": 2, "per_device_train_batch_size": 8}
AWS |= {"eval_strategy": "steps", "eval_steps": 1}


def launch(folder, processes, settings):
    """Run the search of sharded_processes.py; what each process ended with, or None if it was stopped."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    many = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    start = [*many, "--main_process_port", str(port)] if processes > 1 else []
    command = [sys.executable, *start, str(HERE / "sharded_processes.py"), str(folder), json.dumps(settings)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": f"{HERE}:{HERE.parent.parent}"}
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed is given back, so that memory can be compared
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    if "stop" in settings:
        assert result.returncode != 0 and not (folder / "rank-0.json").exists()
        return None
    assert result.returncode == 0, result.stderr[-3000:]
    found = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(processes)]
    for rank in found:
        assert rank["leak"] == 0 and rank["shares"] == ([1.0] if "layout" not in settings else [1 / processes])
        own = dict.fromkeys(("leak", "bytes_a_weight"))
        assert rank | own == found[0] | own
    return found[0]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The search on one process, with the batch of two in two halves."""
    return launch(tmp_path_factory.mktemp("one"), 1, {"gradient_accumulation_steps": 2})


def on_one(folder, settings):
    """The same search on one process, whose weights are whole; it makes two micro-batches of the batch of two."""
    return launch(
        folder, 1, settings | {"gradient_accumulation_steps": 2 * settings.get("gradient_accumulation_steps", 1)}
    )


def same_ticket(found, expected, *, but=None):
    """Check that both found the same ticket, except for the entry ``but``."""
    for what in {"mask", "ticket", "sparsities", "architecture"} - {but}:
        assert found[what] == expected[what], what
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    assert found["flips"] == pytest.approx(expected["flips"], abs=1e-4)


@pytest.mark.parametrize("layout", [{}, FULL, SHARDED], ids=["data parallel", "full", "sharded"])
def test_two_processes_find_the_ticket_of_one(tmp_path, one, layout):
    found = launch(tmp_path / "two", 2, layout)
    same_ticket(found, one)
    if layout:
        assert "must have the initial weights that it began with; received other values of" in found["other"]
        assert "must be resumed with a model that is not sharded yet; received DTensors" in found["again"]
    assert list(tmp_path.glob("two/run/level-*/trained/model.safetensors"))  # a finished run is resumed from it


def test_a_score_of_shards_is_that_of_whole_weights(tmp_path):
    settings = {"score": "saliency", "rewind": "step:2"}
    same_ticket(launch(tmp_path / "shards", 2, settings | FULL), on_one(tmp_path / "whole", settings))


@pytest.mark.parametrize(
    ("settings", "layout", "compare_with", "but"),
    [
        (
            {"score": "wanda", "rewind": "learning_rate", "gradient_checkpointing": True},
            SHARDED,
            "one process",
            "ticket",  # it starts from trained weights, which are equal up to rounding
        ),
        (
            {
                "score": "movement",
                "scope": "2:4",
                "sparsity": 0.5,
                "schedule": "one_shot",
                "exclude": ["classifier", "patch"],
                "final_run": True,
            },
            FULL,
            "one process",
            None,
        ),
        (
            {
                "score": "random",
                "torch_compile": True,
                "torch_compile_backend": "aot_eager",
                "optim": "sgd",
                "max_grad_norm": 0.1,
            },
            SHARDED,
            "data parallel",
            "architecture",  # with shards, the ticket of a compiled model names the class of the wrapper
        ),
    ],
    ids=["wanda", "movement", "random"],
)
def test_scores_and_settings_in_pairs_with_shards(tmp_path, settings, layout, compare_with, but):
    folder = tmp_path / "whole"
    whole = on_one(folder, settings) if compare_with == "one process" else launch(folder, 2, settings)
    same_ticket(launch(tmp_path / "shards", 2, settings | layout), whole, but=but)


def test_winning_signs_on_shards(tmp_path):
    whole, shards = on_one(tmp_path / "whole", AWS), launch(tmp_path / "shards", 2, AWS | SHARDED)
    assert shards["mask"] == whole["mask"]
    for what in ("losses", "path", "after", "flips"):
        assert shards[what] == pytest.approx(whole[what], abs=5e-4)


def test_alpha_of_every_micro_batch_is_refused_on_shards(tmp_path):
    with pytest.raises(AssertionError, match="must be step with sharded parameters; received micro_batch"):
        launch(tmp_path, 2, AWS | SHARDED | {"norm_interpolation": "micro_batch"})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1, {"gradient_accumulation_steps": 2}), (2, FULL)),
        ((2, SHARDED), (4, SHARDED | {"per_device_train_batch_size": 8})),
        ((2, FULL), (1, {"gradient_accumulation_steps": 2})),
    ],
    ids=["one to shards", "two shards to four", "shards to one"],
)
def test_a_run_goes_on_with_other_processes(tmp_path, one, before, after):
    processes, settings = before
    assert launch(tmp_path / "run", processes, settings | {"stop": [2, 3]}) is None
    same_ticket(launch(tmp_path / "run", *after), one)


def test_a_shard_takes_less_memory_than_a_copy(tmp_path):
    # Without clipping, as the norm of so many gradients depends on the order of its sum.
    settings = {"width": 640, "layers": 8, "save_strategy": "no", "max_grad_norm": 0}
    whole, shards = (launch(tmp_path / str(len(layout)), 2, settings | layout) for layout in ({}, SHARDED))
    sizes = [found["bytes_a_weight"] for found in (whole, shards)]
    print("peak bytes a weight on whole copies and on shards:", sizes)
    assert shards["mask"] == whole["mask"]
    assert sizes[1] < sizes[0]


def test_one_process_goes_on_for_two_but_not_with_another_global_batch(tmp_path, one):
    launch(tmp_path / "run", 2, {"stop": [2, 3]})
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    with pytest.raises(AssertionError, match="received global_train_batch_size=16 instead of 32"):
        launch(tmp_path / "other", 1, {})
    same_ticket(launch(tmp_path / "run", 1, {"gradient_accumulation_steps": 2}), one)
