"""Tells a story on a terminal and keeps count of what it claims.

It formats: headings, prose, commands, JSON, tables, claims with a tick or a cross. What is claimed, and whether it is
so, others say.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from typing import Any, TextIO

from cni.frozen import frozen

BOLD, DIM, RED, GREEN, CYAN = "1", "2", "31", "32", "36"
_WIDTH = 100  # of JSON, in columns


@frozen
class Cell:
    """A yes or a no in a table, and which of them was claimed; `so` None: the question makes no sense there."""

    so: bool | None
    claimed: bool | None

    @property
    def text(self) -> str:
        """One word, and what was claimed if that is something else."""
        word = {True: "yes", False: "no", None: "-"}
        return word[self.so] if self.so is self.claimed else f"{word[self.so]}, not {word[self.claimed]}"

    @property
    def colour(self) -> str:
        """Red is for broken claims alone: a "no" that was foretold is not a failure."""
        if self.so is not self.claimed:
            return RED
        return GREEN if self.so else DIM


class Narrator:
    """Writes to a stream, in colour on a terminal unless NO_COLOR is set; `broken` holds the claims that failed."""

    def __init__(self, out: TextIO) -> None:
        if isinstance(out, io.TextIOWrapper):
            out.reconfigure(errors="replace")  # a terminal without ticks gets question marks, not a traceback
        self._out = out
        self._colour = out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.claims = 0
        self.broken: list[str] = []

    def heading(self, text: str) -> None:
        """The title of a new part of the story."""
        self._write(f"\n{self._paint(text, BOLD)}")

    def say(self, *lines: str) -> None:
        """Prose."""
        for line in lines:
            self._write(f"  {line}")

    def quote(self, text: str) -> None:
        """What a program said, as it said it."""
        for line in text.splitlines():
            self._write("    " + self._paint(line.expandtabs(4), DIM))

    def command(self, where: str, command: str) -> None:
        """A command at a shell prompt."""
        self._write("  " + self._paint(f"{where}# ", CYAN) + command)

    def json(self, value: Any) -> None:
        """A JSON value, as compact as a hand would write it."""
        for line in compact(value).splitlines():
            self._write(f"    {line}")

    def claim(self, sentence: str, so: bool) -> None:
        """A sentence and whether it turned out to be so."""
        mark = self._paint("✔", GREEN) if so else self._paint("✘ NOT SO:", RED)
        self._write(f"  {mark} {sentence}")
        self._count(sentence, so)

    def fail(self, reason: str) -> None:
        """The story ends here."""
        self._write("  " + self._paint(f"✘ {reason}", RED))
        self._count(reason, False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell], str]]) -> None:
        """Rows of a name, cells and a remark; each cell is a claim."""
        first = max(len(name) for name in (title, *(name for name, _, _ in rows))) + 3
        texts = ([column, *(cells[index].text for _, cells, _ in rows)] for index, column in enumerate(columns))
        widths = [max(map(len, column)) + 3 for column in texts]
        heads = "".join(column.ljust(width) for column, width in zip(columns, widths, strict=True))
        self._write(self._paint(f"  {title.ljust(first)}{heads}".rstrip(), DIM))
        for name, cells, remark in rows:
            marks = "".join(
                self._paint(cell.text.ljust(width), cell.colour) for cell, width in zip(cells, widths, strict=True)
            )
            self._write(f"  {name.ljust(first)}{marks}{remark}")
            for column, cell in zip(columns, cells, strict=True):
                self._count(f"{title}: {name}, {column}: {cell.text}", cell.so is cell.claimed)

    def _count(self, sentence: str, so: bool) -> None:
        self.claims += 1
        if not so:
            self.broken.append(sentence)

    def _paint(self, text: str, colour: str) -> str:
        return f"\033[{colour}m{text}\033[0m" if self._colour else text

    def _write(self, line: str) -> None:
        print(line.rstrip(), file=self._out, flush=True)


def compact(value: Any, indent: str = "") -> str:
    """JSON text in which whatever fits on a line stays on it."""
    line = json.dumps(value)
    if not isinstance(value, dict | list) or not value or len(indent + line) <= _WIDTH:
        return line
    deeper = indent + "  "
    names = [f"{json.dumps(key)}: " for key in value] if isinstance(value, dict) else [""] * len(value)
    items = value.values() if isinstance(value, dict) else value
    inner = ",\n".join(f"{deeper}{name}{compact(item, deeper)}" for name, item in zip(names, items, strict=True))
    first, last = "{}" if isinstance(value, dict) else "[]"
    return f"{first}\n{inner}\n{indent}{last}"
