"""Faults at every request of a push and of a pull: nothing is lost, nothing half pushed, one class of error."""

import tempfile
import time
from dataclasses import replace
from itertools import count

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import HfApi
from small_task import Points, arguments, net, vit
from small_tickets import mask, permutation, ticket

from hf_lottery import LotteryTrainer, Mask, Permutation, Snapshot, Ticket
from hf_lottery.hf.hub.checkpoint import load_model
from hf_lottery.hf.hub.reference import Reference
from hf_lottery.hf.tasks.models import load_network
from hf_lottery.storage import HubError

FOR_EVER = 1000
FAULTS = [(404, 1), (503, FOR_EVER), ("drop", 1)]
OTHERS = [(kind, times) for kind in (401, 403, 404, 429, 500, 503, "drop", "cut") for times in (1, FOR_EVER)]
SLOW = [pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS if other not in FAULTS]
every_fault = pytest.mark.parametrize(("fault", "times"), [*FAULTS, *SLOW])


def strikes(hub, fault, times):
    """Let one request after the other fail, until the last attempt has no request left that could."""
    for number in count():
        hub.strike(number, fault, times)
        yield number
        untouched = sum(not callable(kind) for _, kind in hub.faults) == times
        hub.faults.clear()
        if untouched:
            return


def add_text(repo_id, text):
    card = HfApi().hf_hub_download(repo_id, "README.md", force_download=True)
    with open(card, encoding="utf-8") as file:
        content = file.read() + text
    HfApi().upload_file(path_or_fileobj=content.encode(), path_in_repo="README.md", repo_id=repo_id)


def by_reference():
    stored = ticket(1)
    return replace(stored, start=Reference("seed", stored.start.sha256(), seed=1), model_config=None)


