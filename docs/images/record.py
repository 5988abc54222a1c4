"""Record quickstart and a chat from a real terminal, as an animated SVG for the README.

    pip install -e ".[cpu]" pyte
    python docs/images/record.py docs/images/quickstart.svg

A shell runs in a pseudo-terminal of 80 columns, with a home of its own, and is typed into as a
person would. The terminal's screen is kept whenever it has changed. Waiting is played faster: the
picture says so in its title bar.
"""

import argparse
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

import pyte

COLUMNS, ROWS = 80, 22
KEY_SECONDS = 0.07  # between two keys that are typed
PAUSE = 1.6  # seconds in which an answer can be read
SPEED = 12  # times as fast as it was, while the program works
WORKING_INTERVAL = 1.5  # seconds between two pictures of a program at work
TYPING_INTERVAL = 0.1
END_SECONDS = 5.0  # for which the last picture stays
PATIENCE = 900.0  # seconds

QUESTIONS = (
    "How many legs has a cow?",
    "Tom put the ball in the box. Where is the ball?",
    "Who are you?",
)
READY = "> "  # the chat's prompt
SHELL = "$ "

CELL_WIDTH, LINE_HEIGHT, FONT_SIZE = 8.4, 19, 14
MARGIN, BAR = 14, 34
BACKGROUND, FOREGROUND = "#14161b", "#d7dae0"
COLOURS = {  # of pyte, in a palette that reads well on the background
    "black": "#3b4048",
    "red": "#e06c75",
    "green": "#98c379",
    "brown": "#e5c07b",
    "blue": "#61afef",
    "magenta": "#c678dd",
    "cyan": "#56b6c2",
    "white": "#d7dae0",
}

Style = tuple[str, bool, bool]  # the colour, and whether it is bold and italic
Line = tuple[tuple[str, Style], ...]  # pieces of text, each of one style
Picture = tuple[Line, ...]


@dataclass(frozen=True)
class Frame:
    """A picture of the terminal, and how long it is shown in seconds."""

    picture: Picture
    seconds: float


