"""Random mutations of the files of tickets, masks, permutations, matches and specs, and what a reader must do then.

``python tests/support/mutations.py 1000 SEED`` prints how many were refused, and how many gave the same object;
``old`` as a third word mutates files of version 1, which have no checksums.
"""

import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from hand_made import unrelated
from safetensors import safe_open
from small_task import vit
from small_tickets import mask, ticket

from hf_lottery import MaskFileError, SignedMask, Snapshot, Ticket
from hf_lottery.alignment.match import Match
from hf_lottery.alignment.matching import weight_matching
from hf_lottery.hf.hub.reference import Reference
from hf_lottery.masks.mask_series import MaskSeries
from hf_lottery.symmetry.errors import SymmetryError
from hf_lottery.symmetry.permutation import Permutation
from hf_lottery.symmetry.spec import PermutationSpec

VALUES = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1", "0", "1", "2", "1.0", "true", "null", '""', "[]", "{}", '"\\u0000"',
    '"\\ud800"', "9" * 5000, str(2**63), str(2**40), "1e400", '"' + "x" * 10**6 + '"', "[" * 10**5, "[" * 90 + "]" * 90,
    '{"a":' * 300 + "0" + "}" * 300, "[" + "0," * 400_000 + "0]", json.dumps({i: 0 for i in range(10**5)}),
    '"../../etc/passwd"', '"\U0001f600\u202e"', '{"auto_map": {"AutoConfig": "a/b--c.D"}}',
)  # fmt: skip


# --- mutations: functions of bytes and a random generator ------------------------------------------------------------
def flip(data, draw):
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def replace(data, draw):
    at = draw.randrange(len(data))
    return data[:at] + draw.randbytes(draw.choice((1, 1, 2, 8))) + data[at + 1 :]


def insert(data, draw):
    at = draw.randrange(len(data) + 1)
    piece = draw.choice((draw.randbytes(3), b"\0", b"\0" * 4096, "\u202e\U0001f600".encode(), b"\xff\xfe", b" ", b"\n"))
    return data[:at] + piece + data[at:]


def cut(data, draw):
    at = draw.randrange(len(data))
    return draw.choice((data[:at], data[at:], data[:at] + data[at + draw.choice((1, 2, 16)) :]))


def swap_pieces(data, draw):
    size = draw.choice((1, 2, 4, 16))
    a, b = sorted(draw.randrange(len(data)) for _ in "ab")
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


def append(data, draw):
    return data + draw.choice((b"\n", b" ", b"{}", b"\0", data, b"\0" * 10**7, b"[]" * 10**6))


def wrong_value(data, draw):
    """Put another value in the place of a JSON value."""
    places = list(re.finditer(rb'(?<=[:,\[ ])(-?\d[\d.eE+-]*|true|false|null|"[^"]*"(?!\s*:))(?=\s*[,\]}])', data))
    place = draw.choice(places)
    return data[: place.start()] + draw.choice(VALUES).encode() + data[place.end() :]


def swap_numbers(data, draw):
    places = list(re.finditer(rb"(?<=[:,\[ ])\d[\d.]*(?=\s*[,\]}])", data))
    a, b = sorted(draw.sample(places, 2), key=lambda place: place.start())
    return data[: a.start()] + b[0] + data[a.end() : b.start()] + a[0] + data[b.end() :]


def twice(data, draw):
    """Write a member of an object twice, the second time with another value."""
    members = list(re.finditer(rb'"[^"]*"\s*:\s*("[^"]*"|[\d.]+|true|false|null)', data))
    member = draw.choice(members)
    key = member[0].split(b":")[0]
    return data[: member.start()] + key + b": " + draw.choice(VALUES).encode() + b", " + data[member.start() :]


def lose(data, draw):
    """Take a member out of an object."""
    members = list(re.finditer(rb'"[^"]*"\s*:\s*("[^"]*"|[\d.]+|true|false|null),?', data))
    member = draw.choice(members)
    return data[: member.start()] + data[member.end() :]


