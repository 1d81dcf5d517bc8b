"""train_ticket: the ticket, transfers to another seed, the controls, signs, and mistakes on the command line."""

import json

import pytest
import torch
from recipe_runs import DIGITS, SMALL
from transformers import AutoModelForImageClassification

from hf_lottery import Mask, SignedMask, Ticket, norm_parameters
from hf_lottery.hf.commands import find_ticket, train_ticket


def loss_of(folder):
    return json.loads((folder / "eval_results.json").read_text())["eval_loss"]


def test_the_ticket_run_repeats_the_last_level(run, digits_search, tmp_path):
    """LTH: the same weights, mask, schedule and data order give the same network."""
    folder, _ = digits_search
    out = run(
        train_ticket, *SMALL, "--data_seed", 5, "--ticket", folder / "ticket", "--output_dir", tmp_path / "again"
    )  # fmt: skip
    assert "init=ticket mask=ticket sparsity=0.3000" in out
    last = json.loads((folder / "lottery_state.json").read_text())["finished"][-1]
    assert loss_of(tmp_path / "again") == last["metrics"]["eval_loss"]


@pytest.mark.slow
def test_all_ways_to_train_a_ticket_differ(run, digits_search, tmp_path):
    ticket = digits_search[0] / "ticket"
    mask, losses = Mask.from_pretrained(ticket), []
    for init, which in (
        ("ticket", "ticket"), ("seed:7", "ticket"), ("ticket", "random"), ("ticket", "shuffled"), ("ticket", "none"),
        (f"checkpoint:{digits_search[0] / 'level-00/trained'}", "ticket"),
    ):  # fmt: skip
        folder = tmp_path / f"train-{init.split(':')[0]}-{which}"
        out = run(
            train_ticket, *SMALL, "--ticket", ticket, "--init", init, "--mask", which, "--output_dir", folder
        )  # fmt: skip
        assert f"init={init} mask={which} sparsity={0 if which == 'none' else 0.3:.4f}" in out
        losses.append(loss_of(folder))
        if which == "ticket":
            assert Mask.from_pretrained(folder) == mask
        elif which != "none":
            trained = Mask.from_pretrained(folder)
            assert trained != mask and trained.kept == mask.kept
            assert (trained.layer_sparsities() == mask.layer_sparsities()) == (which == "shuffled")
    assert len(set(losses)) == len(losses)


def test_a_search_for_signs_prints_its_levels_and_its_norm_path(sign_search):
    _, out, _ = sign_search
    levels = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")]
    assert levels == [
        "level", "-------------", "0", "1", "2", "3 (final run)", "norms towards init", "------------------", "0.00",
        "0.25", "0.50", "0.75", "1.00",
    ]  # fmt: skip


@pytest.mark.slow
def test_all_ways_to_give_signs_differ(run, sign_search, tmp_path):
    found, _, settings = sign_search
    mask = Mask.from_pretrained(found / "signed")
    trained, losses = f"checkpoint:{found / 'level-00/trained'}", []
    for number, mode in enumerate((
        ["--init", "seed:7"],
        ["--init", "ticket"],
        ["--init", "seed:7", "--signs", "ticket"],
        ["--init", "seed:7", "--signs", "random"],
        ["--init", "seed:7", "--signs", "shuffled"],
        ["--init", "seed:7", "--signs", trained],
        ["--init", "seed:7", "--signs", "ticket", "--keep_norms"],
        ["--init", "seed:7", "--signs", "ticket", "--zeros", "source_median"],
        ["--init", "seed:7", "--signs", "ticket", "--zeros", "source_median", "--fold_norms"],
        ["--init", "seed:7", "--signs", "ticket", "--zeros", "std"],
        ["--init", "seed:7", "--signs", "ticket", "--magnitudes", "constant", "--zeros", "source_median"],
        ["--init", "seed:7", "--signs", "ticket", "--magnitudes", trained],
    )):  # fmt: skip
        folder = tmp_path / f"train-{number}"
        run(train_ticket, *settings, "--ticket", found / "ticket", "--output_dir", folder, *mode)
        assert Mask.from_pretrained(folder) == mask
        metrics = json.loads((folder / "eval_results.json").read_text())
        assert ("sign_agreement" in metrics) == ("--signs" in mode)
        losses.append(metrics["eval_loss"])
    assert len(set(losses)) == len(losses)


