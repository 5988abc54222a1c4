"""Text on a terminal: words are not broken at its edge, and neither are commands to copy.

Streamed text comes in pieces: a word is held back until it is whole, and goes to the next line if
it does not fit on this one. The terminal's width is asked for each word, so that a window may be
resized while an answer streams.
"""

import io
import re
import unicodedata
from collections.abc import Iterator
from itertools import groupby

from rich.cells import get_character_cell_size
from rich.text import Text

from mlxchat.harmless import harmless
from mlxchat.ui.output import PIPE_WIDTH, LiteralConsole

TAB = 8  # cells
_JOINER = "\u200d"  # makes one emoji of several
_EMOJI_STYLE = "\ufe0f"  # widens the character before it in some terminals
_CLOSING = ("Pe", "Pf", "Po")  # categories of characters that begin no line
_OPENING = ("Ps", "Pi")  # and of those that end none
_QUOTED = r"(?:'[^'\n]*'|\"[^\"\n]*\")"
_VALUE = rf"(?:{_QUOTED}|[^\s'\"-]\S*?)"
_TO_PASTE = re.compile(  # after a colon to the end of the clause
    r"(?<=: )(?:mlxchat|pip|brew|sudo|uv|python3|tensorboard|rm)"
    rf"(?: {_QUOTED}|(?!, |\. |; | \(|\.$).)+"
)
_COMMAND = re.compile(  # also anywhere in a text
    rf"{_TO_PASTE.pattern}"
    rf"|\bmlxchat(?: [a-z]+){{1,2}}(?: --[a-z-]+(?:[ =]{_VALUE})?(?=[\s,;.:)]|$))*",
)


def in_lines(text: str, width: int) -> str:
    """Return text with line breaks between its words, as a terminal of so many columns needs them.

    A command of mlxchat, a path or an address stays whole. If it does not fit on the line it begins
    another one; if that is too short as well, the terminal breaks it, so that it can be copied.

    Args:
        text: harmless text; its own line breaks stay.
        width: of the terminal.

    >>> print(in_lines("Talk to it: mlxchat chat --model-tag fox", 30))
    Talk to it:
    mlxchat chat --model-tag fox
    """
    written = io.StringIO()
    console = LiteralConsole(
        file=written, force_terminal=True, color_system=None, width=width, _environ={}
    )
    words = WordStream(console)
    words.write_prose(text)
    words.close()
    return written.getvalue()


def commands_apart(text: str) -> list[tuple[str, bool]]:
    """Return a text in parts, each command after a colon as one, and whether it is a command.

    The end of the clause is left out behind a command, so that each can have a line of its own.

    >>> commands_apart("Update it: pip install -U mlx. Or report it.")
    [('Update it:', False), ('pip install -U mlx', True), ('Or report it.', False)]
    """
    parts, end = list[tuple[str, bool]](), 0
    for found in _TO_PASTE.finditer(text):
        parts += [(text[end : found.start()].strip(), False), (found[0], True)]
        end = found.end()
        end += len(text[end:]) - len(text[end:].lstrip(" .,;"))
    parts.append((text[end:].strip(), False))
    return [part for part in parts if part[0]]


class WordStream:
    """Writes text to a terminal that comes in pieces of any size.

    Words end at blanks; wide characters, as of Chinese, are words of their own. A word that is
    longer than a line is left to the terminal to break, so that an address can still be copied. On
    a console that is no terminal, or one whose width is unknown, text is written as it comes.

    Args:
        console: where to write.
        column: the cells that are written on its line already.
    """

    def __init__(self, console: LiteralConsole, column: int = 0) -> None:
        self._console = console
        self._wraps = console.is_terminal and not console.is_dumb_terminal
        self._column = column  # cells written on this line
        self._width = self._known_width()  # of the terminal when the last word was written
        self._blanks = ""  # after the last word that was written
        self._word: list[tuple[str, bool]] = []  # characters, and whether each is dimmed
        self._overlong = False  # the beginning of the word is written: it is longer than a line

    def write(self, text: str, dimmed: bool = False) -> None:
        """Write a piece of text."""
        if not self._wraps:
            self._put(text, dimmed)
            return
        for character in harmless(text):
            if character == "\n":
                self._end_word()
                self._new_line()
            elif character in " \t":
                self._end_word()
                self._blanks += character
            else:
                if self._begins_word(character):
                    self._end_word()
                self._word.append((character, dimmed))
                if self._overlong or self._cells() > self._width:
                    self._spill()

    def write_prose(self, text: str) -> None:
        """Write a whole text; the commands in it are not broken either."""
        for piece, whole in _pieces(text):
            if whole and self._wraps:
                self._word += [(character, False) for character in harmless(piece)]
                if self._cells() > self._width:
                    self._spill()
            else:
                self.write(piece)

    def close(self) -> None:
        """Write the last word."""
        self._end_word()

    def _begins_word(self, character: str) -> bool:
        """Return whether a line may be broken before a character that is no blank."""
        if not self._word or not _cells(character):
            return False
        before = self._word[-1][0]
        if before == _JOINER:
            return False
        if unicodedata.category(character) in _CLOSING or unicodedata.category(before) in _OPENING:
            return False
        return _cells(character) == 2 or _cells(self._word[0][0]) == 2

    def _cells(self) -> int:
        return sum(_cells(character) for character, _ in self._word)

    def _end_word(self) -> None:
        if self._overlong:
            self._spill()
            self._overlong = False
        elif self._word:
            self._notice_width()
            self._place_blanks(self._cells())
            self._column += self._cells()
            self._put_word()

    def _spill(self) -> None:
        """Write what there is of a word that is longer than a line."""
        self._notice_width()
        if not self._overlong:
            self._place_blanks(self._cells())
            self._overlong = True
        for character, _ in self._word:
            cells = _cells(character)
            self._column = cells if self._column + cells > self._width else self._column + cells
        self._put_word()

    def _place_blanks(self, cells: int) -> None:
        """Write the blanks before a word of so many cells, or a new line if it does not fit."""
        end = self._column
        for blank in self._blanks:
            end = (end // TAB + 1) * TAB if blank == "\t" else end + 1
        if end + cells <= self._width:
            self._put(self._blanks)
            self._column = end
        elif self._column:
            self._new_line()
        self._blanks = ""

    def _notice_width(self) -> None:
        """Adopt the terminal's width. One that became narrower has broken the line by itself."""
        width = self._known_width()
        if self._column > width:
            self._column = (self._column - 1) % width + 1
        self._width = width

    def _known_width(self) -> int:
        return self._console.width or PIPE_WIDTH  # where it is 0, the terminal breaks the lines

    def _new_line(self) -> None:
        self._put("\n")
        self._column, self._blanks = 0, ""

    def _put_word(self) -> None:
        for dimmed, run in groupby(self._word, key=lambda pair: pair[1]):
            self._put("".join(character for character, _ in run), dimmed)
        self._word = []

    def _put(self, text: str, dimmed: bool = False) -> None:
        if dimmed:
            self._console.print(Text(text, "dim"), end="", soft_wrap=True)
        else:
            self._console.write(text)


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a text, and whether each is a command."""
    end = 0
    for found in _COMMAND.finditer(text):
        yield text[end : found.start()], False
        yield found[0], True
        end = found.end()
    yield text[end:], False


def _cells(character: str) -> int:
    """Return the cells that a character takes, of several opinions the largest."""
    return 1 if character == _EMOJI_STYLE else get_character_cell_size(character)