def written_again(data, draw):
    """Load the JSON, change one member, and write it again, as a script would."""
    values = json.loads(data)
    at, key = values, draw.choice(list(values))
    while isinstance(at[key], dict) and at[key] and draw.random() < 0.8:
        at, key = at[key], draw.choice(list(at[key]))
    change = draw.randrange(3)
    if change == 0:
        del at[key]
    elif change == 1:
        at[key] = draw.choice((None, 1, -1, 2**70, 0.5, "", [], {}, True, float("nan")))
    return json.dumps(values, indent=draw.choice((None, 1, 2))).encode()


def header(data, draw):
    """Change the length in front of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    other = draw.choice((0, 1, length - 1, length + 1, 2**20, 10**8, 2**40, 2**63, 2**64 - 1))
    return other.to_bytes(8, "little") + data[8:]


def within_header(data, draw):
    """Change a value in the header of a safetensors file, and its length with it."""
    end = 8 + int.from_bytes(data[:8], "little")
    change = draw.choice((wrong_value, swap_numbers, twice, lose, other_dtype))
    head = change(data[8:end], draw)
    return len(head).to_bytes(8, "little") + head + data[end:]


def other_dtype(data, draw):
    dtypes = (b"F32", b"I32", b"U32", b"BF16", b"F16", b"I64", b"U8", b"BOOL", b"F8_E4M3", b"F4", b"C64", b"X")
    return re.sub(rb'(?<="dtype":")\w+', lambda _: draw.choice(dtypes), data, count=draw.choice((0, 1)))


BYTES = (flip, flip, replace, insert, cut, swap_pieces, append)
MUTATIONS = {
    ".json": (*BYTES, wrong_value, wrong_value, swap_numbers, twice, lose, written_again, written_again),
    ".safetensors": (*BYTES, header, within_header, within_header),
    ".md": (flip, cut),
}


# --- what is mutated -------------------------------------------------------------------------------------------------
def good_objects(root):
    """Kind -> (folder of a good object, function that loads one from a folder)."""
    source, target, spec, _ = unrelated("gqa")
    history = [{"level": n, "sparsity": n / 2, "metrics": {"eval_accuracy": 0.5, "eval_loss": 1.5}} for n in range(2)]
    full = ticket(level=1, history=history, settings={"seed": 3, "score": "magnitude"}, parents=["0" * 64])
    dense = {name: torch.ones_like(entry) for name, entry in full.mask.items()}
    series = MaskSeries([type(full.mask)(dense), full.mask])
    model = vit(0)
    start = Snapshot.capture(model)
    by_reference = Ticket(mask(), Reference("seed", start.sha256(), seed=0), {}, model.config)
    objects = {
        "ticket": (full, Ticket.from_pretrained),
        "series": (Ticket(full.mask, start, full.info, model.config, series), Ticket.from_pretrained),
        "reference": (by_reference, Ticket.from_pretrained),
        "signed": (SignedMask.from_model(model, full.mask, norms={}), SignedMask.from_pretrained),
        "permutation": (spec.random(0), lambda folder: Permutation.from_pretrained(folder, spec)),
        "match": (weight_matching(spec, source=source, target=target), lambda f: Match.from_pretrained(f, spec)),
        "spec": (Spec(spec), lambda folder: Spec(PermutationSpec.load(folder / "permutation_spec.json"))),
    }
    for kind, (thing, _) in objects.items():
        thing.save_pretrained(root / kind)
    return {kind: (root / kind, load) for kind, (_, load) in objects.items()}


class Spec:
    """A spec in a folder of its own."""

    def __init__(self, spec):
        self.spec = spec

    def save_pretrained(self, folder):
        folder.mkdir()
        self.spec.save(folder / "permutation_spec.json")


def without_checksums(values):
    """The values of a file of version 1, which had no checksum of its own text."""
    for key in ("text_sha256", "model_config_sha256"):
        values.pop(key, None)
    values.get("rewind", {}).pop("file_sha256", None)
    return values


def make_old(folder):
    """Write the files of an object again, as those of version 1."""
    for file in folder.glob("*.json"):
        values = without_checksums(json.loads(file.read_text()))
        file.write_text(json.dumps({**values, "format_version": 1} if "format_version" in values else values))


def content(thing):
    """All that the library would write for an object, but for checksums: two objects are equal if this is."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        thing.save_pretrained(Path(folder) / "x")
        for file in (Path(folder) / "x").glob("*.json"):
            found[file.name] = without_checksums(json.loads(file.read_text()))
            for key in ("sha256", "permutation_sha256"):  # a safetensors file has two orders of its metadata
                found[file.name].pop(key, None)
        for file in (Path(folder) / "x").glob("*.safetensors"):
            with safe_open(file, framework="pt") as opened:
                found[file.name] = (
                    opened.metadata(),
                    {
                        name: (tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).tolist())
                        for name in sorted(opened.keys())
                        for tensor in [opened.get_tensor(name)]
                    },
                )
    return found


