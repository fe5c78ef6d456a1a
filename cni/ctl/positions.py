"""Where each value of a JSON text stands: its line, by its path.

It works on text that `json.loads` accepts, and also tells of what `json.loads` lets pass in silence: keys that an
object has twice, and the numbers NaN and Infinity, which are no JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
NO_JSON = ("NaN", "Infinity", "-Infinity")

Path = tuple[str | int, ...]


@dataclass
class Positions:
    """Lines, counted from 1, by path, and what is wrong with the text itself."""

    lines: dict[Path, int] = field(default_factory=dict)
    oddities: list[tuple[Path, int, str]] = field(default_factory=list)

    def line(self, path: Path) -> int:
        """The line of the value at `path`, or of the closest value around it that exists."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


@dataclass(frozen=True)
class Token:
    """A string (with its quotes), a bracket, a comma, a colon, a number or a word."""

    text: str
    line: int


def locate(text: str) -> Positions:
    """The positions of all values; a member of an object stands where its key stands."""
    positions = Positions()
    tokens = _tokens(text)
    _value(next(tokens), tokens, (), positions)
    return positions


def _tokens(text: str) -> Iterator[Token]:
    line, counted = 1, 0
    for match in TOKEN.finditer(text):
        line += text.count("\n", counted, match.start())
        counted = match.start()
        yield Token(match.group(), line)


def _value(token: Token, tokens: Iterator[Token], path: Path, positions: Positions) -> None:
    positions.lines.setdefault(path, token.line)
    if token.text == "{":
        _members(tokens, path, positions)
    elif token.text == "[":
        _items(tokens, path, positions)
    elif token.text in NO_JSON:
        positions.oddities.append((path, token.line, f"{token.text} is not a JSON number"))


def _members(tokens: Iterator[Token], path: Path, positions: Positions) -> None:
    seen: dict[str, int] = {}
    while (token := next(tokens)).text != "}":
        if token.text == ",":
            continue
        key: str = json.loads(token.text)
        here = (*path, key)
        if key in seen:
            oddity = f"this key is already on line {seen[key]}; the last one wins"
            positions.oddities.append((here, token.line, oddity))
        seen[key] = positions.lines[here] = token.line
        next(tokens)  # the colon
        _value(next(tokens), tokens, here, positions)


def _items(tokens: Iterator[Token], path: Path, positions: Positions) -> None:
    index = 0
    while (token := next(tokens)).text != "]":
        if token.text == ",":
            continue
        _value(token, tokens, (*path, index), positions)
        index += 1
