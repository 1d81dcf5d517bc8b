"""Names of parameters, layers and groups are chosen by regular expression in one way."""

import pytest

from hf_lottery.networks.selection import near_names, select_names

NAMES = ["conv.weight", "fc.weight", "fc.bias", "head.fc.weight"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, NAMES),
        ({"default": ["fc.bias"]}, ["fc.bias"]),
        ({"default": ["fc.bias"], "include": "conv"}, ["conv.weight"]),
        ({"include": "weight"}, ["conv.weight", "fc.weight", "head.fc.weight"]),
        ({"include": ["bias", "^conv"]}, ["conv.weight", "fc.bias"]),
        ({"include": "weight", "exclude": ["^head", "conv"]}, ["fc.weight"]),
        ({"exclude": ".*"}, []),
        ({"include": "x", "optional": True}, []),
    ],
)
def test_names_are_chosen_in_their_own_order(options, expected):
    assert select_names(NAMES, **options) == expected


def test_a_full_name_selects_only_itself():
    assert select_names(NAMES, include="fc.weight") == ["fc.weight"]
    assert select_names(["a(0", "ba(0"], include="a(0") == ["a(0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": ""}, "include must be a regular expression; received an empty one"),
        ({"exclude": ["fc", ""]}, "exclude must be a regular expression; received an empty one"),
        ({"include": "("}, r"include must be a valid regular expression; received '\('"),
        ({"include": ["fc", "fcc"]}, "must match the name of a layer; received 'fcc', .*Near names: fc"),
        ({"include": "x", "hint": lambda pattern: f"Try {pattern}y."}, "Try xy."),
    ],
)
def test_patterns_that_choose_nothing(options, message):
    class OurError(ValueError):
        pass

    with pytest.raises(OurError, match=message):
        select_names(NAMES, what="a layer", error=OurError, **options)


def test_near_names():
    assert near_names("zzzz", NAMES) == "The names are like 'conv.weight'."
    assert near_names("zzzz", []) == "The names are like 'none'."
