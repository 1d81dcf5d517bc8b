"""Tickets that version 0.1 wrote are read for ever. tests/samples is never rewritten."""

from pathlib import Path

import pytest
from transformers import ViTForImageClassification

from hf_lottery import MaskSeries, Snapshot, Ticket
from hf_lottery.hf.hub.difference import Difference
from hf_lottery.hf.hub.reference import Reference

SAMPLES = Path(__file__).parents[2] / "samples"
# Hashes that version 0.1 itself gave: of the mask, of the weights to start from.
BY_VALUE = (
    "d83cb36b9b65c9b5c2052cce0ef0df4262bc62bf9308f5ebd3b5fd2739c23724",
    "766f3be9e269c1efe1a1b368cdb0298c9b733b9da40f17cd6eeb23b0d66ea4b3",
)
BY_SEED = (
    "c8eba990fed57bc79ea8559316a77a56e61bb4548cca3d94319c807b1a02305a",
    "42d7ef0d9ccecf0966efdb20d7e2f187c772d2e90cfa57b921c67e7caa9215f8",
)
BUILT = "8d35e8bc5f72edcccc111f955a4f505c8e304395ff0e30509b14342ed648e111"  # by value, under its mask

# The fine-tuning of that model: what is taken from the base, and the model that results.
BASE = "4f18acdc18f6dcdf5d57a2e7f184cc308d0a381f35d4f13bbe1ac5bd81fb2f54"
TUNED = "ef7c3b693500edf3b51308bb5d9c91249e54950a167a402a235753b6bee1a880"


def test_a_ticket_by_value():
    ticket = Ticket.from_pretrained(SAMPLES / "ticket-0.1-by-value")
    assert isinstance(ticket.start, Snapshot)
    assert (ticket.mask.sha256(), ticket.start.sha256()) == BY_VALUE
    assert (ticket.start.step, ticket.info["level"], len(ticket.info["history"])) == (2, 2, 3)
    assert MaskSeries.from_pretrained(SAMPLES / "ticket-0.1-by-value")[-1] == ticket.mask
    model = ticket.build_model()
    assert type(model) is ViTForImageClassification and Snapshot.capture(model).sha256() == BUILT


def test_a_ticket_by_seed():
    ticket = Ticket.from_pretrained(SAMPLES / "ticket-0.1-by-seed")
    assert (ticket.mask.sha256(), ticket.start) == (BY_SEED[0], Reference("seed", BY_SEED[1], seed=0))
    assert ticket.info["settings"]["dataset_name"] == "digits"


def test_a_ticket_of_a_fine_tuning():
    model = Ticket.from_pretrained(SAMPLES / "ticket-0.1-by-value").build_model()
    ticket = Ticket.from_pretrained(SAMPLES / "ticket-0.1-difference")
    assert isinstance(ticket.start, Difference)
    assert (ticket.mask.sha256(), ticket.start.base_sha256, ticket.start.step) == (BY_VALUE[0], BASE, 7)
    ticket.apply_(model)
    assert Snapshot.capture(model).sha256() == TUNED


@pytest.mark.parametrize("kind", ["value", "seed"])
def test_it_is_saved_again_without_loss(tmp_path, kind):
    ticket = Ticket.from_pretrained(SAMPLES / f"ticket-0.1-by-{kind}")
    ticket.save_pretrained(tmp_path)
    again = Ticket.from_pretrained(tmp_path)
    assert (again.mask, again.info, again.series) == (ticket.mask, ticket.info, ticket.series)
    sha = [one.start.sha256() if isinstance(one.start, Snapshot) else one.start.sha256 for one in (ticket, again)]
    assert sha[0] == sha[1]