@every_fault
@pytest.mark.parametrize("make", [mask, pytest.param(ticket, marks=pytest.mark.slow)])
def test_a_push_is_whole_or_not_there(hub, make, fault, times, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make(0).push_to_hub("alice/t", tag="best")
    add_text("alice/t", "\nOnly for birds.\n")
    repo, failed, number = hub.repos["alice/t"], 0, 0
    for number in strikes(hub, fault, times):
        new, before, tagged = make(number + 1), repo.files(), repo.refs["refs/tags/best"]
        try:
            new.push_to_hub("alice/t", tag="best")
            said = None
        except HubError as error:
            said, failed = str(error), failed + 1
        assert not list(tmp_path.iterdir())
        assert b"Only for birds." in repo.files()["README.md"]
        hub.faults, kept = [], hub.faults
        if repo.files() == before:
            assert said is not None and ("Nothing was pushed." in said or "may have arrived" in said)
        else:
            assert Mask.from_pretrained("alice/t") == getattr(new, "mask", new)
            assert said is None or "was pushed" in said or "may have arrived" in said
        if said is None or repo.refs.get("refs/tags/best") != tagged:
            assert said is None or f"The tag was at {tagged} before" in said
            assert said is not None or repo.refs["refs/tags/best"] == repo.refs["refs/heads/main"]
        repo.refs.setdefault("refs/tags/best", tagged)
        hub.faults = kept
    assert failed >= 5 and number >= 10


@every_fault
def test_a_first_push_that_fails_names_what_it_made(hub, fault, times):
    number = 0
    for number in strikes(hub, fault, times):
        hub.repos.pop("alice/new", None)
        try:
            mask().push_to_hub("alice/new", revision="tries")
        except HubError as error:
            branches = getattr(hub.repos.get("alice/new"), "refs", ())
            for made, there in (
                ("The repository alice/new was created.", "alice/new" in hub.repos),
                ("The branch tries was created.", "refs/heads/tries" in branches),
            ):
                assert (made in str(error)) == there or (fault == "drop" and there), (number, str(error))
    assert number >= 8


@every_fault
@pytest.mark.parametrize(
    ("make", "kind"),
    [(ticket, Ticket), (by_reference, Ticket), pytest.param(mask, Mask, marks=pytest.mark.slow)],
)
def test_a_pull_is_right_or_an_error_of_the_hub(hub, make, kind, fault, times, tmp_path):
    made, failed = make(), 0
    made.push_to_hub("alice/t")

    def pull(number):
        found = kind.from_pretrained("alice/t", cache_dir=tmp_path / str(number))
        if kind is Mask:
            assert found == made
            return
        assert (found.mask, type(found.start)) == (made.mask, type(made.start))
        assert (found.model_config is None) == (made.model_config is None)

    for number in strikes(hub, fault, times):
        try:
            pull(number)
        except HubError:
            failed += 1
            hub.faults, kept = [], hub.faults
            pull(number)  # what the failed pull left in the cache is no harm
            hub.faults = kept
    assert failed >= (3 if times > 1 else 1)


def test_a_hub_that_does_not_answer_in_time(hub, monkeypatch):
    ticket().push_to_hub("alice/t")
    huggingface_hub.set_client_factory(lambda: httpx2.Client(timeout=0.05, follow_redirects=True))
    try:
        hub.faults = [(".", lambda: time.sleep(0.2))] * FOR_EVER
        with pytest.raises(HubError, match=r"timed out. Nothing was pushed. Check the connection"):
            ticket(1).push_to_hub("alice/t")
    finally:
        huggingface_hub.set_client_factory(huggingface_hub.utils._http.default_client_factory)


def test_a_permutation_and_other_users_see_the_same_class(hub):
    moved, spec = permutation()
    moved.push_to_hub("alice/moved")
    hub.strike(0, 429, FOR_EVER)
    for call in (
        lambda: Permutation.from_pretrained("alice/moved", spec),
        lambda: Mask.from_checkpoint("alice/moved"),
        lambda: moved.push_to_hub("alice/moved"),
    ):
        with pytest.raises(HubError, match="received status 429: .*wait a few minutes") as error:
            call()
        assert error.value.status == 429 and isinstance(error.value, OSError)


def test_a_cache_without_a_listing_is_not_all_there_is(hub, monkeypatch):
    vit(0).push_to_hub("alice/model")
    HfApi().hf_hub_download("alice/model", "config.json")  # and no weights
    hub.fail(".", 503, FOR_EVER)
    for load in (Mask.from_checkpoint, load_model):
        with pytest.raises(HubError, match="status 503"):
            load("alice/model")
    hub.faults.clear()
    found = load_model("alice/model")
    assert found.config._name_or_path == "alice/model"
    hub.fail(".", 503, FOR_EVER)
    assert load_model("alice/model").config.hidden_size == 16  # all of it is in the cache now
    hub.faults.clear()
    with pytest.raises(FileNotFoundError, match="received 'alice/absent' at main"):
        load_model("alice/absent")


def test_offline_what_is_not_in_the_cache_is_not_absent(hub):
    made = ticket(1)
    made.push_to_hub("alice/t")
    by_reference().push_to_hub("alice/r")
    assert Mask.from_pretrained("alice/t") == made.mask  # which reads no weights
    Ticket.from_pretrained("alice/r")
    hub.fail(".", 503, FOR_EVER)
    with pytest.raises(HubError, match=r"read rewind.safetensors of alice/t; received status 503"):
        Ticket.from_pretrained("alice/t")
    with pytest.raises(FileNotFoundError, match="must be in the cache, or be known to be absent"):
        Ticket.from_pretrained("alice/t", local_files_only=True)
    for where in ({}, {"local_files_only": True}):
        assert isinstance(Ticket.from_pretrained("alice/r", **where).start, Reference)
    with pytest.raises(ValueError, match="must not go together"):
        Mask.from_pretrained("alice/t", local_files_only=True, force_download=True)


@pytest.mark.slow
def test_a_search_that_cannot_push_says_what_is_there(hub, tmp_path):
    args = arguments(tmp_path, push_to_hub=True, hub_model_id="alice/found", sparsity=0.5)
    hub.fail("POST .*/create", 403)
    with pytest.raises(HubError, match="create the repository alice/found; received status 403"):
        LotteryTrainer(net(), args, train_dataset=Points())
    ours = LotteryTrainer(net(), args, train_dataset=Points())
    hub.before("POST .*/commit/", lambda: None)
    hub.fail("POST .*/commit/", 503, FOR_EVER)
    with pytest.raises(HubError, match=r"level 1: .*status 503.* The levels before 1 were pushed; .* resume it"):
        ours.train()
    assert Ticket.from_pretrained("alice/found").info["level"] == 0
    hub.faults.clear()
    again = LotteryTrainer(net(), args, train_dataset=Points())
    again.train(resume_from_checkpoint=True)
    assert Ticket.from_pretrained("alice/found", revision="level-02").mask == again.mask == ours.mask


def test_a_network_out_of_reach_is_not_taken_for_a_ticket(hub):
    trained = vit(7)
    replace(ticket(1), model_file=False).push_to_hub("alice/both")
    trained.push_to_hub("alice/both")
    hub.fail("(HEAD|GET) .*/model.safetensors", 403)
    with pytest.raises(HubError, match="status 403"):
        load_network("alice/both", "image-classification")
    found = load_network("alice/both", "image-classification")
    assert Snapshot.capture(found).sha256() == Snapshot.capture(trained).sha256()
    ticket(1).push_to_hub("alice/ticket")
    pruned = load_network("alice/ticket", "image-classification")
    assert Mask.from_model({name: pruned.get_parameter(name) for name in mask(1)}) == mask(1)
