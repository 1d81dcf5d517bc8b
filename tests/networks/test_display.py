"""Small tables as text and as HTML."""

import pytest

from hf_lottery.networks.display import escaped, html_table, text_table


def test_text_is_aligned_and_numbers_stand_on_the_right():
    rows = [["conv", "1,200", "-", "50 %"], ["classifier", -3.5e-05, 0.25, ""]]
    assert text_table(["layer", "kept", "change", "pruned"], rows).splitlines() == [
        "layer           kept  change  pruned",
        "conv           1,200       -    50 %",
        "classifier  -3.5e-05    0.25",
    ]


def test_rows_beyond_the_limit_are_counted():
    rows = [[str(number)] for number in range(1500)]
    assert text_table(["n"], iter(rows), limit=2).splitlines() == ["n", "0", "1", "... and 1,498 more"]
    assert html_table(["n"], rows, limit=2).endswith("</table>\n<p>... and 1,498 more</p>")
    for table in (text_table, html_table):
        assert "more" not in table(["n"], rows, limit=1500) and "more" not in table(["n"], rows)


def test_html_is_escaped():
    page = html_table(["<a>"], [['"&\x00']])
    assert "&lt;a&gt;" in page and "&quot;&amp;\ufffd" in page and "<a>" not in page
    assert escaped("it's\ud800") == "it&#x27;s\ufffd"


@pytest.mark.parametrize("table", [text_table, html_table])
def test_a_row_has_as_many_cells_as_the_header(table):
    with pytest.raises(ValueError, match="a row must have 2 cells, as the header has; received 1"):
        table(["a", "b"], [["1", "2"], ["3"]])
