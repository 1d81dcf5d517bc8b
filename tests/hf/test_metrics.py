import sys
import warnings

import evaluate
import numpy as np
import pytest
import torch
from transformers import EvalPrediction

import hf_lottery.hf.metrics.accuracy as module
from hf_lottery import classification_metrics, load_metric, predicted_classes


def test_accuracy_offline():
    assert load_metric("accuracy").compute(predictions=[1, 2, 3, 3], references=[1, 2, 0, 3]) == {"accuracy": 0.75}


def test_accuracy_is_an_evaluate_module_that_loads_by_path(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = evaluate.load(module.__file__)
    assert metric.compute(predictions=[1, 0], references=[1, 1]) == {"accuracy": 0.5}


def test_other_names_go_to_evaluate(monkeypatch):
    monkeypatch.setattr(evaluate, "load", lambda name: f"loaded {name}")
    assert load_metric("f1") == "loaded f1"


def test_compute_metrics_of_another_name_for_every_token(monkeypatch):
    class Errors:
        def compute(self, *, predictions, references):
            return {"errors": int((predictions != references).sum()), "of": predictions.shape}

    monkeypatch.setattr(evaluate, "load", {"errors": Errors()}.get)
    prediction = EvalPrediction(predictions=np.array([[1, 2], [3, 4]]), label_ids=np.array([[1, 2], [3, 3]]))
    assert classification_metrics("errors")(prediction) == {"errors": 1, "of": (4,)}


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
