"""Recipes on two processes: the numbers of one, written and printed once; launches that would go wrong are stopped."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from recipe_runs import GPT2, QUICK, ROOT, SEARCH, SMALL, run_recipe, text_model
from safetensors.torch import load_file
from torch.distributed.fsdp import StateDictType
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import AutoModelForCausalLM, set_seed

from hf_lottery import Mask
from hf_lottery.hf.commands import align_mask, connectivity, find_ticket, train_ticket

COMMANDS = {"align": align_mask, "connect": connectivity}


def launch(script, *arguments, flags=("--multi_gpu", "--num_processes", "2"), **more):
    """Run a script by ``accelerate launch`` on a machine that has no accelerator."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", *flags, "--main_process_port",
        str(29300 + os.getpid() % 300), str(script), *map(str, arguments),
    ]  # fmt: skip
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
    return subprocess.run(
        command, env=environment | hidden | more, cwd=ROOT, capture_output=True, text=True, timeout=400
    )


def ranks(folder, commands, **more):
    """What each of two processes printed and wrote while it ran the command lines."""
    (folder / "commands.json").write_text(json.dumps([[str(word) for word in command] for command in commands]))
    result = launch(ROOT / "tests/support/recipe_processes.py", folder, **more)
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture
def networks(tmp_path):
    """Two small networks of digits, the ticket of one of them, and two language models with their texts."""
    run_recipe(find_ticket, *SEARCH, "--output_dir", tmp_path / "a")
    run_recipe(
        train_ticket, *SMALL, "--ticket", tmp_path / "a/ticket", "--init", "seed:7", "--mask", "none", "--output_dir",
        tmp_path / "b",
    )  # fmt: skip
    model, texts = text_model(tmp_path, GPT2)
    for seed, name in enumerate(("lm-a", "lm-b")):
        set_seed(seed)
        network = AutoModelForCausalLM.from_config(GPT2)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(20)  # so that each text has another loss
        network.save_pretrained(tmp_path / name)
    return ["--task", "causal-lm", "--config_name", model, "--dataset_name", texts, "--block_size", 8]


