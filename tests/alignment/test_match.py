"""Match: permutation and report are saved and pushed together, print in a few lines, and refuse bad files."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hand_made import network, unrelated
from sealed_files import sealed

from hf_lottery.alignment.match import Match
from hf_lottery.alignment.match_report import GroupMatch, MatchReport
from hf_lottery.alignment.matching import activation_matching, weight_matching
from hf_lottery.symmetry.errors import SpecMismatchError, SymmetryError
from hf_lottery.symmetry.permutation import Permutation


@pytest.fixture
def found():
    source, target, spec, _ = unrelated("gqa")
    return weight_matching(spec, source=source, target=target)


def test_permutation_and_report_survive_saving(found, tmp_path):
    spec = found.permutation.spec
    found.save_pretrained(tmp_path / "match")
    assert Match.from_pretrained(tmp_path / "match", spec) == found
    assert Match.from_pretrained(tmp_path, spec, subfolder="match").report == found.report
    assert Permutation.from_pretrained(tmp_path / "match", spec) == found.permutation
    assert [path.name for path in tmp_path.iterdir()] == ["match"]  # nothing half-written stays
    names = {"match_report.json", "permutation.safetensors", "permutation_config.json", "permutation_spec.json"}
    assert {path.name for path in (tmp_path / "match").iterdir()} == names


def test_activations_then_weights_give_one_report(tmp_path):
    """Stacked experts are matched by weights, after what activations tell."""
    source, target, spec, x = unrelated("experts")
    found = activation_matching(spec, source=source, target=target, batches=[x], residual=True)
    assert found.report.groups.keys() == {name for name, group in spec.free.items() if group.size > 1}
    found.save_pretrained(tmp_path)
    assert Match.from_pretrained(tmp_path, spec) == found


def test_permutation_and_report_survive_the_hub(found, hub):
    spec = found.permutation.spec
    assert "alice/found" in found.push_to_hub("alice/found", subfolder="seed-4")
    assert Match.from_pretrained("alice/found", spec, subfolder="seed-4") == found
    assert Permutation.from_pretrained("alice/found", spec, subfolder="seed-4") == found.permutation
    card = hub.repos["alice/found"].files("main")["seed-4/README.md"].decode()
    assert "from hf_lottery.alignment import Match" in card
    assert 'Match.from_pretrained("alice/found", subfolder="seed-4", spec=spec)' in card and "matched" in card
    found.permutation.push_to_hub("alice/alone")
    with pytest.raises(FileNotFoundError, match=r"alice/alone must hold match_report\.json"):
        Match.from_pretrained("alice/alone", spec)


def test_a_folder_without_a_report_holds_no_match(found, tmp_path):
    found.permutation.save_pretrained(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"must hold match_report\.json; received .*Permutation\.from_pretrained"
    ):
        Match.from_pretrained(tmp_path, found.permutation.spec)


def test_a_match_of_another_spec_is_refused(found, tmp_path):
    found.save_pretrained(tmp_path)
    with pytest.raises(SpecMismatchError, match="must be of the given spec"):
        Match.from_pretrained(tmp_path, network("mlp")[1])


def test_a_report_of_another_permutation_is_refused(found, tmp_path):
    found.save_pretrained(tmp_path)
    found.permutation.spec.random(0).save_pretrained(tmp_path)
    with pytest.raises(SymmetryError, match=r"must have the sha256 that match_report\.json states"):
        Match.from_pretrained(tmp_path, found.permutation.spec)
    found.save_pretrained(tmp_path)
    assert Match.from_pretrained(tmp_path, found.permutation.spec) == found


def with_group(data, **fields):
    return {**data, "groups": {**data["groups"], "qd": {**data["groups"]["qd"], **fields}}}


DAMAGE = {
    "no JSON": (lambda data: "[", "must be JSON"),
    "too deep": (lambda data: "[" * 100_000, "must be JSON"),
    "a list": (lambda data: "[]", "must hold a JSON object; received list"),
    "newer": (lambda data: {**data, "format_version": 3}, "format_version must be at most 2; received 3"),
    "no checksum": (lambda data: {**data, "permutation_sha256": 1}, "permutation_sha256 must be a str; received 1"),
    "no groups": (lambda data: {**data, "groups": []}, "groups must be a dict"),
    "a word": (lambda data: {**data, "converged": "yes"}, "converged must be a bool; received yes"),
    "no objective": (lambda data: {**data, "objective": []}, "objective must hold finite numbers"),
    "infinite": (lambda data: {**data, "objective": [math.inf]}, "objective must hold finite numbers"),
    "huge": (lambda data: {**data, "objective": [10**400]}, "objective must hold finite numbers"),
    "a truth": (lambda data: {**data, "objective": [True]}, "objective must hold finite numbers"),
    "another group": (lambda data: {**data, "groups": {"other": {}}}, "a group must be in the spec; received 'other'"),
    "an empty group": (lambda data: {**data, "groups": {"qd": {}}}, "group 'qd' must have the finite numbers size"),
    "no group": (lambda data: {**data, "groups": {"qd": None}}, "group 'qd' must have the finite numbers size"),
    "a stranger's field": (lambda data: with_group(data, other=1), "group 'qd' must have the finite numbers size"),
    "text": (lambda data: with_group(data, matched="0.5"), "group 'qd' must have the finite numbers size"),
    "no number": (lambda data: with_group(data, matched=math.nan), "group 'qd' must have the finite numbers size"),
    "another size": (lambda data: with_group(data, size=13), "group 'qd' must have .* a size of 12"),
    "too many moved": (lambda data: with_group(data, moved=1.5), "moved and dead within their bounds"),
    "too many dead": (lambda data: with_group(data, dead=13), "moved and dead within their bounds"),
    "half a unit": (lambda data: with_group(data, dead=0.5), "moved and dead within their bounds"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_report_is_refused(found, tmp_path, damage):
    found.save_pretrained(tmp_path)
    path = tmp_path / "match_report.json"
    change, message = DAMAGE[damage]
    changed = change(json.loads(path.read_text()))
    path.write_bytes(changed.encode() if isinstance(changed, str) else sealed(changed))
    with pytest.raises(SymmetryError, match=message):
        Match.from_pretrained(tmp_path, found.permutation.spec)
    assert Permutation.from_pretrained(tmp_path, found.permutation.spec) == found.permutation


def test_a_report_of_any_length_is_not_read(found, tmp_path):
    found.save_pretrained(tmp_path)
    with open(tmp_path / "match_report.json", "ab") as file:
        file.truncate(2**24 + 1)
    with pytest.raises(SymmetryError, match="must be at most 16,777,216 bytes; received 16,777,217"):
        Match.from_pretrained(tmp_path, found.permutation.spec)


def test_a_match_prints_in_a_few_lines(found):
    lines = repr(found).splitlines()
    assert lines[0].startswith("Match(Permutation(")
    assert lines[1].startswith("MatchReport(") and lines[1].endswith(", converged)")
    assert lines[2].split() == ["group", "size", "matched", "identity", "random", "chance", "moved", "dead"]
    assert len(lines) == 3 + len(found.report.groups) and lines[3].split()[0] in found.report.groups
    html = found._repr_html_()
    assert html.count("<tr>") == 1 + len(found.report.groups) and "converged" in html and "Permutation(" in html


def test_a_long_report_is_cut_and_html_is_escaped():
    one = GroupMatch(7, 0.91234, 0.1, 0.0, 0.5, 3)
    report = MatchReport({f"<b>{i}": one for i in range(23)}, (0.0, 1.0, 2.0), False)
    lines = repr(report).splitlines()
    assert lines[0] == "MatchReport(groups: 23, sweeps: 2, not converged)"
    assert lines[2].split() == ["<b>0", "7", "0.912", "0.100", "0.000", "-", "50%", "3"]
    assert len(lines) == 23 and lines[-1] == "... and 3 more"
    html = report._repr_html_()
    assert "&lt;b&gt;0" in html and "<b>" not in html and "and 3 more" in html


def test_a_match_is_immutable(found):
    with pytest.raises(AttributeError):
        found.report = None
    other = replace(found, report=replace(found.report, converged=not found.report.converged))
    assert other != found and found == replace(found)
    assert found != SimpleNamespace(permutation=found.permutation, report=found.report)
