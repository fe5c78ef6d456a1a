"""What shimlan can leave behind on a node, in a form that can be compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e.machine import eventually, execute

SHIMLANCTL = str(Path(sys.executable).with_name("shimlanctl"))
QUESTIONS = (
    "ip -br link",
    "ip route show table all proto 174",
    "ip -6 route show table all proto 174",
    "ip neigh show nud permanent",
    "nft list tables",
)
RESULTS = Path("/var/lib/cni/results")  # where libcni keeps the results of ADDs


@contextmanager
def nothing_left(state_dir: Path) -> Iterator[None]:
    """After the block the node is as it was before, and a data directory has nothing."""
    before = of_node()
    yield
    eventually(lambda: of_node() == before, f"the node is as it was: {before}")
    left = of_store(state_dir)
    assert not left, left


def of_node() -> dict[str, object]:
    """Links, routes, neighbours and tables of this namespace; results that libcni keeps of our network."""
    told = {question: sorted(_steady(execute(question.split()).output)) for question in QUESTIONS}
    return {**told, "results": sorted(each.name for each in RESULTS.glob("e2e-*"))}


def _steady(told: str) -> list[str]:
    return [line.strip() for line in told.splitlines()]


def of_store(state_dir: Path) -> list[object]:
    """The attachments and the held leases of a data directory."""
    if not state_dir.exists():
        return []
    attachments = _ask(state_dir, "status")["attachments"]
    leases = [lease for lease in _ask(state_dir, "pool", "leases") if lease["state"] == "held"]
    return [*attachments, *leases]


def _ask(state_dir: Path, *question: str) -> Any:
    done = execute([SHIMLANCTL, *question, "--state-dir", str(state_dir), "-o", "json"])
    return json.loads(done.output)
