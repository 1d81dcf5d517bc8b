"""Tests are offline, deterministic, and run with one thread each."""

import os

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import runpy
import time
import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from hub_server import HubServer

torch.set_num_threads(1)
collect_ignore_glob = ["*/conftest.py"]  # they hold no doctests, and two modules of one name cannot be collected


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A running, empty Hub; the client of this process and of the processes it starts reaches it, as alice.

    To be somebody else, pass `token="hf_bob"`, or set HF_TOKEN with monkeypatch. Retries do not wait.
    """
    from huggingface_hub import close_session, constants, file_download, hf_api
    from huggingface_hub.utils import _http
    from transformers.utils import hub as transformers_hub

    with HubServer() as server, warnings.catch_warnings():
        # The client uploads large files by a call that its own HTTP library calls outdated.
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
        for name, value in server.env(tmp_path_factory.mktemp("hf_home")).items():
            monkeypatch.setenv(name, value)
        # The client reads the environment once, at its import: give it what a new process would have read.
        for name, value in runpy.run_path(constants.__file__).items():
            if name.isupper():
                monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(hf_api.api, "endpoint", server.endpoint)
        monkeypatch.setattr(transformers_hub, "_hf_api", None)  # made once a process, with the endpoint of then
        impatient = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
        for module in (_http, file_download):
            monkeypatch.setattr(module, "time", impatient)
        close_session()
        yield server
        close_session()
