"""The table of docs/modes.md: who reaches whom, tried cell by cell."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from cni.ctl.lab import CniFailed, Lab, Node, Pod

DOCUMENT = Path(__file__).parents[2] / "docs/modes.md"
COLUMNS = ("pod ↔ sibling", "pod → host", "host → pod", "pod ↔ outside", "host ↔ outside")
SHIMLESS = ("`private`", "`vepa`", "`passthru`", "`source`, all listed", "`source`, none listed")
WAIT = 0.5  # seconds
MACS = {"a": "02:00:00:00:00:0a", "b": "02:00:00:00:00:0b"}


@dataclass(frozen=True)
class Row:
    """A row of the table: what is tried, and what is told about it."""

    mode: str
    shim: str
    switch: str
    told: dict[str, str]  # by column


def rows() -> list[Row]:
    """The first table of the document."""
    lines = DOCUMENT.read_text().splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("| Mode |"))
    assert cells(lines[head])[3:] == list(COLUMNS)
    body = []
    for line in lines[head + 2 :]:
        if not line.startswith("|"):
            break
        mode, shim, switch, *told = cells(line)
        body.append(Row(mode, shim, switch, dict(zip(COLUMNS, told, strict=True))))
    return body


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_combination_has_its_row() -> None:
    switches = ("plain", "hairpin")
    wanted = [("`bridge`", *rest) for rest in product(("yes", "no"), switches)]
    wanted += [(mode, "no", switch) for mode, switch in product(SHIMLESS, switches)]
    assert [(row.mode, row.shim, row.switch) for row in rows()] == wanted


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.mode}-shim:{row.shim}-{row.switch}")
def test_it_is_as_the_table_says(lab: Lab, row: Row) -> None:
    assert tried(lab, row) == row.told


def tried(lab: Lab, row: Row, **changes: Any) -> dict[str, str]:
    """What becomes of a row when pods are attached so, with some changes to their configuration."""
    lab.switch.hairpin(lab.host, row.switch == "hairpin")
    pod = lab.pod("a", conf(lab, row, "a") | changes)
    sibling = sibling_of(lab, conf(lab, row, "b") | changes)
    found = (
        both(pod, sibling) if sibling else "alone",
        reach(pod, lab.host),
        reach(lab.host, pod),
        both(pod, lab.outside),
        both(lab.host, lab.outside),
    )
    return dict(zip(COLUMNS, found, strict=True))


def conf(lab: Lab, row: Row, name: str) -> dict[str, Any]:
    """The configuration of a row, for one of the pods."""
    mode, _, listed = row.mode.partition(", ")
    changes: dict[str, Any] = {"mode": mode.strip("`"), "mac": MACS[name]}
    if changes["mode"] == "bridge":
        changes["shim"] = row.shim == "yes"
    if changes["mode"] == "passthru":
        changes["mac"] = None
    if listed == "all listed":
        changes["sourceMacs"] = [*MACS.values(), lab.host.mac, lab.outside.mac]
    return lab.conf(dual=True, **changes)


def sibling_of(lab: Lab, conf: dict[str, Any]) -> Pod | None:
    """A second pod on the same NIC, None where the kernel allows no second one."""
    if conf["mode"] == "passthru":
        with pytest.raises(CniFailed, match="passthru excludes all others"):
            lab.pod("b", conf)
        return None
    return lab.pod("b", conf)


def both(one: Node, other: Node) -> str:
    """Whether two machines reach each other, which has to be the same from both sides."""
    (found,) = {reach(one, other), reach(other, one)}
    return found


def reach(source: Node, target: Node) -> str:
    """Whether one machine reaches another, or only if that one has spoken first; alike in both families."""
    (found,) = {_reach(source, target, family) for family in (4, 6)}
    return found


def _reach(source: Node, target: Node, family: int) -> str:
    for node in (source, target):  # what they have learned from each other; what shimlan told them is permanent
        node.ip("neigh", "flush", "all")
    if source.pings(target, family, wait=WAIT):
        return "yes"
    return "answers" if target.pings(source, family, wait=WAIT) and source.pings(target, family, wait=WAIT) else "no"
