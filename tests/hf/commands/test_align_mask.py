"""align_mask: the mask of a ticket carried over to the network of another seed."""

import pytest
from recipe_runs import DIGITS, SMALL

from hf_lottery import Mask, Permutation, PermutationSpec
from hf_lottery.alignment.match import Match
from hf_lottery.hf.commands import align_mask, train_ticket
from hf_lottery.masks.config import read_config


@pytest.mark.parametrize("method", [None, pytest.param("activation", marks=pytest.mark.slow)])
def test_align_and_train_the_permuted_mask(run, digits_search, tmp_path, method):
    """The training of the alignment paper, by hand: another seed, its dense network, the mask carried over."""
    ticket = digits_search[0] / "ticket"
    common_flags, dense = [*SMALL, "--ticket", ticket], tmp_path / "dense"
    run(train_ticket, *common_flags, "--init", "seed:7", "--mask", "none", "--output_dir", dense)
    out = run(
        align_mask, *DIGITS, "--ticket", ticket, "--target_model", dense, "--output_dir",
        tmp_path / "aligned", *([] if method is None else ["--method", method, "--match_batches", 2]),
    )  # fmt: skip
    aligned, mask = Mask.from_pretrained(tmp_path / "aligned"), Mask.from_pretrained(ticket)
    assert aligned != mask and aligned.layer_sparsities() == mask.layer_sparsities()
    origin = read_config(tmp_path / "aligned/mask_config.json")["info"]["permutation"]
    assert origin["method"] == (method or "weight")
    spec = PermutationSpec.load(tmp_path / "aligned/permutation/permutation_spec.json")
    found = Match.from_pretrained(tmp_path / "aligned/permutation", spec)
    assert found.permutation == Permutation.from_pretrained(tmp_path / "aligned/permutation", spec)
    assert found.permutation(mask) == aligned
    assert f"{found.report}\n\noverlap with the mask before: {aligned.overlap(mask).iou:.3f}" in out
    assert (tmp_path / "aligned/match.csv").read_text().count("\n") > len(found.report.groups) > 3
    run(
        train_ticket, *common_flags, "--init", f"checkpoint:{dense}", "--mask", "aligned", "--aligned",
        tmp_path / "aligned", "--output_dir", tmp_path / "permuted",
    )  # fmt: skip
    assert Mask.from_pretrained(tmp_path / "permuted") == aligned


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "luck"], "method must be one of weight, activation; received 'luck'"),
        (["--match_batches", "0"], "match_batches must be at least 1; received 0"),
    ],
)
def test_bad_command_lines(run, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(align_mask, *DIGITS, "--ticket", "x", "--target_model", "x", *arguments)
    assert message in capsys.readouterr().err
