import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hf_lottery import Mask, SignedMask
from hf_lottery.connectivity.barrier import Barrier
from hf_lottery.hf import metrics
from hf_lottery.hf.metrics import classification_metrics, load_metric, predicted_classes

SUPPORT = Path(__file__).parents[1] / "support"
OURS = ("accuracy", "error_barrier", "mask_overlap", "sign_agreement")


def test_accuracy_offline():
    assert load_metric("accuracy").compute(predictions=[1, 2, 3, 3], references=[1, 2, 0, 3]) == {"accuracy": 0.75}


@pytest.fixture(scope="module")
def modules_cache(tmp_path_factory):
    """One folder for the whole process, as evaluate imports a package from it, which stays imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.mark.usefixtures("modules_cache")
@pytest.mark.parametrize("name", OURS)
def test_ours_are_evaluate_modules_that_load_by_path(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = evaluate.load(str(Path(metrics.__file__).with_name(f"{name}.py")), cache_dir=str(tmp_path))
    (inputs,) = [share for whole, share in shares(name) if whole]
    assert metric.compute(**inputs) == load_metric(name).compute(**inputs)


def shares(name):
    """All samples of a metric, and the share of each of two processes: ``(whether all, inputs)``."""
    draw = np.random.default_rng(0)
    if name == "accuracy":
        whole = {key: draw.integers(0, 3, 50).tolist() for key in ("predictions", "references")}
    elif name == "error_barrier":
        whole = {"errors": draw.random((50, 5)).tolist()}
    else:  # rows of different lengths
        values = (True, False) if name == "mask_overlap" else (-1, 0, 1)
        whole = {
            key: [[values[k] for k in draw.integers(0, len(values), n)] for n in range(1, 51)]
            for key in ("predictions", "references")
        }
    first = {key: rows[:17] for key, rows in whole.items()}
    return (True, whole), (False, first), (False, {key: rows[17:] for key, rows in whole.items()})


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path):
    cases = {name: [inputs for _, inputs in shares(name)] for name in OURS}
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    environment = os.environ | {"PYTHONPATH": str(SUPPORT.parent.parent)}
    command = [sys.executable, str(SUPPORT / "metric_processes.py"), str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)], env=environment, stderr=subprocess.PIPE) for rank in (0, 1)]
    outputs = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert second == dict.fromkeys(OURS)
    for name in OURS:
        alone = load_metric(name).compute(**cases[name][0])
        assert first[name] == pytest.approx(alone, abs=1e-6)
        assert first[name] != pytest.approx(load_metric(name).compute(**cases[name][1]), abs=1e-6)  # of one share


def test_error_barrier_of_samples_and_of_means():
    errors = np.random.default_rng(1).random((20, 5))
    expected = Barrier((0.0, 0.25, 0.5, 0.75, 1.0), tuple(errors.mean(0)))
    for rows in (errors, errors.mean(0, keepdims=True)):
        found = load_metric("error_barrier").compute(errors=rows)
        assert found == pytest.approx(
            {"error_barrier": expected.barrier, "linear_error_barrier": expected.linear_barrier}, abs=1e-12
        )
    for rows in ([[1.0], [2.0]], [[1.0, 2.0], [1.0, 2.0, 3.0]]):
        with pytest.raises(ValueError, match=r"errors must be \[samples, points\], with 2 points or more; received"):
            load_metric("error_barrier").compute(errors=rows)


def test_mask_overlap_and_sign_agreement_are_those_of_the_masks():
    networks = [torch.nn.Sequential(torch.nn.Linear(6, 5, bias=False), torch.nn.Linear(5, 2)) for _ in range(2)]
    masks = [Mask({n: torch.rand(p.shape) < 0.5 for n, p in net.named_parameters()}) for net in networks]
    a, b = masks
    rows = [[entry.flatten().numpy() for entry in mask.values()] for mask in masks]
    found = load_metric("mask_overlap").compute(predictions=rows[0], references=rows[1])
    assert tuple(found.values()) == pytest.approx(a.overlap(b)) and next(iter(found)) == "mask_overlap"

    signed = SignedMask.from_model(networks[0], a)
    ticket = [signed[name].flatten().tolist() for name in a]
    trained = [networks[1].get_parameter(name).detach().sign().flatten().to(torch.int8).tolist() for name in a]
    found = load_metric("sign_agreement").compute(predictions=trained, references=ticket)
    assert found == {"sign_agreement": pytest.approx(signed.agreement(networks[1]).overall)}
    found = load_metric("sign_agreement").compute(predictions=[[1, 0], [-1, 0]], references=[[1, 0], [1, -1]])
    assert found == {"sign_agreement": pytest.approx(1 / 3)}
    nothing = load_metric("sign_agreement").compute(predictions=[[1, -1]], references=[[0, 0]])
    assert nothing == {"sign_agreement": 1.0}
    with pytest.raises(ValueError, match="signs must have as many weights as their references; received 1 and 2 in"):
        load_metric("sign_agreement").compute(predictions=[[1]], references=[[1, 1]])


@pytest.mark.parametrize("name", ["f1", "someone/metric", "errors.py", "../x.py", "."])
def test_no_code_of_a_repository_is_loaded(monkeypatch, name):
    monkeypatch.setattr(evaluate, "load", lambda name: pytest.fail(f"loaded {name}"))
    with pytest.raises(ValueError, match="a metric must be accuracy, .* or a Python file; received .*call it yourself"):
        load_metric(name)


def test_compute_metrics_of_a_file_of_ones_own_for_every_token(monkeypatch, tmp_path):
    class Errors:
        def compute(self, *, predictions, references):
            return {"errors": int((predictions != references).sum()), "of": predictions.shape}

    file = tmp_path / "errors.py"
    file.touch()
    monkeypatch.setattr(evaluate, "load", {str(file): Errors()}.get)
    prediction = EvalPrediction(predictions=np.array([[1, 2], [3, 4]]), label_ids=np.array([[1, 2], [3, 3]]))
    assert classification_metrics(name=str(file))(prediction) == {"errors": 1, "of": (4,)}


def test_metrics_without_evaluate(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(ImportError, match=r"metrics need the evaluate library\. Install hf-lottery\[recipes\]"):
        load_metric("accuracy")


def test_compute_metrics_for_the_trainer():
    logits = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    classes = predicted_classes(logits, torch.zeros(3))
    assert classes.tolist() == [1, 0, 1] == predicted_classes((logits, logits), torch.zeros(3)).tolist()
    prediction = EvalPrediction(predictions=classes.numpy(), label_ids=np.array([1, 1, 1]))
    assert classification_metrics()(prediction) == {"accuracy": pytest.approx(2 / 3)}
