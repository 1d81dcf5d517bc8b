"""Residual streams that a matching leaves out are in its report, and a rest that says nothing is warned of."""

import copy
import json
import warnings
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from hf_lottery import discover, permute_
from hf_lottery.alignment import GroupMatch, Match, MatchReport, activation_matching, weight_matching
from hf_lottery.symmetry.errors import SymmetryError

STREAM = "bert.embeddings.word_embeddings.weight[1]"
WHY = "a residual stream keeps its order by default; residual=True matches it"
IDS = torch.randint(1, 30, (6, 9), generator=torch.Generator().manual_seed(0))


def bert(seed):
    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=30, pad_token_id=0
    )
    return BertForSequenceClassification(config).eval()


def moved(model, spec, groups=None, noise=0.0):
    target = copy.deepcopy(model)
    permute_(target, spec.random(1, include=groups))
    with torch.no_grad():
        for w in target.parameters():
            w.add_(noise * w.std() * torch.randn_like(w) if w.ndim > 1 else 0.0)
    return target


@pytest.fixture(scope="module")
def spec():
    return discover(bert(0), {"input_ids": IDS})


@pytest.fixture(scope="module")
def others(spec):
    return [name for name in spec.free if name != STREAM]


def test_the_report_says_which_and_why(spec, others, tmp_path):
    source, target = bert(0), moved(bert(0), spec, others, noise=0.1)
    for found in (
        weight_matching(spec, source=source, target=target),
        activation_matching(spec, source=source, target=target, batches=[{"input_ids": IDS}]),
    ):
        assert found.report.left_out == {STREAM: WHY} and found.report.beats_chance
        assert STREAM not in found.report.groups
        assert repr(found).splitlines()[-1] == f"left out: {STREAM} ({WHY})"
        assert f"<p>left out: {STREAM} ({WHY})</p>" in found._repr_html_()
        found.save_pretrained(tmp_path)
        assert Match.from_pretrained(tmp_path, spec) == found


def test_who_asks_is_not_warned(spec, others):
    source, target = bert(0), moved(bert(0), spec)
    pair: dict[str, Any] = {"source": source, "target": target}
    for options, left_out in [
        ({"residual": False}, {STREAM: "a residual stream, and residual=False"}),
        ({"residual": True}, {}),
        ({"include": others}, {}),
        ({"exclude": "intermediate", "residual": True}, {}),
    ]:
        assert weight_matching(spec, **pair, **options).report.left_out == left_out
    frozen = spec.freeze([STREAM], "test")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert weight_matching(frozen, **pair).report.left_out == {}


@pytest.mark.parametrize("seed", range(3))
def test_a_rest_that_says_nothing_is_warned_of(spec, others, seed):
    source = bert(seed)
    for target in (
        moved(source, spec),
        bert(seed + 10),
    ):  # the streams are in another order; there is nothing in common
        with pytest.warns(UserWarning, match=r"were left as they are \(bert.*no better than chance.*residual=True"):
            assert not weight_matching(spec, source=source, target=target).report.beats_chance
    for noise in (0.0, 0.5):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = weight_matching(spec, source=source, target=moved(source, spec, others, noise))
        assert found.report.beats_chance
    assert weight_matching(spec, source=source, target=moved(source, spec), residual=True).report.beats_chance


def test_chance_is_what_unrelated_units_score(spec):
    """A maximum over noise is above its mean, and not above chance."""
    groups = weight_matching(spec, source=bert(1), target=bert(2), residual=True).report.groups
    large = [group for group in groups.values() if group.size > 20]
    assert large and all(group.random < group.matched <= (group.chance or 0.0) for group in large)


def test_reports_of_older_versions_say_nothing_of_chance(spec, tmp_path):
    found = weight_matching(spec, source=bert(0), target=bert(0))
    found.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "match_report.json").read_text())
    for group in data["groups"].values():
        del group["chance"]
    del data["left_out"], data["text_sha256"]
    path = tmp_path / "match_report.json"
    path.write_text(json.dumps({**data, "format_version": 1}))
    older = Match.from_pretrained(tmp_path, spec).report
    assert older.left_out == {} and older.beats_chance
    assert all(group.chance is None for group in older.groups.values())
    for change in ({"left_out": ["a"]}, {"left_out": {"a": 1}}):
        path.write_text(json.dumps({**data, **change, "format_version": 1}))
        with pytest.raises(SymmetryError, match="left_out must hold texts"):
            Match.from_pretrained(tmp_path, spec)


def test_half_of_the_units_decide():
    def report(*pairs):
        groups = {str(n): GroupMatch(size, m, 0.0, 0.0, 0.0, 0, c) for n, (size, m, c) in enumerate(pairs)}
        return MatchReport(groups, (0.0,), converged=True)

    assert report((3, 0.5, 0.4), (2, 0.1, 0.2)).beats_chance
    assert not report((2, 0.5, 0.4), (3, 0.1, 0.2)).beats_chance
    assert not report((1, 0.5, 0.5)).beats_chance
    assert report((1, 0.0, 0.0)).beats_chance and report((1, 0.0, None)).beats_chance and report().beats_chance