class Terminal:
    """A shell in a pseudo-terminal, and its screen."""

    def __init__(self, home: Path) -> None:
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self.screen.write_process_input = self.send  # the answer to a question for the cursor
        self._stream = pyte.ByteStream(self.screen)
        self._child, self._file = pty.fork()
        if self._child == 0:
            os.environ |= {"MLXCHAT_HOME": str(home), "TERM": "xterm-256color", "PS1": SHELL}
            os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            os.execvp("bash", ["bash", "--norc", "--noprofile"])
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))

    def send(self, text: str) -> None:
        """Type a text."""
        os.write(self._file, text.encode())

    def read(self, seconds: float) -> None:
        """Show what the programs write within so many seconds."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([self._file], [], [], left)[0]:
                self._stream.feed(os.read(self._file, 65_536))

    def picture(self) -> Picture:
        """Return what the screen shows now."""
        return tuple(self._line(row) for row in range(ROWS))

    def at(self, prompt: str) -> bool:
        """Return whether the cursor is just behind a prompt at the beginning of its line."""
        cursor = self.screen.cursor
        return cursor.x == len(prompt) and self.screen.display[cursor.y].startswith(prompt)

    def close(self) -> None:
        """End the shell, and what runs in it."""
        os.kill(self._child, signal.SIGHUP)
        os.waitpid(self._child, 0)
        os.close(self._file)

    def _line(self, row: int) -> Line:
        cells = [self.screen.buffer[row][column] for column in range(COLUMNS)]
        styled = [(cell.data, (colour(cell.fg), cell.bold, cell.italics)) for cell in cells]
        cursor = self.screen.cursor
        if cursor.y == row and not cursor.hidden and cursor.x < COLUMNS:
            styled[cursor.x] = ("█", (FOREGROUND, False, False))
        while styled and styled[-1][0] == " ":
            styled.pop()
        pieces = groupby(styled, key=lambda cell: cell[1])
        return tuple(("".join(data for data, _ in cells), style) for style, cells in pieces)


def colour(name: str) -> str:
    """Return a colour of the terminal as one of the picture."""
    if name == "default":
        return FOREGROUND
    plain = name.removeprefix("bright")
    return COLOURS.get(plain, COLOURS["white"]) if plain in COLOURS else f"#{name}"


def session(terminal: Terminal) -> Iterator[Frame]:
    """Do what a newcomer does: quickstart, and three questions."""
    yield from until(terminal, SHELL, 1)
    yield from typed(terminal, "mlxchat quickstart")
    yield from until(terminal, READY, SPEED)
    for question in QUESTIONS:
        yield from typed(terminal, question)
        yield from until(terminal, READY, 1)
        yield Frame(terminal.picture(), PAUSE)


def typed(terminal: Terminal, text: str) -> Iterator[Frame]:
    """Type a text and Enter."""
    for key in text:
        terminal.send(key)
        terminal.read(KEY_SECONDS)
        yield Frame(terminal.picture(), KEY_SECONDS)
    terminal.send("\r")
    terminal.read(TYPING_INTERVAL)
    yield Frame(terminal.picture(), TYPING_INTERVAL)


def until(terminal: Terminal, prompt: str, speed: int) -> Iterator[Frame]:
    """Wait for a prompt.

    Raises:
        TimeoutError: it does not come.
    """
    interval = WORKING_INTERVAL if speed > 1 else TYPING_INTERVAL
    begun = time.monotonic()
    while not terminal.at(prompt):
        if time.monotonic() - begun > PATIENCE:
            raise TimeoutError("\n".join(terminal.screen.display))
        terminal.read(interval)
        yield Frame(terminal.picture(), interval / speed)


def merged(frames: Iterator[Frame]) -> list[Frame]:
    """Return the frames, equal ones that follow each other as one."""
    runs = groupby(frames, key=lambda frame: frame.picture)
    return [Frame(picture, sum(frame.seconds for frame in run)) for picture, run in runs]


def drawn(frames: list[Frame]) -> str:
    """Return the frames as an animated SVG: a strip of pictures behind a window.

    Each different line is defined once. Where a reader prefers no motion, the last picture stays.
    """
    width = round(COLUMNS * CELL_WIDTH + 2 * MARGIN)
    height = ROWS * LINE_HEIGHT + MARGIN
    lines = {line for frame in frames for line in frame.picture if line}
    names = {line: f"l{number}" for number, line in enumerate(sorted(lines))}
    seconds = sum(frame.seconds for frame in frames)
    steps, strip, shown_at = [], [], 0.0
    for number, frame in enumerate(frames):
        steps.append(
            f"{100 * shown_at / seconds:.3f}%{{transform:translateY(-{number * height}px)}}"
        )
        strip += [
            f'<use href="#{names[line]}" y="{number * height + (row + 1) * LINE_HEIGHT}"/>'
            for row, line in enumerate(frame.picture)
            if line
        ]
        shown_at += frame.seconds
    last = (len(frames) - 1) * height
    defined = "".join(f'<g id="{name}">{text_of(line)}</g>' for line, name in names.items())
    dots = "".join(
        f'<circle cx="{18 + 18 * number}" cy="17" r="5.5" fill="{fill}"/>'
        for number, fill in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + BAR}" \
width="{width}" height="{height + BAR}" role="img">
<title>mlxchat quickstart in a terminal, and three questions to the model that it made</title>
<style>
text{{font:{FONT_SIZE}px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;\
white-space:pre;fill:{FOREGROUND}}}
.strip{{animation:roll {seconds:.2f}s step-end infinite;transform:translateY(-{last}px)}}
@keyframes roll{{{"".join(steps)}100%{{transform:translateY(-{last}px)}}}}
@media(prefers-reduced-motion:reduce){{.strip{{animation:none}}}}
</style>
<defs>{defined}<clipPath id="window"><rect width="{width}" height="{height}"/></clipPath></defs>
<rect width="{width}" height="{height + BAR}" rx="9" fill="{BACKGROUND}"/>{dots}
<text x="{width / 2}" y="22" text-anchor="middle" style="fill:#8b919c;font-size:12px">\
training is played {SPEED} times as fast</text>
<g transform="translate(0 {BAR - 6})" clip-path="url(#window)"><g class="strip">
{"".join(strip)}
</g></g>
</svg>
"""


def text_of(line: Line) -> str:
    """Return a line as SVG; each piece has its place, so that no font moves it."""
    written, column = [], 0
    for text, style in line:
        if body := text.strip(" "):
            place = MARGIN + (column + len(text) - len(text.lstrip(" "))) * CELL_WIDTH
            written.append(
                f'<text x="{place:.1f}" textLength="{len(body) * CELL_WIDTH:.1f}"'
                f"{css(style)}>{escape(body)}</text>"
            )
        column += len(text)
    return "".join(written)


def css(style: Style) -> str:
    """Return a style as an attribute; nothing for the picture's own."""
    fill, bold, italic = style
    rules = [f"fill:{fill}"] if fill != FOREGROUND else []
    rules += ["font-weight:700"] if bold else []
    rules += ["font-style:italic"] if italic else []
    return f' style="{";".join(rules)}"' if rules else ""


def main() -> None:
    """Record, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    with tempfile.TemporaryDirectory() as home:
        terminal = Terminal(Path(home))
        try:
            frames = merged(session(terminal))
        finally:
            terminal.close()
    frames[-1] = Frame(frames[-1].picture, END_SECONDS)
    file.write_text(drawn(frames), encoding="utf-8")
    print(f"{file}: {len(frames)} pictures, {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
