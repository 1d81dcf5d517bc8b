"""A package that is not installed is searched for once, not at every step."""

import sys

from accelerate.utils import is_lomo_available

from hf_lottery.hf.commands.launch import remember_absence


def test_an_absent_package_is_not_searched_for_again(monkeypatch):
    asked = []

    class Recorder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            asked.append(name)

    monkeypatch.delitem(sys.modules, "lomo_optim", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Recorder, *sys.meta_path])
    assert not is_lomo_available() and asked == ["lomo_optim"]
    remember_absence("lomo_optim")
    asked.clear()
    assert not is_lomo_available() and not is_lomo_available() and asked == []
    remember_absence("json")
    assert sys.modules["json"] is not None
