"""The files of a ticket beside its mask: nobody's code is run, types are checked, and edits by hand are found."""

import json
import shutil

import pytest
from sealed_files import change
from small_tickets import ticket
from transformers import ViTConfig

from hf_lottery import MaskFileError, Ticket
from hf_lottery.hf.commands.main import main
from hf_lottery.hf.hub.model_config import check_no_kernels

CODE = {"auto_map": {"AutoConfig": "someone/else--code.Config", "AutoModel": "code.Model"}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "t"
    history = [{"level": 0, "sparsity": 0.5, "metrics": {"eval_accuracy": 0.5, "eval_loss": float("nan")}}]
    ticket(level=0, history=history, base_model={"id": "org/base", "revision": None}).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "t")


@pytest.fixture(autouse=True)
def no_question(monkeypatch):
    def fail(*_):
        raise AssertionError("asked on the terminal whether to run code")

    monkeypatch.setattr("builtins.input", fail)
    monkeypatch.setattr("transformers.dynamic_module_utils.get_class_from_dynamic_module", fail)


def set_model_config(folder, function, *, stated=True):
    """Change config.json as an attacker would, who makes the checksums fit; or else as somebody with an editor."""
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(function(values)))
    if stated:
        version_1 = ("model_config_sha256", "text_sha256")
        change(
            folder / "mask_config.json",
            lambda config: {**{k: v for k, v in config.items() if k not in version_1}, "format_version": 1},
        )


def test_what_is_saved_is_loaded(saved):
    found = Ticket.from_pretrained(saved)
    assert isinstance(found.model_config, ViTConfig) and found.model_config._name_or_path == "org/base"
    saved_too = {"_name_or_path": "", "architectures": ["ViTForImageClassification"], "dtype": "float32"}
    assert found.model_config.to_diff_dict() | saved_too == ticket().model_config.to_diff_dict() | saved_too


@pytest.mark.parametrize("kind", ["not_known", "", None, 3, ["vit"], {"a": 1}, "x" * 60_000])
def test_an_unknown_model_type_is_refused_without_a_question(folder, kind):
    set_model_config(folder, lambda values: {**values, **CODE, "model_type": kind})
    with pytest.raises(MaskFileError, match="must name a model_type that transformers knows.*never run") as raised:
        Ticket.from_pretrained(folder)
    assert len(str(raised.value)) < 600


def test_code_of_a_known_model_type_is_left_out(folder):
    kernel = {"_attn_implementation": "someone/kernel", "attn_implementation": "someone/kernel@main:x"}
    elsewhere = {"configuration_files": ["config.1.0.0.json"], **kernel, **CODE}
    set_model_config(folder, lambda values: {**values, **elsewhere, "nested": {**elsewhere, "depth": 1}})
    found = Ticket.from_pretrained(folder).model_config
    assert found._attn_implementation is None and found.nested == {"depth": 1}
    assert not any(hasattr(found, name) for name in ("auto_map", "configuration_files"))


def test_a_kernel_of_a_repository_is_code():
    for config in ({"text_config": {"_attn_implementation": "a/b"}}, ViTConfig(attn_implementation="a/b:c")):
        with pytest.raises(ValueError, match="must not name code of a repository; received .*attn_implementation"):
            check_no_kernels(config, "org/model")
    check_no_kernels(ViTConfig(attn_implementation="sdpa"), "org/model")


def test_a_configuration_edited_by_hand_is_refused(folder):
    set_model_config(folder, lambda values: {**values, "layer_norm_eps": 1e-6}, stated=False)
    with pytest.raises(
        MaskFileError, match=r"must be as the ticket was saved.*load the ticket, change ticket\.model_c"
    ):
        Ticket.from_pretrained(folder)


def test_newlines_of_another_system_are_no_edit(folder, saved):
    for name in ("config.json", "mask_config.json"):
        (folder / name).write_bytes((folder / name).read_bytes().replace(b"\n", b"\r\n"))
    assert Ticket.from_pretrained(folder).mask == Ticket.from_pretrained(saved).mask


def test_a_configuration_that_its_class_refuses(folder):
    set_model_config(folder, lambda values: {**values, "hidden_size": "wide", "id2label": 3})
    with pytest.raises(MaskFileError, match="must be a configuration of vit; received one that fails"):
        Ticket.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "[" * 10**5, '{"a": ' * 70 + "1" + "}" * 70, '{"model_type": "vit"} x', "[]"])
def test_a_configuration_that_is_no_json(folder, text):
    set_model_config(folder, lambda values: values)
    (folder / "config.json").write_text(text)
    with pytest.raises(MaskFileError, match=r"config\.json must (be JSON|hold a JSON object|hold values at most)"):
        Ticket.from_pretrained(folder)


def test_a_configuration_that_is_lost(folder):
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"the ticket must hold config\.json"):
        Ticket.from_pretrained(folder)


@pytest.mark.parametrize(
    "wrong",
    [
        {"level": "2"}, {"level": True}, {"settings": []}, {"architecture": 3}, {"base_model": 3}, {"parents": "a"},
        {"base_model": {"id": 3}}, {"permutation": "p"}, {"history": {}}, {"history": [3]},
        {"history": [{"level": 0, "sparsity": 2, "metrics": {}}]},
        {"history": [{"level": 0, "sparsity": float("nan"), "metrics": {}}]},
        {"history": [{"level": 0, "sparsity": 0.5, "metrics": {"eval_accuracy": "good"}}]},
    ],
)  # fmt: skip
def test_info_of_other_types_is_refused(folder, wrong):
    with pytest.raises(ValueError, match="in the info of a ticket must"):
        ticket(**wrong)
    change(folder / "mask_config.json", lambda config: {**config, "info": wrong})
    with pytest.raises(MaskFileError, match=r"mask_config\.json: .* in the info of a ticket must .*; received"):
        Ticket.from_pretrained(folder)


def test_info_that_no_reader_would_take_is_not_saved(tmp_path):
    deep: dict = {}
    for _ in range(70):
        deep = {"a": deep}
    for info, message in (
        (deep, "at most 64 deep"),
        ({"a": "x" * 10**5}, "65,536 char"),
        ({1: 0, "1": 0}, "'1' twice"),
    ):
        with pytest.raises(ValueError, match=message):
            ticket(notes=info).save_pretrained(tmp_path / "t")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["model_config_sha256", "file_sha256"])
def test_a_checksum_that_is_lost(folder, key):
    def lose(config):
        config["rewind"].pop(key, None)
        config.pop(key, None)
        return config

    change(folder / "mask_config.json", lose)
    with pytest.raises(MaskFileError, match=f"must state {key} as a text; received None"):
        Ticket.from_pretrained(folder)


@pytest.mark.parametrize(
    "values", [{"sha256": 3}, {"seed": "3"}, {"seed": True}, {"revision": 3}, {"step": 0.0}, {"other": 1}, {"kind": []}]
)
def test_a_reference_of_other_types(folder, values):
    stated = {"by": "reference", "kind": "seed", "seed": 3, "sha256": "0" * 64, **values}
    change(folder / "mask_config.json", lambda config: {**config, "rewind": stated})
    with pytest.raises(MaskFileError, match="rewind must be a reference to weights"):
        Ticket.from_pretrained(folder)


def test_inspect_says_in_one_line_what_is_wrong_with_info(folder, capsys):
    for wrong in ({"history": [3]}, {"history": {"a": 1}}, {"level": [0]}):
        change(folder / "mask_config.json", lambda config, wrong=wrong: {**config, "info": wrong})
        assert main(["inspect", str(folder)]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1
