"""Whatever a user prints fits on a screen, and notebooks show a table, also for a model with hundreds of parameters."""

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from hf_lottery import Mask, MaskSeries, SignedMask, Snapshot, Ticket, norm_parameters, prunable
from hf_lottery.hf.hub.reference import Reference


def html(thing) -> str:
    """What a notebook shows, which asks for it by this name."""
    return getattr(thing, "_repr_html_")()  # noqa: B009


def deep() -> nn.Module:
    size = {"hidden_size": 8, "num_hidden_layers": 40, "num_attention_heads": 2, "intermediate_size": 8}
    return BertForSequenceClassification(BertConfig(**size, vocab_size=30, max_position_embeddings=12))


@pytest.fixture(scope="module")
def things():
    model = deep()
    mask = Mask({name: weight.detach() > 0 for name, weight in prunable(model).items()})
    signed = SignedMask.from_model(model, mask)
    series = MaskSeries([Mask.dense(prunable(model)), *[mask] * 99])
    history = [{"level": level, "sparsity": 0.5, "metrics": {"eval_accuracy": 0.9}} for level in range(100)]
    info = {
        "architecture": "Bert",
        "level": 99,
        "history": history,
        "notes": "x" * 5000,
        **dict.fromkeys("abcdefgh", 1),
    }
    start = Snapshot.capture(model, step=5)
    other = deep()
    return {
        "mask": mask,
        "series": series,
        "signed": signed,
        "agreement": signed.agreement(other),
        "transfer": signed.transfer_(copy.deepcopy(other)),
        "norms": norm_parameters(model),
        "prunable": prunable(model),
        "snapshot": start,
        "reference": Reference("pretrained", "0" * 64, repo_id="alice/base", revision="1" * 40),
        "ticket": Ticket(mask, start, info, model.config, series),
        "ticket by reference": Ticket(mask, Reference("seed", "0" * 64, seed=3)),
    }


NAMES = (
    "mask", "series", "signed", "agreement", "transfer", "norms", "prunable", "snapshot", "reference", "ticket",
    "ticket by reference",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_nothing_prints_more_than_a_screen(things, name):
    assert things.keys() == set(NAMES)
    text = repr(things[name])
    assert 20 < len(text) <= 2500 and len(text.splitlines()) <= 26


@pytest.mark.parametrize("name", ["mask", "series", "signed", "agreement", "norms", "prunable", "ticket"])
def test_notebooks_show_a_table_that_is_cut(things, name):
    page = html(things[name])
    assert page.count("<table>") == page.count("</table>") >= 1
    assert "more</p>" in page and page.count("<tr>") <= 60 and len(page) < 15_000


def test_long_tables_say_how_much_they_leave_out(things):
    lines = repr(things["prunable"]).splitlines()
    assert lines[-3:] == ["... and 221 more", "parameters: 241, weights: 15,424", "task head left out: classifier"]
    assert repr(things["transfer"]).startswith("Transfer\n  signed: 487 (bert.embeddings.word_embeddings.weight, ")
    assert " and 484 more)" in repr(things["transfer"])
    assert repr(norm_parameters(nn.Linear(2, 2))) == "name  shape  kind\nparameters: 0\nscale-like, left out: none"


def test_a_ticket_prints_what_it_is_of(things):
    lines = repr(things["ticket"]).splitlines()
    assert lines[0] == "Ticket"
    assert lines[1].startswith("  mask:   Mask(241 parameters, ")
    assert lines[2].startswith("  start:  Snapshot(step 5, 651 tensors, ")
    assert lines[3].startswith("  series: MaskSeries(100 levels of 241 parameters")
    assert lines[4] == "  model:  BertConfig"
    assert lines[5].startswith("  info:   architecture='Bert', level=99, notes='xxx") and lines[5].endswith(" more")
    by_reference = repr(things["ticket by reference"]).splitlines()
    assert by_reference[2:] == ["  start:  set_seed(3) and from_config(ticket.model_config)", "  info:   none"]


def test_names_are_escaped_for_html():
    mask = Mask({"<script>": torch.tensor([True])})
    assert "<script>" not in html(mask) + html(Ticket(mask, Snapshot(0, {}), {"<b>": "<i>"})) + html(MaskSeries([mask]))
