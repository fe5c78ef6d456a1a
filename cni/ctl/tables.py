"""Listings for people: columns that line up, nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

GAP = "  "


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a table; the last column may be as long as it likes, empty cells show as a dash."""
    cells = [tuple(headers), *(tuple(str(cell) if cell not in ("", None) else "-" for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def section(title: str, lines: Sequence[str]) -> list[str]:
    """Lines below a title, and an empty one after them."""
    return [title, *(f"{GAP}{line}" for line in lines), ""]


def short(container_id: str) -> str:
    """A container ID as runtimes print it."""
    return container_id[:13]
