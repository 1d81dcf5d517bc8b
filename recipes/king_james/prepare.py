"""Write the King James Bible as data for the recipes: text for language models, and verses with the kind of their book.

    apt-get install bible-kjv bible-kjv-text
    python recipes/king_james/prepare.py outputs/king_james

``verses/{train,test}.txt`` has a verse on each line. ``books/{train,test}.csv`` has columns ``text`` and ``label``:
law, history, poetry, prophets, gospels (with Acts) or letters (with Revelation). Every tenth chapter of a book, from
the fifth on, belongs to the test split, so that the neighbours of a test verse are not in the training split.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
from pathlib import Path

COMMAND = ["bible", "-f", "gen1:1-rev22:21"]  # prints a verse on each line: "Ge1:1 In the beginning ..."
KINDS = {
    "law": "Ge Exo Lev Num Deu",
    "history": "Josh Jdgs Ruth 1Sm 2Sm 1Ki 2Ki 1Chr 2Chr Ezra Neh Est",
    "poetry": "Job Psa Prv Eccl SSol",
    "prophets": "Isa Jer Lam Eze Dan Hos Joel Amos Obad Jonah Mic Nahum Hab Zep Hag Zec Mal",
    "gospels": "Mat Mark Luke John Acts",
    "letters": "Rom 1Cor 2Cor Gal Eph Phi Col 1Th 2Th 1Tim 2Tim Titus Phmn Heb Jas 1Pet 2Pet 1Jn 2Jn 3Jn Jude Rev",
}
KIND_OF = {book: kind for kind, books in KINDS.items() for book in books.split()}
_VERSE = re.compile(r"(\d?[A-Za-z]+)(\d+):(\d+) (.+)")


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="Folder to write to.")
    folder = parser.parse_args().folder
    try:
        text = subprocess.run(COMMAND, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError as error:
        raise SystemExit(
            "the program `bible` must be installed; run `apt-get install bible-kjv bible-kjv-text`."
        ) from error
    write(folder, text)


def write(folder: Path, text: str) -> None:
    """Write the four files.

    Args:
        folder: The folder to write ``verses`` and ``books`` to.
        text: A verse on each line, after its book, chapter and number.

    Raises:
        ValueError: A line is not a verse, or its book is not known.
    """
    splits: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for line in text.splitlines():
        found = _VERSE.fullmatch(line)
        if found is None or found[1] not in KIND_OF:
            raise ValueError(f"a line must be a verse of a known book, as `Ge1:1 In the`; received {line[:40]!r}.")
        splits["test" if int(found[2]) % 10 == 5 else "train"].append((found[4], KIND_OF[found[1]]))
    for kind in ("verses", "books"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for split, verses in splits.items():
        (folder / f"verses/{split}.txt").write_text("".join(f"{verse}\n" for verse, _ in verses))
        with (folder / f"books/{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *verses])


if __name__ == "__main__":
    main()
