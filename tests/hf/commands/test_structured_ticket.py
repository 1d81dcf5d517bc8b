"""A structured ticket on the command line: it keeps its units when it is aligned, shuffled, drawn anew, and trained."""

import pytest
from recipe_runs import ROOT, SMALL, run_recipe

from hf_lottery.hf.commands import align_mask, find_ticket, train_ticket
from hf_lottery.hf.commands.catalogue import CATALOGUE
from hf_lottery.structured import UnitMask

LENET = [*SMALL, "--config_name", ROOT / "recipes/digits/lenet.json"]


@pytest.fixture(scope="module")
def ticket(tmp_path_factory):
    folder = tmp_path_factory.mktemp("structured") / "search"
    levels = ["--structured", "--structured_groups", "layers", "--sparsity", 0.5, "--pruning_fraction", 0.5]
    run_recipe(find_ticket, *LENET, "--rewind", "init", *levels, "--output_dir", folder)
    return folder / "ticket"


@pytest.mark.parametrize("which", ["shuffled", pytest.param("random", marks=pytest.mark.slow)])
def test_controls_draw_whole_units(run, ticket, tmp_path, which):
    out = run(train_ticket, *LENET, "--ticket", ticket, "--mask", which, "--seed", 3, "--output_dir", tmp_path)
    mask, control = UnitMask.from_pretrained(ticket), UnitMask.from_pretrained(tmp_path)
    assert f"mask={which}" in out
    assert control.kept_units == mask.kept_units and control.units.keys() == mask.units.keys()
    counts = [{group: int(kept.sum()) for group, kept in one.units.items()} for one in (mask, control)]
    assert control != mask and (counts[0] == counts[1]) == (which == "shuffled")


def test_an_aligned_mask_keeps_its_units(run, ticket, tmp_path):
    aligned, permuted = tmp_path / "aligned", tmp_path / "permuted"
    target = ["--target_model", ticket.parent / "level-01/trained"]
    run(align_mask, *LENET, "--ticket", ticket, *target, "--output_dir", aligned)
    mask, moved = UnitMask.from_pretrained(ticket), UnitMask.from_pretrained(aligned)
    assert {group: kept.sum() for group, kept in moved.units.items()} == {g: k.sum() for g, k in mask.units.items()}
    options = ["--init", "seed:7", "--mask", "aligned", "--aligned", aligned]
    run(train_ticket, *LENET, "--ticket", ticket, *options, "--output_dir", permuted)
    assert UnitMask.from_pretrained(permuted) == moved


def test_the_example_of_shrink_is_the_ticket_of_the_recipe():
    recipe = (ROOT / "recipes/digits/structured.yaml").read_text()
    (folder,) = [line.split()[1] for line in recipe.splitlines() if line.startswith("output_dir:")]
    assert any(f"{folder}/ticket " in example for example in CATALOGUE["shrink"].examples)
