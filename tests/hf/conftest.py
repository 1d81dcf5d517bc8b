"""Finished runs of the recipes that several tests look at; none of them changes what is there."""

import pytest
from recipe_runs import SEARCH, run_recipe, small_vit


@pytest.fixture
def run():
    """Run a command in this process: its module, then its arguments."""
    return run_recipe


@pytest.fixture(scope="session")
def digits_search(tmp_path_factory):
    """The folder of a search on digits, and what it printed."""
    from hf_lottery.hf.commands import find_ticket

    folder = tmp_path_factory.mktemp("digits") / "run"
    return folder, run_recipe(find_ticket, *SEARCH, "--output_dir", folder)


@pytest.fixture(scope="session")
def sign_search(tmp_path_factory):
    """The folder of a search for signs with a small transformer, what it printed, and its settings."""
    from hf_lottery.hf.commands import find_ticket

    parent = tmp_path_factory.mktemp("signs")
    settings = small_vit(parent)
    return parent / "run", run_recipe(find_ticket, *settings, "--output_dir", parent / "run"), settings
