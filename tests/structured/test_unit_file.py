"""Damaged and hostile units in the config of a mask file."""

import base64

import pytest
import torch
from hand_made import network
from sealed_files import change

from hf_lottery import Mask, MaskFileError
from hf_lottery.structured import UnitMask


@pytest.fixture
def folder(tmp_path):
    _, spec, _ = network("gqa")
    kept = torch.tensor([[True, False, True, True, False]] * 3)
    UnitMask({"vd": kept}, spec).save_pretrained(tmp_path, info={"seed": 3})
    return tmp_path


def put(value, *place):
    def at(config):
        inner = config
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        return config

    return at


def bits(*values):
    return base64.b64encode(bytes(values)).decode()


GROUP = ("units", "groups", "vd")
CASES = {
    "list": (put([], "units"), "units must have a spec and groups"),
    "null": (put(None, "units"), "units must have a spec and groups"),
    "no groups": (put({}, "units", "groups"), "units must have a spec and groups"),
    "spec": (put(3, "units", "spec"), "units must have a spec and groups"),
    "group": (put(3, *GROUP), "'vd' must have a shape of sizes"),
    "no shape": (put([], *GROUP, "shape"), "'vd' must have a shape of sizes"),
    "bool": (put([True, 5], *GROUP, "shape"), "'vd' must have a shape of sizes"),
    "zero": (put([3, 0], *GROUP, "shape"), "'vd' must have a shape of sizes"),
    "many sizes": (put([1] * 65, *GROUP, "shape"), "'vd' must have a shape of sizes"),
    "huge": (put([2**30] * 60, *GROUP, "shape"), "bytes of bits; received 2"),
    "other shape": (put([3, 6], *GROUP, "shape"), "must have 3 bytes of bits; received 2"),
    "transposed": (put([5, 3], *GROUP, "shape"), "must keep 9, as many in every row"),
    "text": (put("no base64!", *GROUP, "bits"), "must have bits in base64"),
    "number": (put(12, *GROUP, "bits"), "must have bits in base64|bytes of bits"),
    "lost": (put(None, *GROUP, "bits"), "must have bits in base64|bytes of bits"),
    "kept": (put(8, *GROUP, "kept"), "must keep 8"),
    "rows": (put(bits(0b11111111, 0b00000001), *GROUP, "bits"), "must keep 9, as many in every row"),
    "nothing": (put(bits(0, 0), *GROUP, "bits"), "must keep 9"),
    "padding": (put(bits(0b10101101, 0b10110101), *GROUP, "bits"), "no bit after the last"),
}


@pytest.mark.parametrize("case", CASES)
def test_damaged_units_are_refused(folder, case):
    damage, message = CASES[case]
    before = Mask.from_pretrained(folder)
    change(folder / "mask_config.json", damage)
    with pytest.raises(MaskFileError, match=message):
        UnitMask.from_pretrained(folder)
    assert Mask.from_pretrained(folder) == before  # a reader of masks alone does not look at units


def test_good_units_are_read(folder):
    mask = UnitMask.from_pretrained(folder)
    assert mask.units["vd"].tolist() == [[True, False, True, True, False]] * 3
    change(folder / "mask_config.json", put(bits(0b10101101, 0b00110101), *GROUP, "bits"))
    assert UnitMask.from_pretrained(folder).units["vd"].sum(dim=1).tolist() == [3, 3, 3]


def test_a_mask_without_units_and_levels_are_refused(folder, tmp_path):
    Mask(dict(UnitMask.from_pretrained(folder))).save_pretrained(tmp_path / "plain")
    with pytest.raises(MaskFileError, match="must hold units; received a mask without"):
        UnitMask.from_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="level must be None, as only the last one has units; received 1"):
        UnitMask.from_pretrained(folder, level=1)
