"""hf-lottery shrink: a structured ticket loses its units, any other mask its dead ones, a model its smallest."""

import json

import pytest
import torch
from recipe_runs import write_tokenizer
from small_models import cut, logits, model
from transformers import AutoTokenizer

from hf_lottery import Mask, Snapshot, Ticket, discover, prunable, score_weights, uniform
from hf_lottery.hf.commands.main import main
from hf_lottery.hf.hub.shrunk import load_shrunk, save_shrunk
from hf_lottery.hf.hub.sparse_model import SparseModel
from hf_lottery.hf.tasks.example_inputs import example_inputs
from hf_lottery.structured import prune_units


def shrink(capsys, source, output, *options):
    """Run the command; return what it prints as JSON."""
    capsys.readouterr()
    assert main(["shrink", str(source), "--output", str(output), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def unit_ticket(large, **options):
    spec = discover(large, example_inputs(large))
    units = prune_units(large, spec, score_weights(large), **{"sparsity": 0.5, "scope": uniform, **options})
    return Ticket.of(large, units, Snapshot.capture(large))


def test_a_structured_ticket_loses_its_units(tmp_path, capsys):
    ticket = unit_ticket(model("BERT"), include="intermediate")
    ticket.save_pretrained(tmp_path / "ticket")
    found = shrink(capsys, tmp_path / "ticket", tmp_path / "small")
    assert {(row["units"], row["kept"]) for row in found["groups"].values()} == {(48, 24)}
    assert found["loaded_by"] == "transformers" and found["error"]["float64"] < 1e-10
    masked = ticket.build_model()
    small = type(masked).from_pretrained(tmp_path / "small")
    assert found["parameters"] == {"before": masked.num_parameters(), "after": small.num_parameters()}
    assert found["bytes"]["after"] < found["bytes"]["before"]
    inputs = example_inputs(masked)
    assert torch.allclose(logits(small, inputs), logits(masked, inputs), rtol=0, atol=1e-5)


def test_dead_units_of_any_other_mask_go(tmp_path, capsys):
    large = model("LeNet")
    entries = {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in prunable(large).items()}
    first, second = entries
    entries[second][:, :5] = False  # five units of the first layer are not read
    entries[first][7, :] = False  # one more reads nothing, and sends a constant
    entries[first][:, ::3] = False
    Ticket.of(large, Mask(entries), Snapshot.capture(large)).save_pretrained(tmp_path / "ticket")
    masked = Ticket.from_pretrained(tmp_path / "ticket").build_model()
    found = shrink(capsys, tmp_path / "ticket", tmp_path / "small")
    (row,) = found["groups"].values()
    assert row["units"] == 20 and row["kept"] == 14
    small, inputs = type(masked).from_pretrained(tmp_path / "small"), example_inputs(masked)
    assert small.config.hidden_sizes == [14, 12]
    assert torch.allclose(logits(small, inputs), logits(masked, inputs), rtol=0, atol=1e-5)


def test_a_sparse_model_with_its_mask_loses_its_units(tmp_path, capsys):
    ticket = unit_ticket(model("ViT"))
    SparseModel.of(_masked(ticket), ticket.mask).save_pretrained(tmp_path / "model")
    found = shrink(capsys, tmp_path / "model", tmp_path / "small")
    assert found["loaded_by"] == "load_shrunk"
    masked, inputs = _masked(ticket), example_inputs(model("ViT"))
    assert torch.allclose(logits(load_shrunk(tmp_path / "small"), inputs), logits(masked, inputs), rtol=0, atol=1e-5)


def _masked(ticket):
    masked = model("ViT")
    ticket.mask.apply_(masked)
    return masked


def test_a_share_of_the_smallest_units_of_a_model_goes(tmp_path, capsys):
    model("Llama").save_pretrained(tmp_path / "model")
    options = ["--sparsity", "0.4", "--groups", "mlp", "--multiple", "8"]
    found = shrink(capsys, tmp_path / "model", tmp_path / "small", *options)
    assert all("mlp" in name and row["kept"] % 8 == 0 for name, row in found["groups"].items())
    assert sum(row["kept"] for row in found["groups"].values()) == 64  # of 96, in steps of 8


def test_the_table_names_what_was_kept_whole_and_why(tmp_path, capsys):
    model("BERT").save_pretrained(tmp_path / "model")
    options = ["--sparsity", "0.5", "--groups", "word_embeddings|intermediate"]
    assert main(["shrink", str(tmp_path / "model"), "--output", str(tmp_path / "small"), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    (stream,) = [line for line in lines if "word_embeddings" in line]
    cells = [cell.strip() for cell in stream.split("|")]
    assert cells[2] == cells[3] == "32" and len(cells[4]) > 10
    assert any(line.startswith("| parameters") for line in lines) and any("largest change" in line for line in lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "must be a ticket or a sparse model, or come with --sparsity"),
        (["--groups", "mlp"], "--groups must come with --sparsity"),
        (["--multiple", "8"], "--multiple must come with --sparsity"),
        (["--sparsity", "0.5", "--multiple", "7"], "multiple"),
        (["--sparsity", "1.5"], "sparsity"),
        (["--sparsity", "0.5", "--groups", "nothing"], "nothing"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path, capsys, options, message):
    model("LeNet").save_pretrained(tmp_path / "model")
    assert main(["shrink", str(tmp_path / "model"), "--output", str(tmp_path / "small"), *options]) in (1, 2)
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and message in error[0]
    assert not (tmp_path / "small").exists()


def test_a_structured_ticket_takes_no_sparsity(tmp_path, capsys):
    unit_ticket(model("LeNet")).save_pretrained(tmp_path / "ticket")
    assert main(["shrink", str(tmp_path / "ticket"), "--output", str(tmp_path / "small"), "--sparsity", "0.5"]) == 1
    assert "which says itself which units go" in capsys.readouterr().err


def test_what_was_cut_before_is_not_cut_again(tmp_path, capsys):
    first, small, second = (str(tmp_path / name) for name in ("first", "small", "second"))
    unit_ticket(model("ViT")).save_pretrained(first)
    assert shrink(capsys, first, small)["loaded_by"] == "load_shrunk"
    assert main(["shrink", small, "--output", second, "--sparsity", "0.5"]) == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and "which was cut before" in error[0]
    found, rest = cut(load_shrunk(small), sparsity=0.25)
    with pytest.raises(ValueError, match="must have the sizes of its configuration"):
        save_shrunk(found, second, large=rest["large"])
    assert not (tmp_path / "second").exists()


def test_the_tokenizer_of_a_plain_model_goes_along(tmp_path, capsys):
    model("BERT").save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    shrink(capsys, tmp_path / "model", tmp_path / "small", "--sparsity", "0.5")
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / name) for name in ("model", "small")]
    assert tokenizers[0]("a good film").input_ids == tokenizers[1]("a good film").input_ids == [6, 3, 5]
    (tmp_path / "model/tokenizer.json").write_text("[]")
    with pytest.warns(UserWarning, match="are left out"):
        shrink(capsys, tmp_path / "model", tmp_path / "again", "--sparsity", "0.5")
    assert not (tmp_path / "again/tokenizer.json").exists()


def test_nothing_is_written_over(tmp_path, capsys):
    model("LeNet").save_pretrained(tmp_path / "model")
    command = ["shrink", str(tmp_path / "model"), "--output", str(tmp_path / "model"), "--sparsity", "0.5"]
    assert main(command) == 1
    assert "must be saved where no model is" in capsys.readouterr().err