def peak_rss():
    """The most memory that this process has taken since the last call, in bytes; 0 where Linux does not tell."""
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return int(found[1]) * 1024


# --- the trial -------------------------------------------------------------------------------------------------------
def measured(load, folder):
    """Load; return the object or the error, and seconds and bytes that it took."""
    peak_rss()
    before, begin = peak_rss(), time.process_time()
    try:
        outcome = load(folder)
    except Exception as error:
        outcome = error
    return outcome, time.process_time() - begin, peak_rss() - before


def mutate(folder, draw):
    """Mutate one file of a folder, and say how."""
    path = draw.choice(sorted(file for file in folder.iterdir() if file.suffix in MUTATIONS))
    change = draw.choice(MUTATIONS[path.suffix])
    path.write_bytes(change(path.read_bytes(), draw))
    return f"{change.__name__} of {path.name}"


def check_error(error, folder, what):
    assert isinstance(error, MaskFileError | SymmetryError), f"{what}: {error!r:.300}"
    text = str(error)
    clear = "must" in text and "received" in text and str(folder) in text and len(text) < 1000
    assert clear, f"{what}: {text:.2000}"


def try_mutations(count, *, seed=0, old=False):
    """Mutate files ``count`` times; return how many gave an error and how many an equal object, by kind.

    Old files have no checksums, so that a mutation may give another object. It costs no more time or memory.
    """
    draw, summary, slowest, most = random.Random(seed), Counter(), 0.0, 0
    with tempfile.TemporaryDirectory() as root:
        objects = good_objects(Path(root))
        for folder, _ in objects.values() if old else ():
            make_old(folder)
        needs, expected = {}, {}
        for kind, (folder, load) in objects.items():
            expected[kind] = content(load(folder))
            needs[kind] = measured(load, folder)[2]
        for number in range(count):
            kind = draw.choice(list(objects))
            good, load = objects[kind]
            folder = Path(root) / f"mutant-{number}"
            shutil.copytree(good, folder)
            what = f"{number}: {mutate(folder, draw)} of a {kind}"
            outcome, seconds, grown = measured(load, folder)
            assert seconds < 1, f"{what} took {seconds} s"
            assert grown < 64 * 2**20 + 2 * needs[kind], f"{what} took {grown >> 20} MiB"
            slowest, most = max(slowest, seconds), max(most, grown)
            if isinstance(outcome, Exception):
                check_error(outcome, folder, what)
            else:
                assert old or content(outcome) == expected[kind], f"{what}: another object"
            summary[kind, "errors" if isinstance(outcome, Exception) else "equal"] += 1
            shutil.rmtree(folder)
    return summary, slowest, most


def main():
    summary, slowest, most = try_mutations(int(sys.argv[1]), seed=int((*sys.argv, 0)[2]), old="old" in sys.argv)
    for kind in sorted({kind for kind, _ in summary}):
        print(f"{kind:<12} {summary[kind, 'errors']:>5} errors {summary[kind, 'equal']:>4} equal")
    total = {end: sum(n for (_, what), n in summary.items() if what == end) for end in ("errors", "equal")}
    print(f"all: {total['errors']} errors, {total['equal']} equal, 0 others", end="; ")
    print(f"slowest {slowest:.2f} s, most {most / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
