"""The tables and the document around them. Pure: rows in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.samples import AGENT, DATA_PATH, HARNESS, IN_PROCESS, PEER, Row, missed

HEADINGS = ("what", "ratio", "limit", "aim", "verdict")
TEXT_COLUMNS = (0, 4, 7)

INTRODUCTION = """\
# Benchmarks

Written by `python -m bench --output docs/benchmarks.md`. Three take turns in one run: shimlan as a native client with
its agent (**client + agent**), shimlan as a process that does everything itself (**in-process**), and `macvlan` with
`host-local`, the **reference plugins**. For each question each of them gets a LAN of its own in network namespaces with
a host on which nothing was done before, an equal configuration, and a data directory on the same file system.

Calls are whole processes, started as a container runtime starts them and timed from the start until the output has been
read and the process has ended. Every pod has a fresh container ID. Figures are medians, where nothing else is said.

A ratio below 1 means that shimlan is faster, or takes less. **Only the ratios travel between machines**; the values are
those of this one run. Limits are those that the project sets itself. Unless the row says otherwise, shimlan has its
default configuration, host shim included, which the reference plugins do not offer, and another pod is on the host.
"""

# What a reader of a section has to know.
ABOUT = {
    AGENT: """\
Processor time is that of the client's processes and of all threads of the agent, until it rests again. `RSS` is the
agent's VmRSS in millions of bytes; its descriptors and threads are counted when it rests.
""",
    IN_PROCESS: """\
A Python process for each call; no more than a hundred at once are tried. One that waits for the store for 5 s asks the
runtime to try again, which is then part of its time.
""",
    PEER: """\
Beside themselves: host-local reads the file of each lease that is held.
""",
    DATA_PATH: """\
Pods on macvlan children, and the host through its shim, beside pods on veths of a bridge that has the host's NIC as a
port; all on one machine, so that both ends share the processors. Round trips are those of `ping` every 2 ms. Packets
are those that arrive of what one `iperf3` sends as fast as it can. TCP is one stream of `iperf3`. For packets and TCP,
**a ratio above 1 is the better one**.
""",
    HARNESS: """\
What the benchmark and the kernel take for starting processes and reading their output until all of them have ended: no
plugin can be faster. The client answers VERSION without asking the agent.
""",
}


def sections(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by who was measured, each in the order that they came."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.who, []).append(row)
    return found


def render_table(rows: Sequence[Row]) -> str:
    """Rows of one section as a Markdown table that is aligned for the eye as well."""
    lines = [(*HEADINGS, rows[0].who, "other", "the other"), *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = [_rule(width, column in TEXT_COLUMNS) for column, width in enumerate(widths)]
    aligned = [[_aligned(cell, widths[i], i in TEXT_COLUMNS) for i, cell in enumerate(line)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [aligned[0], rule, *aligned[1:]])


def render_tables(rows: Sequence[Row]) -> str:
    """A table for each section."""
    return "\n\n".join(map(render_table, sections(rows).values()))


def render_document(
    rows: Sequence[Row], facts: Mapping[str, str], remarks: Sequence[str], plots: Mapping[str, str]
) -> str:
    """The whole docs/benchmarks.md; `plots` are titles with paths relative to it."""
    pictures = [f"![{title}]({path})" for title, path in plots.items()]
    parts = [_section(who, of_it) for who, of_it in sections(rows).items()]
    measured = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    said = "".join(f"- {remark}\n" for remark in remarks)
    return "\n".join(
        [INTRODUCTION, *(f"{each}\n" for each in pictures), *parts, f"## What was measured\n\n{measured}\n{said}"]
    )


def as_json(rows: Sequence[Row], facts: Mapping[str, str], remarks: Sequence[str]) -> dict[str, Any]:
    """The same for programs."""
    return {"measured": dict(facts), "remarks": list(remarks), "rows": [_row(row) for row in rows]}


def conclusion(rows: Sequence[Row]) -> str:
    """A sentence or two about the limits."""
    over = ", ".join(f"{row.what} ({row.who})" for row in missed(rows))
    unchecked = ", ".join(f"{row.what} ({row.who})" for row in rows if row.limit.most and row.ratio is None)
    said = f"over the limit: {over}" if over else "no limit is missed"
    return f"{said}; not checked, for there was nothing to compare with: {unchecked}" if unchecked else said


def _section(who: str, rows: Sequence[Row]) -> str:
    return f"## {who[0].upper()}{who[1:]}\n\n{ABOUT[who]}\n{render_table(rows)}\n"


def _row(row: Row) -> dict[str, Any]:
    names = ("who", "key", "what", "ratio", "over", "against", "ours", "other", "unit")
    limits = {"limit": row.limit.most or None, "aim": row.limit.aim or None}
    return {**{name: getattr(row, name) for name in names}, **limits}


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.what,
        "" if row.ratio is None else f"{row.ratio:.3g}",
        f"{row.limit.most:g}" if row.limit.most else "",
        f"{row.limit.aim:g}" if row.limit.aim else "",
        row.verdict,
        _value(row.ours, row.unit),
        "" if row.other is None else _value(row.other, row.unit),
        row.against,
    )


def _value(value: float, unit: str) -> str:
    """A number that is no count has three digits at least."""
    decimals = 0 if value >= 100 or not unit else 1 if value >= 10 else 2
    return f"{value:,.{decimals}f} {unit}".rstrip()


def _rule(width: int, text: bool) -> str:
    return "-" * width if text else "-" * (width - 1) + ":"


def _aligned(cell: str, width: int, text: bool) -> str:
    return cell.ljust(width) if text else cell.rjust(width)
