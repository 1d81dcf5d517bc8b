"""How differently networks predict."""

import math

import numpy as np
import pytest
import torch
from notebook_view import as_html
from torch.nn import functional as F

from hf_lottery.connectivity.diversity import ensemble_diversity


def test_against_torch():
    logits, labels = torch.randn(3, 40, 5, dtype=torch.float64) * 3, torch.randint(5, (40,))
    found = ensemble_diversity(logits, labels)
    logs = logits.log_softmax(-1)
    kl, js, differ = [], [], []
    for i in range(3):
        for j in range(3):
            if i != j:
                kl.append(F.kl_div(logs[j], logs[i], log_target=True, reduction="batchmean").item())
                middle = ((logs[i].exp() + logs[j].exp()) / 2).log()
                js.append(F.kl_div(middle, logs[i], log_target=True, reduction="batchmean").item())
                differ.append((logits[i].argmax(-1) != logits[j].argmax(-1)).double().mean().item())
    assert found.kl == pytest.approx(np.mean(kl), rel=1e-12)
    assert found.js == pytest.approx(np.mean(js), rel=1e-12)
    assert found.disagreement == pytest.approx(np.mean(differ), rel=1e-12)
    assert found.mean_accuracy == pytest.approx((logits.argmax(-1) == labels).double().mean().item(), rel=1e-12)
    ensemble = logits.softmax(-1).mean(0).argmax(-1)
    assert found.ensemble_accuracy == (ensemble == labels).double().mean().item()


def test_the_ensemble_averages_probabilities():
    logits = [[[30.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]]  # the mean logits say 0, and so does nearly half of each
    assert ensemble_diversity(logits, [0]).ensemble_accuracy == 1.0
    logits = [[[30.0, 0.0]], [[0.0, 3.0]], [[0.0, 3.0]]]  # the mean logits say 0, the mean probabilities 1
    assert ensemble_diversity(logits, [1]).ensemble_accuracy == 1.0


def test_equal_networks_do_not_differ_at_all():
    one = torch.randn(10, 4)
    found = ensemble_diversity(torch.stack([one, one + 7]), one.argmax(-1))
    assert found.disagreement == 0 and found.mean_accuracy == found.ensemble_accuracy == 1
    assert found.kl == pytest.approx(0, abs=1e-6) and found.js == pytest.approx(0, abs=1e-6)
    assert repr(found).startswith("Diversity(mean_accuracy=1, ensemble_accuracy=1, disagreement=0, kl=")
    assert "<td>disagreement</td><td>0</td>" in as_html(found)


def test_certain_and_excluded_classes():
    found = ensemble_diversity([[[2000.0, 0.0]], [[0.0, 2000.0]]], [0])
    assert found.kl == pytest.approx(2000) and found.js == pytest.approx(math.log(2)) and found.disagreement == 1
    excluded = [[[1.0, 0.0, -math.inf]], [[0.0, 1.0, -math.inf]]]
    assert ensemble_diversity(excluded, [0])[2:] == pytest.approx(
        ensemble_diversity(np.array(excluded)[..., :2], [0])[2:]
    )


def test_what_cannot_be_compared():
    for logits, labels in (
        (np.zeros((1, 4, 2)), np.zeros(4)), (np.zeros((4, 2)), np.zeros(4)), (np.zeros((2, 4, 2)), np.zeros(3)),
        (np.zeros((2, 0, 2)), np.zeros(0)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"logits must be \[networks, samples, classes\] of two networks or more"):
            ensemble_diversity(logits, labels)
    with pytest.raises(ValueError, match="logits must be numbers; received NaN"):
        ensemble_diversity([[[0.0, math.nan]], [[0.0, 1.0]]], [0])
