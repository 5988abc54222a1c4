"""Streamed words on terminals of any width."""

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from mlxchat.ui.output import LiteralConsole
from mlxchat.ui.wrapping import WordStream, in_lines


class Resizing(LiteralConsole):
    """A terminal without colors, whose width a test changes."""

    cells = 40

    @property
    def width(self) -> int:
        return self.cells


def terminal() -> Resizing:
    return Resizing(file=io.StringIO(), force_terminal=True, color_system=None)


def streamed(text: str, width: int, piece: int = 1) -> str:
    console = terminal()
    console.cells = width
    words = WordStream(console)
    for start in range(0, len(text), piece):
        words.write(text[start : start + piece])
    words.close()
    return console.file.getvalue()


@pytest.mark.parametrize("piece", [1, 3, 1000])
@pytest.mark.parametrize("width", [40, 80, 160])
def test_words_are_not_broken_at_the_edge(width: int, piece: int) -> None:
    text = "Once upon a time there was an extraordinarily long-winded sentence. " * 8
    lines = streamed(text, width, piece).split("\n")
    assert " ".join(lines) == text.rstrip()
    assert max(map(len, lines)) <= width < min(map(len, lines[:-1])) + len(" extraordinarily")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("exactly 10 cells", "exactly 10\ncells"),
        ("a  two blanks", "a  two\nblanks"),
        ("  indented text", "  indented\ntext"),
        ("         indented", "indented"),
        ("blanks at the end   \nx", "blanks at\nthe end\nx"),
        ("a\tb\tc", "a\tb\nc"),
        ("北京是中华人民共和国", "北京是中华\n人民共和国"),
        ("a北京是中。华「人」", "a北京是\n中。华\n「人」"),
        ("caf\u0301e\u0301 re\u0301sume\u0301", "caf\u0301e\u0301\nre\u0301sume\u0301"),
        ("12345678❤\ufe0f❤\ufe0f", "12345678❤\ufe0f❤\ufe0f"),
        ("1234567 ❤\ufe0f❤\ufe0f", "1234567\n❤\ufe0f❤\ufe0f"),
        ("123456789 👩\u200d🚀", "123456789\n👩\u200d🚀"),
        ("see http://a.b/c/d/e/f on", "see\nhttp://a.b/c/d/e/f\non"),
        ("see http://a.b/c/d/e/f o", "see\nhttp://a.b/c/d/e/f o"),
        ("a\n\nb\n", "a\n\nb\n"),
    ],
)
def test_lines_of_ten_cells(text: str, expected: str) -> None:
    assert streamed(text, 10) == expected


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(
    st.lists(st.text("ab 北。\t\ne\u0301「」", max_size=8), max_size=12),
    st.integers(10, 30),
)
def test_any_text_keeps_its_characters_and_fits(pieces: list[str], width: int) -> None:
    text = "".join(pieces)
    shown = streamed(text, width, 3)
    assert "".join(shown.split()) == "".join(text.split())
    if all(cell_len(run) <= width for run in text.split()):
        assert all(column_after(line) <= width for line in shown.split("\n"))


def column_after(line: str) -> int:
    column = 0
    for run in re.split("(\t)", line):
        column = column // 8 * 8 + 8 if run == "\t" else column + cell_len(run)
    return column


def test_a_resized_window_counts_from_the_next_word() -> None:
    console = terminal()
    words = WordStream(console)
    words.write("one two three four five ")
    console.cells = 10  # the terminal itself breaks the line into three: the last has three cells
    words.write("six seven ")
    console.cells = 30
    words.write("eight nine")
    words.close()
    assert console.file.getvalue() == "one two three four five six\nseven eight nine"


def test_on_a_terminal_of_unknown_width_text_is_written_as_it_comes() -> None:
    text = "one two three four five six seven"
    assert streamed(text, 0) == text
    console = terminal()
    words = WordStream(console)
    words.write("one two three ")
    console.cells = 0
    words.write("four five\n")
    assert console.file.getvalue() == "one two three four five\n"


def test_a_word_may_be_dimmed_in_part() -> None:
    console = LiteralConsole(file=io.StringIO(), force_terminal=True, color_system="standard")
    words = WordStream(console)
    words.write("It is")
    words.write("[1+1 = 2]", dimmed=True)
    words.write(".")
    words.close()
    dim = ("\x1b[2m[1+1\x1b[0m", "\x1b[2m=\x1b[0m", "\x1b[2m2]\x1b[0m")
    assert console.file.getvalue() == f"It is{' '.join(dim)}."


def test_text_that_goes_to_no_terminal_is_left_alone() -> None:
    console = LiteralConsole(file=io.StringIO(), width=5)
    words = WordStream(console)
    words.write("several words  \n")
    assert console.file.getvalue() == "several words  \n"


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("Make one: mlxchat quickstart, or mlxchat train", "mlxchat quickstart"),
        ("Get it: mlxchat data fetch --from 'a, b (c). d'. Then go on.", "--from 'a, b (c). d'"),
        ("See it: mlxchat runs show fox", "mlxchat runs show fox"),
        ('Install: pip install -e ".[cpu]" (with a GPU: other)', 'pip install -e ".[cpu]"'),
        ("so mlxchat checkpoints prune removes them", "mlxchat checkpoints prune"),
        ("(mlxchat sft --source fox).", "mlxchat sft --source fox"),
    ],
)
def test_a_command_in_a_text_is_not_broken(text: str, command: str) -> None:
    for width in range(2, 40):
        lines = in_lines(text, width).split("\n")
        assert any(command in line for line in lines)
        assert " ".join(" ".join(lines).split()) == text