def test_kept_norms_and_signs_are_those_of_the_ticket(run, sign_search, tmp_path):
    """The command against the library, at a learning rate that changes nothing."""
    found, _, settings = sign_search
    ticket = Ticket.from_pretrained(found / "ticket")
    run(
        train_ticket, *settings, "--ticket", found / "ticket", "--output_dir", tmp_path / "t", "--init", "seed:7",
        "--signs", "ticket", "--keep_norms", "--learning_rate", 0, "--weight_decay", 0,
    )  # fmt: skip
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "t")
    for name, parameter in norm_parameters(model).items():
        assert torch.equal(parameter, ticket.start.tensors[name])
    assert SignedMask.from_pretrained(found / "signed").agreement(model).overall == 1


@pytest.mark.slow
def test_a_ticket_by_reference_goes_through_the_hub(run, hub, tmp_path):
    run(
        find_ticket, *SMALL, "--sparsity", 0.3, "--pruning_fraction", 0.2, "--output_dir", tmp_path / "run",
        "--rewind", "init", "--rewind_by_reference", "--push_to_hub", "true", "--hub_model_id", "alice/found",
    )  # fmt: skip
    assert "rewind.safetensors" not in hub.repos["alice/found"].files("main")
    assert {"level-00", "level-01", "level-02"} <= {ref.rpartition("/")[2] for ref in hub.repos["alice/found"].refs}
    run(train_ticket, *SMALL, "--ticket", "alice/found", "--output_dir", tmp_path / "again")
    assert Mask.from_pretrained(tmp_path / "again") == Mask.from_pretrained("alice/found")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--init", "seed"], "init must be ticket, seed:N or checkpoint:FOLDER; received 'seed'"),
        (["--mask", "some"], "mask must be one of ticket, aligned, random, shuffled, none; received 'some'"),
        (["--mask", "aligned"], "aligned must be given with mask=aligned; received aligned and None"),
        (
            ["--signs", "some"],
            "signs must be one of none, ticket, shuffled, random, checkpoint:FOLDER; received 'some'",
        ),
        (["--signs", "checkpoint:"], "signs must be one of"),
        (["--signs", "ticket", "--magnitudes", "big"], "magnitudes must be one of init, constant, checkpoint:FOLDER"),
        (["--keep_norms"], "keep_norms must come with signs; received True"),
        (["--zeros", "std"], "zeros must come with signs; received 'std'"),
        (["--signs", "ticket", "--mask", "random"], "signs must come with mask=ticket, whose weights have them"),
        (["--signs", "ticket", "--zeros", "drop"], "zeros must be one of keep, std, source_median; received 'drop'"),
    ],
)
def test_bad_command_lines(run, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(train_ticket, *DIGITS, "--ticket", "x", *arguments)
    assert message in capsys.readouterr().err


def test_what_is_missing_is_named(run, tmp_path):
    with pytest.raises(SystemExit, match="train: the source must be a folder or the id of a repository on the Hub"):
        run(train_ticket, *DIGITS, "--ticket", tmp_path / "none", "--output_dir", tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="the checkpoint must be a folder; received nowhere"):
        train_ticket.start_weights("checkpoint:nowhere", None, train_ticket.ModelArguments(), None, 0)


def test_a_search_is_not_written_over(run, digits_search, capsys):
    with pytest.raises(SystemExit):
        run(train_ticket, *SMALL, "--ticket", digits_search[0] / "ticket", "--output_dir", digits_search[0])
    assert "the output must be a folder without results" in capsys.readouterr().err
