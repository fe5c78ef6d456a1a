"""The rows as pictures, by matplotlib. The same rows give the same bytes."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.datapath import BRIDGE, SMALL
from bench.samples import AGENT, DATA_PATH, IN_PROCESS, PEER, Row
from cni.frozen import frozen

# Told apart also by those who do not see all colours (Okabe and Ito).
COLOURS = {AGENT: "#0072b2", IN_PROCESS: "#56b4e9", PEER: "#d55e00", DATA_PATH: "#0072b2", BRIDGE: "#d55e00"}
# A white ground, whatever the page around it has; letters that the reader's machine draws.
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "shimlan",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "figure.facecolor": "white",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
}
NO_METADATA = {"Date": None, "Creator": None}
PANEL_INCHES, HEIGHT_INCHES = 4.2, 3.4

# What is in a panel, where the title of its picture does not say so.
TITLES = {"µs": "round trip", "packets/s": f"UDP, {SMALL} bytes each", "Mbit/s": "TCP"}

Bars = dict[str, dict[str, float]]  # what the legend names: what stands below the bar: value


@frozen
class Plot:
    """A picture of the rows of some keys, with a panel for each unit."""

    name: str
    title: str
    keys: tuple[str, ...]
    logarithmic: bool = True


PLOTS = (
    Plot("latency", "One call, median", ("ADD", "DEL", "DUAL", "CHECK", "VERSION", "CPU")),
    Plot("burst", "ADDs at once: until all are done, and each", ("BURST",)),
    Plot("leases", "ADD with leases held, median", ("LEASES",)),
    Plot("data-path", "Data path, median", ("PATH",), logarithmic=False),
)


def available() -> bool:
    """Whether there is something to draw with."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(rows: Sequence[Row], directory: Path) -> dict[str, Path]:
    """Write what can be drawn of the rows into a directory; titles with files."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for plot in PLOTS:
        chosen = [row for row in rows if row.key in plot.keys and row.short]
        if chosen:
            drawn[plot.title] = directory / f"{plot.name}.svg"
            _write(plot, chosen, drawn[plot.title])
    return drawn


def bars(rows: Sequence[Row]) -> Bars:
    """The values of rows, and of those who are compared with."""
    found: Bars = {}
    for row in rows:
        found.setdefault(row.who, {})[row.short] = row.ours
        if row.other is not None and row.against in COLOURS:
            found.setdefault(row.against, {})[row.short] = row.other
    return {who: found[who] for who in COLOURS if who in found}


def _write(plot: Plot, rows: Sequence[Row], path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels: dict[str, list[Row]] = {}
    for row in rows:
        panels.setdefault(row.unit, []).append(row)
    width = PANEL_INCHES * (len(panels) if len(panels) > 1 else 2)
    with rc_context(STYLE):
        figure = Figure(figsize=(width, HEIGHT_INCHES), layout="constrained")
        for axes, (unit, of_it) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            axes.set_title(TITLES.get(unit, ""), fontsize=9)
            axes.set_ylabel(unit)
            axes.set_yscale("log" if plot.logarithmic else "linear")
            axes.yaxis.set_major_formatter("{x:,g}")
            _draw_bars(axes, bars(of_it))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(plot.title)
        figure.savefig(path, format="svg", metadata=NO_METADATA)


def _draw_bars(axes: Any, found: Bars) -> None:
    below = list(dict.fromkeys(name for values in found.values() for name in values))
    width = 0.8 / len(found)
    for number, (who, values) in enumerate(found.items()):
        places = [below.index(name) + (number - (len(found) - 1) / 2) * width for name in values]
        drawn = axes.bar(places, list(values.values()), width, label=who, color=COLOURS[who])
        axes.bar_label(drawn, fmt=_shortly, fontsize=7, padding=1)
    axes.set_xticks(range(len(below)), below)
    axes.margins(y=0.1)


def _shortly(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
