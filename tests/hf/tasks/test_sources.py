"""Names on the command line: what is misspelled or out of reach is said at once, and never tried for minutes."""

import json

import pytest
from huggingface_hub import HfApi, constants, create_repo, upload_folder
from recipe_runs import ROOT
from small_task import vit
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from hf_lottery.hf.tasks.images import load_image_processor
from hf_lottery.hf.tasks.models import ModelArguments, load_network
from hf_lottery.hf.tasks.sources import check_data_set, check_model
from hf_lottery.storage.hub_mixin import HubError


@pytest.fixture
def no_loading(monkeypatch):
    """Fail where a loader of transformers is called, which would ask the Hub again and again."""

    def load(*args, **kwargs):
        raise AssertionError("the name must be checked first")

    for kind in (AutoConfig, AutoImageProcessor, AutoModelForImageClassification):
        monkeypatch.setattr(kind, "from_pretrained", load)


@pytest.fixture
def nobody(hub, monkeypatch):
    """A Hub that does not answer."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")


@pytest.mark.parametrize("option", ["config_name", "model_name_or_path"])
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("recipes/digits/confg.json", "Near names in .*: config.json"),
        ("recipes/digitz/config.json", "Check the name"),
        ("/no/where", "Check the name"),
        ("../qzvwkj", "Check the name"),
        ("a/b/c", "Check the name"),
        ("two words", "Check the name"),
    ],
)
@pytest.mark.usefixtures("no_loading", "nobody")
def test_a_misspelled_path_is_said_before_the_hub_is_asked(option, name, hint, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(FileNotFoundError, match=rf"{option} must be a file, a folder, or .*'{name}', which.*{hint}"):
        ModelArguments(**{option: name}).load_config()


@pytest.mark.usefixtures("no_loading")
def test_a_model_that_the_hub_does_not_have(hub):
    for load in (
        lambda: check_model("alice/vitt", "config_name"),
        lambda: load_network("vitt", "image-classification"),
    ):
        with pytest.raises(FileNotFoundError, match=r"vitt', which is not on this disk\..* that you may read"):
            load()


@pytest.mark.usefixtures("no_loading", "nobody")
def test_a_hub_out_of_reach_is_not_a_missing_model(monkeypatch):
    monkeypatch.chdir(ROOT)
    loads = [
        lambda: ModelArguments(config_name="recipes/digitz").load_config(),
        lambda: load_network("alice/vit", "image-classification"),
        lambda: load_image_processor("alice/vit", {"revision": "main"}),
    ]
    for load in loads:
        with pytest.raises(HubError, match="Check the connection"):
            load()
    with pytest.raises(HubError, match="Near names in recipes: digits"):
        loads[0]()


def test_an_image_processor_is_absent_only_if_the_hub_says_so(hub, tmp_path, caplog):
    create_repo("vit")
    vit(0).config.save_pretrained(tmp_path)
    upload_folder(repo_id="alice/vit", folder_path=tmp_path)
    assert load_image_processor("alice/vit", {"revision": "main"}) is None
    assert "no image processor" in caplog.text


def test_a_folder_or_file_that_is_no_configuration_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="config_name must be a folder with a config.json; received"):
        ModelArguments(config_name=str(tmp_path)).load_config()
    for content in ({"model_type": "nonsense"}, [1], {"model_type": "vit", "hidden_size": "x"}):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="must be the configuration of a known model; received"):
            ModelArguments(config_name=str(tmp_path / "config.json")).load_config()


@pytest.mark.usefixtures("nobody")
def test_a_data_set_out_of_reach_is_said_at_once_unless_it_was_downloaded(tmp_path):
    with pytest.raises(HubError, match="received 'digitz'. Did you mean digits. The Hub must"):
        check_data_set("digitz", ["digits", "mnist1d"], tmp_path)
    (tmp_path / "alice___words").mkdir()
    check_data_set("alice/words", ["digits"], tmp_path)


def test_a_data_set_that_the_hub_does_not_have(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name, timeout: self.model_info(name))
    with pytest.raises(ValueError, match="received 'alice/words'. The Hub has no such data set"):
        check_data_set("alice/words", ["digits"], tmp_path)
