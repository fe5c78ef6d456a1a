"""systemd's two protocols, spoken with real descriptors and a real socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cni.agent import systemd

ROOT = Path(__file__).parents[2]

# What the service manager does between fork and exec, and what the service prints of it.
SERVICE = """
import os, sys
from cni.agent import systemd
os.environ["LISTEN_PID"] = str(os.getpid())
fds = systemd.listen_fds(os.environ)
print(fds, [os.get_inheritable(fd) for fd in fds], [name for name in os.environ if name.startswith("LISTEN_")])
"""


def started_with(descriptors: int) -> str:
    """What a service prints that gets so many descriptors."""
    passed = [os.open(os.devnull, os.O_RDONLY) for _ in range(descriptors)]

    def arrange() -> None:
        for number, fd in enumerate([os.dup(fd) for fd in passed], systemd.FIRST):
            os.dup2(fd, number)

    try:
        done = subprocess.run(
            [sys.executable, "-c", SERVICE],
            env={"PYTHONPATH": str(ROOT), "LISTEN_FDS": str(descriptors), "LISTEN_FDNAMES": "a:b"},
            preexec_fn=arrange,
            close_fds=False,
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        for fd in passed:
            os.close(fd)
    return done.stdout.strip()


def test_descriptors_that_were_passed_are_found_and_not_passed_on() -> None:
    assert started_with(2) == "[3, 4] [False, False] []"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "agent"},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid())},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"},
    ],
    ids=["nothing", "meant for another process", "meant for nobody", "no number", "none"],
)
def test_without_descriptors_for_us_there_are_none(environ: dict[str, str]) -> None:
    environ["PATH"] = "/bin"
    assert systemd.listen_fds(environ) == []
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("count", "reason"), [("two", "is no number"), ("-1", "is no number"), ("5000000", "not open")]
)
def test_a_lie_is_an_error(count: str, reason: str) -> None:
    with pytest.raises(OSError, match=reason):
        systemd.listen_fds({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})


def test_nobody_to_notify_is_no_error() -> None:
    systemd.notify("READY=1", {})
    systemd.notify("READY=1", {"NOTIFY_SOCKET": ""})


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_systemd_is_notified(kind: str, tmp_path: Path) -> None:
    name = str(tmp_path / "notify") if kind == "path" else f"@shimlan-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        systemd.notify("READY=1\nSTATUS=2 pods", {"NOTIFY_SOCKET": name})
        assert manager.recv(100) == b"READY=1\nSTATUS=2 pods"


def test_a_manager_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        systemd.notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")})
