"""One line for what the user can mend, a traceback for a fault."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_lottery import Mask
from hf_lottery.hf.commands.errors import one_line, run
from hf_lottery.hf.commands.outcome import Outcome
from hf_lottery.hf.tasks.paper_networks import LeNetConfig, LeNetForImageClassification


def caught(call):
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: Mask({}), "a mask must cover at least one weight; received 0 entries without any."),
        (lambda: Mask({"a": 1}), "the mask of 'a' must be a bool tensor; received int. Try `weight != 0`."),
        (lambda: Path("/no/where").read_bytes(), "[Errno 2] No such file or directory: '/no/where'"),
        (lambda: __import__("nonsense"), "No module named 'nonsense'"),
        (lambda: json.loads("["), None),  # raised by another library, for which there is no advice
        (lambda: Mask.dense({"a": None}), None),  # a slip inside this one
        (lambda: {}["x"], None),
    ],
)
def test_what_is_one_line(call, line):
    assert one_line(caught(call)) == line


def test_settings_that_a_trainer_refuses_are_one_line(tmp_path):
    settings = TrainingArguments(str(tmp_path), save_strategy="best", use_cpu=True)
    error = caught(lambda: Trainer(torch.nn.Linear(1, 1), settings))
    assert "`args.metric_for_best_model` must be provided" in str(one_line(error))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"optim_args": "nonsense"}, "not enough values"),
        ({"lr_scheduler_kwargs": {"a": 1}}, "unexpected keyword argument 'a'"),
        ({"dataloader_num_workers": -1}, "num_workers option should be non-negative"),
        ({"gradient_checkpointing": True}, "does not support"),
        ({"neftune_noise_alpha": 1.0}, "get_input_embeddings"),
    ],
)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_settings_that_a_trainer_refuses_when_it_trains_are_one_line(tmp_path, settings, line):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], **settings)
    model = LeNetForImageClassification(LeNetConfig(image_size=8, hidden_sizes=[4]))
    data = [{"pixel_values": torch.randn(1, 8, 8), "labels": 0}] * 2
    assert line in str(one_line(caught(Trainer(model, arguments, train_dataset=data).train)))


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (OSError("first\nsecond"), 1, "first second"),
        (KeyboardInterrupt(), 130, "interrupted. The same command starts again."),
        (SystemExit("stopped"), 1, "stopped"),
        (SystemExit(2), 2, ""),
        (SystemExit(None), 0, ""),
    ],
)
def test_how_a_command_ends(error, status, line, capsys):
    def command(arguments):
        raise error

    assert run("align", lambda: command, []) == status
    assert capsys.readouterr().err == (f"hf-lottery align: {line}\n" if line else "")


def test_a_fault_keeps_its_traceback():
    with pytest.raises(KeyError):
        run("align", lambda: lambda arguments: {}["x"], [])


def test_json_is_all_that_is_on_standard_output(capsys):
    def command(arguments):
        print("progress")
        return Outcome({"loss": float("nan"), "folder": Path("x"), "of": (1, True)}, text="for a person", status=1)

    assert run("diff", lambda: command, ["--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {"loss": None, "folder": "x", "of": [1, True]} and out.count("\n") == 1
    assert err == "progress\n"
    assert run("diff", lambda: command, []) == 1
    assert capsys.readouterr().out == "progress\nfor a person\n"
    assert run("diff", lambda: lambda arguments: None, ["--json"]) == 0  # a process that is not the first
    assert capsys.readouterr().out == ""