def command_lines(folder, out, language):
    """Recipes that take the same path, whatever the number of processes."""
    ticket = ["--ticket", folder / "a/ticket", "--target_model", folder / "b"]
    pair = ["--a", folder / "a/level-00/trained", "--b", folder / "b", "--points", 3]
    uneven = ["--per_device_eval_batch_size", 100, "--recalibration_sample", 100, "--match_batches", 3]
    texts = ["--a", folder / "lm-a", "--b", folder / "lm-b", "--points", 3, "--align", "activation"]
    return [
        ["align", *SMALL, *ticket, "--match_batches", 3, "--augment", "--output_dir", out / "activation"],
        ["align", *SMALL, *ticket, "--match_batches", 1, "--output_dir", out / "one-batch"],
        ["align", *SMALL, *ticket, "--method", "weight", "--output_dir", out / "weight"],
        ["connect", *SMALL, *pair, *uneven, "--output_dir", out / "errors"],
        [
            "connect", *language, *texts, "--per_device_eval_batch_size", 3, "--match_batches", 1,
            "--output_dir", out / "losses",
        ],
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the residual streams were left")  # the networks are hardly trained
def test_two_processes_give_the_results_of_one(tmp_path, networks):
    alone, out = tmp_path / "alone", tmp_path / "out"
    for command, *arguments in command_lines(tmp_path, alone, networks):
        run_recipe(COMMANDS[command], *arguments)
    commands = [
        *command_lines(tmp_path, out, networks),
        ["find", *SEARCH, "--controls", "reinit", "--output_dir", out / "find"],
        ["train", *SMALL, "--ticket", tmp_path / "a/ticket", "--output_dir", out / "train"],
    ]
    first, second = ranks(tmp_path, [[*command, *QUICK] for command in commands])
    assert all(first["outputs"]) and not any("stopped" in text for text in first["outputs"])
    assert second["outputs"] == [""] * len(commands)
    assert first["written"] and not second["written"]

    for name in ("activation", "one-batch", "weight"):
        masks = [Mask.from_pretrained(folder / name) for folder in (alone, out)]
        moves = [load_file(folder / name / "permutation/permutation.safetensors") for folder in (alone, out)]
        assert masks[0] == masks[1] != Mask.from_pretrained(tmp_path / "a/ticket")
        assert all(torch.equal(move, moves[1][group]) for group, move in moves[0].items())
        assert (out / name / "match.csv").read_text().count("\n") > 3
    for name in ("errors", "losses"):
        barriers = [json.loads((folder / name / "connectivity.json").read_text()) for folder in (alone, out)]
        assert len(barriers[0]) == 2 and barriers[0].keys() == barriers[1].keys()
        for label, found in barriers[0].items():
            assert found == {key: pytest.approx(value, abs=1e-6) for key, value in barriers[1][label].items()}
        assert min(barriers[0]["as they were"]["errors"]) > 0.01
    assert (out / "find/ticket").exists() and (out / "train/model.safetensors").exists()


@pytest.mark.slow
def test_every_command_stops_processes_that_do_not_know_of_each_other(tmp_path):
    out = ["--output_dir", tmp_path / "out"]
    needs = {
        "find": [],
        "train": ["--ticket", tmp_path / "mask"],
        "align": ["--ticket", tmp_path / "mask", "--target_model", "nowhere"],
        "connect": ["--a", "nowhere", "--b", "nowhere"],
        "ladder": [],
    }
    Mask({"weight": torch.ones(2, 2) > 0}).save_pretrained(tmp_path / "mask")
    commands = [[name, *SMALL, *out, *more] for name, more in needs.items()]
    commands.append(["levels", "nowhere", "--picture", tmp_path / "out/picture.png"])
    for rank in ranks(tmp_path, commands):
        for text in rank["outputs"]:
            assert text.startswith("stopped: ")  # transformers may warn of the processes before we do
            assert re.search("hf-lottery .*: the processes of a launch must know .* received 2 processes", text)
        assert not rank["written"]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--multi_gpu", "--num_processes", "2"], "must know of each other; received 2 processes that each would work"),
        (["--cpu", "--num_processes", "2"], "must start the processes that it was asked for; received one of several"),
    ],
)
def test_a_wrong_launch_ends_with_an_error(tmp_path, flags, message):
    result = launch(ROOT / "recipes/find_ticket.py", *SEARCH, "--output_dir", tmp_path / "out", flags=flags)
    assert result.returncode != 0 and message in result.stderr
    assert "ACCELERATE_USE_CPU=true" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_takes_every_key_of_a_configuration(monkeypatch, path):
    parser = launch_command_parser()
    args = parser.parse_args(["--config_file", str(path), "script.py"])
    args.nondefault = {"config_file", "training_script"}
    args, config, _ = _validate_launch_command(args)
    kind = {"one_process": "NO", "cpu2": "MULTI_GPU", "ddp": "MULTI_GPU", "fsdp2": "FSDP"}[path.stem]
    assert config.distributed_type == kind and args.num_processes == config.num_processes
    assert args.multi_gpu == (kind == "MULTI_GPU") and args.use_fsdp == (kind == "FSDP")
    assert args.mixed_precision == "no"
    flags = {action.dest for action in parser._actions}
    assert config.fsdp_config.keys() <= flags  # accelerate would take any key there
    if kind == "FSDP":
        for name, value in prepare_multi_gpu_env(args).items():
            monkeypatch.setenv(name, value)
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
        assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT and plugin.cpu_ram_efficient_loading
        assert plugin.auto_wrap_policy is transformer_auto_wrap_policy and not plugin.activation_checkpointing


@pytest.mark.slow
def test_the_configuration_for_two_processes_without_accelerators(tmp_path):
    """The command in the file, on a script that says who is there."""
    script = tmp_path / "who.py"
    script.write_text(
        "import sys; from accelerate import Accelerator; s = Accelerator().state\n"
        "open(f'{sys.argv[1]}/{s.process_index}', 'w').write(f'{s.num_processes} {s.distributed_type.value}')\n"
        "s.destroy_process_group()\n"
    )
    flags = ["--config_file", str(ROOT / "recipes/accelerate/cpu2.yaml")]
    result = launch(script, tmp_path, flags=flags, ACCELERATE_USE_CPU="true")
    assert result.returncode == 0, result.stderr[-3000:]
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["2 MULTI_CPU"] * 2
