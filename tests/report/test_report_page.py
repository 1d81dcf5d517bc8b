"""The page is checked without a browser: what it holds, and that it asks nobody for anything."""

import base64
from html.parser import HTMLParser

import pytest

from hf_lottery.report import Picture, Section, Table, write_report

HOSTILE = "</title><script>alert(1)</script>\"' onerror=x & <b>\x00\ud800"
SHOWN = HOSTILE.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Tags with their attributes, text by the tag around it, and whether every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else None, data))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag):
        return [data for name, data in self.texts if name == tag]


@pytest.fixture
def page(tmp_path):
    (tmp_path / "a b#%.png").write_bytes(b"\x89PNG picture")
    (tmp_path / "a b#%.csv").write_text("x\n1\n")
    (tmp_path / "alone.png").write_bytes(b"\x89PNG alone")
    sections = [
        Section("First", "one\n\ntwo <i>"),
        Section(HOSTILE, HOSTILE, Table([HOSTILE, "n"], [["<td>", "1"], ["a", HOSTILE]])),
        Section("Picture", picture=Picture(tmp_path / "a b#%.png", HOSTILE)),
        Section("Picture", picture=Picture(tmp_path / "alone.png", "alone")),
    ]
    write_report(tmp_path / "report.html", sections, title=HOSTILE)
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_every_section_is_there(page):
    assert page.text("h2") == ["First", SHOWN, "Picture", "Picture"] and page.text("p") == ["one", "two <i>", SHOWN]
    ids = [attributes["id"] for attributes in page.all("section")]
    assert len(set(ids)) == 4 and [a["href"] for a in page.all("a")[:4]] == [f"#{name}" for name in ids]
    assert page.text("a")[:4] == page.text("h2")
    assert page.text("th") == [SHOWN, "n"] and page.text("td") == ["<td>", "1", "a", SHOWN]


def test_hostile_text_stays_text(page):
    assert page.text("title") == [SHOWN] == page.text("h1")
    assert not page.all("script") and not page.all("b") and not page.all("i")
    assert {name for _, attributes in page.tags for name in attributes} <= {
        "lang", "charset", "http-equiv", "content", "name", "rel", "href", "id", "aria-label", "aria-labelledby",
        "class", "role", "tabindex", "scope", "src", "alt",
    }  # fmt: skip


def test_the_page_asks_nobody_for_anything(page, tmp_path):
    assert [a["src"].split(",")[0] for a in page.all("img")] == ["data:image/png;base64"] * 2
    assert base64.b64decode(page.all("img")[0]["src"].split(",")[1]) == b"\x89PNG picture"
    assert [a["alt"] for a in page.all("img")] == [SHOWN, "alone"]
    links = [a["href"] for a in page.all("a") if not a["href"].startswith("#")]
    assert links == ["a%20b%23%25.csv"]
    assert [a["href"] for a in page.all("link")] == ["data:,"]  # else a browser asks a server for an icon
    text = (tmp_path / "report.html").read_text()
    assert "default-src 'none'" in text and "@import" not in text and "url(" not in text
    assert "http" not in text.replace("http-equiv", "")


def test_the_page_is_html5_for_light_and_dark(page, tmp_path):
    text = (tmp_path / "report.html").read_text()
    assert text.startswith("<!DOCTYPE html>\n<html lang=") and {"charset": "utf-8"} in page.all("meta")
    assert "prefers-color-scheme: dark" in text and "color-scheme: light dark" in text


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ([], ValueError, "a report must have at least one section"),
        ([Section("t", table=Table(["a", "b"], [["1"]]))], ValueError, "a row must have 2 cells.*received 1"),
        ([Section("t", picture=Picture("/elsewhere.png", "x"))], ValueError, "a picture must lie in the folder"),
    ],
)
def test_bad_sections(tmp_path, sections, error, message):
    with pytest.raises(error, match=message):
        write_report(tmp_path / "report.html", sections)
    assert not list(tmp_path.iterdir())


def test_a_missing_picture(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path / "report.html", [Section("t", picture=Picture(tmp_path / "none.png", "x"))])
