"""Good mask files to damage, and a bound on the memory that their readers take."""

import resource

import pytest
from damaged_masks import good_files


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return good_files(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def bounded_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 * 1024, f"a case took gigabytes that no Python allocator knows of: {grown} KiB more"
