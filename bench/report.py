"""The table and the document around it. Pure: rows in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.samples import Row, missed

HEADINGS = ("what", "ratio", "limit", "aim", "verdict", "shimlan, ms", "other, ms", "the other")
TEXT_COLUMNS = (0, 4, 7)

INTRODUCTION = """\
# Benchmarks

Written by `python -m bench --output docs/benchmarks.md`. Whole processes, started as a container runtime starts them:
from the start of the process until its output has been read and it has ended. shimlan and the reference plugins
(`macvlan` with `host-local`) take turns in one run, in network namespaces made for it, each with an equal configuration
and a data directory of its own on the same file system; figures are medians. Every pod has a fresh container ID.
"""

NOTES = """\
A ratio below 1 means that shimlan is faster. **Only the ratios travel between machines**; the milliseconds are those of
this one run. Limits are those that the project sets itself. Unless the row says otherwise, shimlan has its default
configuration, host shim included, which the reference plugins do not offer, and another pod is on the host already.
"""


def render_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table that is aligned for the eye as well."""
    lines = [HEADINGS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = [_rule(width, column in TEXT_COLUMNS) for column, width in enumerate(widths)]
    aligned = [[_aligned(cell, widths[i], i in TEXT_COLUMNS) for i, cell in enumerate(line)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [aligned[0], rule, *aligned[1:]])


def render_document(rows: Sequence[Row], facts: Mapping[str, str], remarks: Sequence[str], rounds: int) -> str:
    """The whole docs/benchmarks.md."""
    measured = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    said = "\n".join(f"- {remark}" for remark in (f"{rounds} rounds", *remarks))
    return f"{INTRODUCTION}\n{render_table(rows)}\n\n{NOTES}\n{measured}\n{said}\n"


def as_json(rows: Sequence[Row], facts: Mapping[str, str], remarks: Sequence[str], rounds: int) -> dict[str, Any]:
    """The same for programs; times in milliseconds."""
    return {"machine": dict(facts), "rounds": rounds, "remarks": list(remarks), "rows": [_row(row) for row in rows]}


def conclusion(rows: Sequence[Row]) -> str:
    """A sentence or two about the limits."""
    over = ", ".join(row.what for row in missed(rows))
    unchecked = ", ".join(row.what for row in rows if row.limit and row.ratio is None)
    said = f"over the limit: {over}" if over else "no limit is missed"
    return f"{said}; not checked, for there was nothing to compare with: {unchecked}" if unchecked else said


def _row(row: Row) -> dict[str, Any]:
    fields = {name: getattr(row, name) for name in ("key", "what", "ratio", "limit", "aim", "over", "against")}
    return {**fields, "limit": row.limit or None, "aim": row.aim or None, "ours_ms": row.ours, "other_ms": row.other}


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.what,
        "" if row.ratio is None else f"{row.ratio:.3g}",
        f"{row.limit:g}" if row.limit else "",
        f"{row.aim:g}" if row.aim else "",
        row.verdict,
        _milliseconds(row.ours),
        "" if row.other is None else _milliseconds(row.other),
        row.against,
    )


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _rule(width: int, text: bool) -> str:
    return "-" * width if text else "-" * (width - 1) + ":"


def _aligned(cell: str, width: int, text: bool) -> str:
    return cell.ljust(width) if text else cell.rjust(width)
