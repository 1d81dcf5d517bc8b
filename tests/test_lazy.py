"""Names that are imported when they are first used: an old one works, warns where it is read, and is not listed."""

import sys
from types import ModuleType

import pytest

from hf_lottery import Mask
from hf_lottery.connectivity import error_barrier
from hf_lottery.lazy import lazy_names


@pytest.fixture
def package(monkeypatch):
    """A package with two names that were replaced, one of them by a name of another package."""
    made = ModuleType("hf_lottery.made")
    made.__path__, made.__all__ = [], ["new"]
    deprecated = {"OldMask": "hf_lottery.Mask", "line": "hf_lottery.connectivity.error_barrier"}
    made.__getattr__, made.__dir__ = lazy_names("hf_lottery.made", {}, deprecated=deprecated)
    monkeypatch.setitem(sys.modules, "hf_lottery.made", made)
    return made


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [("OldMask", "hf_lottery.Mask", Mask), ("line", "hf_lottery.connectivity.error_barrier", error_barrier)],
)
def test_an_old_name_works_and_says_what_to_use(package, old, new, value):
    message = rf"^hf_lottery\.made\.{old} will be removed in the next minor release: use {new} instead\.$"
    for _ in range(2):  # the second reader is told too
        with pytest.warns(DeprecationWarning, match=message) as found:
            assert getattr(package, old) is value
        assert found[0].filename == __file__


def test_the_line_that_imports_an_old_name_is_told(package):
    with pytest.warns(DeprecationWarning, match="use hf_lottery.Mask instead") as found:
        from hf_lottery.made import OldMask  # type: ignore
    assert OldMask is Mask
    assert {warning.filename for warning in found} == {__file__}


def test_an_old_name_is_not_listed(package):
    assert dir(package) == ["new"]


def test_other_names_are_as_absent_as_before(package):
    with pytest.raises(AttributeError, match=r"^module 'hf_lottery\.made' has no attribute 'gone'$"):
        _ = package.gone
