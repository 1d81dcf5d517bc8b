"""Run a recipe in this process, as its command line would."""

import sys

import pytest
import transformers

QUICK = ["--use_cpu", "true", "--disable_tqdm", "true", "--dataloader_pin_memory", "false", "--save_strategy", "no"]


@pytest.fixture(autouse=True)
def _restore_verbosity():
    verbosity = transformers.utils.logging.get_verbosity()
    yield
    transformers.utils.logging.set_verbosity(verbosity)
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture
def run(monkeypatch, capsys):
    def call(module, *arguments):
        monkeypatch.setattr(sys, "argv", ["recipe.py", *map(str, [*arguments, *QUICK])])
        module.main()
        return capsys.readouterr().out

    return call
