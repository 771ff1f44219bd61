from asrcl.scoring.display.terminal import aligned_table


def test_columns_keep_their_places_beside_wide_characters() -> None:
    lines = aligned_table(["name", "n"], [["日本", "1"], ["e\u0301", "22"]], edge=False).splitlines()
    assert lines == ["name    n", "─────────", "日本    1", "e\u0301      22"]


def test_nothing_is_cut_nothing_is_markup_and_a_row_is_a_line() -> None:
    name = "x" * 900
    text = aligned_table(["a\nb", "[red]n"], [[name, "[/]"], ["two\nlines\x1b", "3"]], left=(0, 1), title="[bold] title")
    assert name in text and "[red]n" in text and "[/]" in text and "two\\nlines\\x1b" in text and "[bold] title" in text
    assert len(text.splitlines()) == 7  # title, a blank line, header, rule, two rows, a blank line
