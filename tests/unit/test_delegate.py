"""Delegates that do not end: nobody waits for them for ever, and nothing of them is left."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cni import delegate
from cni.attachment import Delegation
from cni.errors import DelegateFailed
from cni.protocol import Call

CALL = Call("ADD", "c", "/run/netns/c", "eth0")


def plugin(directory: Path, body: str) -> Delegation:
    """A delegate that does this."""
    program = directory / "fake-ipam"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return Delegation("fake-ipam", "{}", str(directory), "")


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits only for its parent to notice."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("itself", ["wait", "exit 0"], ids=["hangs", "leaves a child that holds its stdout"])
def test_a_delegate_that_does_not_end_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, itself: str
) -> None:
    monkeypatch.setattr(delegate, "TIMEOUT_SECONDS", 0.5)
    hanging = plugin(tmp_path, f"sleep 1000 & echo $! > {tmp_path}/child; {itself}")
    with pytest.raises(DelegateFailed, match=r"fake-ipam ADD was not done in 0\.5 s"):
        delegate.add(hanging, CALL)
    child = int((tmp_path / "child").read_text())
    until = time.monotonic() + 10
    while not has_ended(child) and time.monotonic() < until:
        time.sleep(0.01)
    assert has_ended(child)


def test_a_delegate_that_does_not_read_its_configuration_is_served(tmp_path: Path) -> None:
    assert delegate.add(plugin(tmp_path, "echo '{}'"), CALL) is not None
