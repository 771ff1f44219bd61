"""Names of others in whatever asrcl prints or writes for people: shown as text, never run, never lost."""

import csv
import io
import json
import re
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from asrcl.exceptions import InputError
from asrcl.scoring.display.table import comma_separated, escape_latex, markdown, plain, unguarded
from asrcl.visible import cell, json_safe, visible

ACTIVE = "\x1b[31m\x07\r\x9b2J\x7f\u202e\u2066\u2028\x85\ud800"
HARMLESS = "[bold]plain[/bold] می\u200cخواهم é 北 👍\ufe0f \u200f"


def test_active_characters_are_written_out_and_others_stay() -> None:
    assert visible(ACTIVE) == r"\x1b[31m\x07\r\x9b2J\x7f\u202e\u2066\u2028\x85\ud800"
    assert visible(HARMLESS) == HARMLESS and visible("a\tb\nc") == r"a\tb\nc" and visible("a\tb\nc", keep="\n") == "a\\tb\nc"


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters() | st.sampled_from(ACTIVE + "[]\\/")))
def test_what_is_shown_is_shown_as_it_is_the_second_time(text: str) -> None:
    shown = visible(text)
    assert visible(shown) == shown and not set(shown) & set(ACTIVE[:1] + ACTIVE[5:7] + "\n\x9b\u202e")
    assert shown.encode("utf-8").decode("utf-8") == shown  # no half pair is left
    content = json.dumps({"a": text}, ensure_ascii=False, indent=1)
    assert json.loads(json_safe(content)) == {"a": text} and visible(json_safe(content), keep="\n") == json_safe(content)


@pytest.mark.parametrize("name", ["[bold]x[/bold]", "[/]", "x[/x]", "a\\[b", "[link=h]b[/link]", "\x1b[2Jx", "layers[0]\\"])
def test_no_name_is_markup_in_a_table(name: str) -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    table = Table(title=cell(name))
    table.add_column(cell(name))
    table.add_row(cell(name))
    console.print(table)
    assert console.file.getvalue().count(visible(name)) == 3


def test_messages_show_names_as_text() -> None:
    error = InputError("a\x1b[2J.txt: bad\nwhat differs: \u202ex")
    assert str(error) == "a\\x1b[2J.txt: bad\nwhat differs: \\u202ex" == str(InputError(str(error)))


FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\n=1", "'=1", "''@x", "-x", "＝1", "-", "'", "-5", "+1.5e3", "5%", "-."]
formulas = st.sampled_from(FORMULAS)


@settings(max_examples=200, deadline=None)
@given(st.lists(formulas | st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters=list(ACTIVE))), min_size=1))
def test_csv_cells_run_nothing_and_read_back_the_same(values: list[str]) -> None:
    text = comma_separated(values, [values, [-1.5] * len(values)])
    header, row, numbers = csv.reader(io.StringIO(text))
    assert header == row and [unguarded(value) for value in row] == values and numbers == ["-1.5"] * len(values)
    number = re.compile(r"[+-]?[\d.]+(e\d+)?%?")
    for value in row:
        assert len(value) < 2 or value[0] not in "=+-@\t\r\n＝＋－＠" or number.fullmatch(value)


def test_numbers_stay_numbers_in_csv() -> None:
    row = [-1.5, -3, float("-inf"), float("nan"), None, "-1.5", "+3", "-1e-05", "x"]
    assert comma_separated(["a"], [row]) == "a\n-1.5,-3,-inf,,,-1.5,+3,-1e-05,x\n"


def test_control_characters_are_written_out_in_tables_for_people() -> None:
    table = plain(["\x1bh"], [["a\x1b]0;x\x07\r"], ["<script>x</script>"], ["[a](javascript:x)"], ["`R[i,j] <T`"], ["< 0.05"]])
    assert comma_separated(["a\x1b"], [["b\x9b\r", "c\nd"]]) == 'a\\x1b\n"b\\x9b\\r","c\nd"\n'.replace('"b\\x9b\\r"', "b\\x9b\\r")
    lines = markdown(table).splitlines()
    assert lines[0] == r"| \x1bh |" and lines[2] == r"| a\x1b]0;x\x07\r |"
    assert lines[3:] == [r"| \<script>x\</script> |", r"| [a\](javascript:x) |", "| `R[i,j] <T` |", "| < 0.05 |"]
    assert escape_latex("a\x1b\\b\nc") == r"a\textbackslash{}x1b\textbackslash{}b c"


TENSOR = "layers[0].[bold]w[/bold]\x1b[2J"


def printed(table: object) -> str:
    console = Console(file=io.StringIO(), width=240, force_terminal=False)
    console.print(table)
    return console.file.getvalue()


def test_tensor_names_are_shown_in_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    """A merge's dry run, a sweep, the card of a curvature, a tuning's table."""
    torch = pytest.importorskip("torch")
    from asrcl.commands.shared import print_rows
    from asrcl.curvature import BlockKey, Curvature, DiagonalBlock, card
    from asrcl.curvature.card_view import card_text
    from asrcl.merge import methods, show
    from asrcl.merge.files import Preview

    row = SimpleNamespace(name=TENSOR, shape=(2,), rule="[/]", why="[red]because[/red]")
    dry_run = printed(show.preview_table([Preview(row, None)]))
    sweep = printed(show.rows_table([{TENSOR: TENSOR, "tau": [1, 2]}]))
    text = card_text(card(Curvature({BlockKey(TENSOR, 0, 2): DiagonalBlock(torch.ones(2), 1)})), width=240)
    print_rows("[b]", [{TENSOR: "[/i]", "old": 1.0}])
    tuned = capsys.readouterr().out
    for shown in (dry_run, sweep, text, tuned):
        assert visible(TENSOR) in shown and "\x1b" not in shown
    print_rows("", [{"train.adapt.learning_rate": 1.0, "train.adapt.epochs": 4, "train.initial.epochs": 2, "strength": 1.0}])
    named = capsys.readouterr().out
    assert all(name in named for name in (" learning_rate ", " train.adapt.epochs ", " train.initial.epochs ", " strength "))
    assert "[red]because[/red]" in dry_run and "[1, 2]" in sweep and "[b]" in tuned and "[/i]" in tuned
    assert all(name in printed(show.methods_table(methods())) for name in methods())
