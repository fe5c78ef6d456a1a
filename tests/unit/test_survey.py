"""What can be seen of pods: whether the namespace of an attachment is there, gone, or perhaps only out of sight."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cni import survey
from cni.frozen import replace
from cni.netns import OWN, own_identity
from cni.survey import GONE, PRESENT, UNCLEAR, Standing, receives_mounts, standing
from tests.unit.attachments import planned

NO_PROCESS = "/proc/4194305/ns/net"  # above the highest number that a process can have


def stands(netns: str | Path, netns_id: str = "4:1") -> Standing:
    return standing(replace(planned(), netns=str(netns), netns_id=netns_id))


def test_a_namespace_is_known_by_its_identity() -> None:
    assert stands(OWN, own_identity()) == Standing(PRESENT)
    assert stands(OWN) == Standing(GONE, f"{OWN} is another namespace by now")


SHARED, SLAVE, PRIVATE = "shared:7", "master:7", ""


def mounted(point: str | Path, peers: str) -> list[str]:
    """A line of mountinfo."""
    return f"30 20 0:25 / {point} rw,nosuid {peers} - tmpfs tmpfs rw".split()


@pytest.mark.parametrize(("peers", "state"), [(SHARED, GONE), (SLAVE, GONE), (PRIVATE, UNCLEAR)])
@pytest.mark.parametrize("is_file", [False, True])
def test_it_is_gone_where_it_would_be_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, peers: str, state: str, is_file: bool
) -> None:
    """What the host mounts does not show in a container that has the directory without propagation."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(" ".join(mounted("/", peers)) + "\n")
    monkeypatch.setattr(survey, "MOUNTS", str(mounts))
    monkeypatch.setattr(survey, "INITIAL_PID_NAMESPACE", 0)
    path = tmp_path / "pod"
    if is_file:
        path.touch()
    found = stands(path)
    assert found.state == state
    assert found.reason.startswith(f"{path} " if state == GONE else "what the host mounts")


@pytest.mark.parametrize(
    ("table", "directory", "receives"),
    [
        ([("/", SHARED)], "/run/netns", True),
        ([("/", SHARED), ("/run", PRIVATE)], "/run/netns", False),
        ([("/", PRIVATE), ("/run/netns", SLAVE)], "/run/netns", True),
        ([("/run/netns", SLAVE), ("/", PRIVATE)], "/run/netns", True),
        ([("/", SHARED), ("/run/net", PRIVATE)], "/run/netns", True),
        ([("/run/netns", PRIVATE), ("/run/netns", SHARED)], "/run/netns", True),
        ([("/", PRIVATE), (r"/run/net\040ns", SHARED)], "/run/net ns", True),
        ([], "/run/netns", False),
    ],
)
def test_a_mount_shows_where_the_one_below_has_peers(
    table: list[tuple[str, str]], directory: str, receives: bool
) -> None:
    assert receives_mounts([mounted(*each) for each in table], directory) is receives


@pytest.mark.parametrize("place", ["elsewhere/pod", "file/pod"])
def test_it_may_be_out_of_sight_when_its_directory_is_not_there(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / place
    assert stands(path) == Standing(UNCLEAR, f"there is no {path.parent} here")


def test_processes_that_are_gone_take_their_namespaces_along() -> None:
    sees_all = os.stat("/proc/self/ns/pid").st_ino == survey.INITIAL_PID_NAMESPACE
    assert stands(NO_PROCESS).state == (GONE if sees_all else UNCLEAR)


@pytest.mark.parametrize(("initial", "state"), [(True, GONE), (False, UNCLEAR)])
def test_but_only_who_sees_all_processes_can_tell(monkeypatch: pytest.MonkeyPatch, initial: bool, state: str) -> None:
    own = os.stat("/proc/self/ns/pid").st_ino
    monkeypatch.setattr(survey, "INITIAL_PID_NAMESPACE", own if initial else own + 1)
    assert stands(NO_PROCESS).state == state


def test_what_cannot_be_looked_at_is_unclear(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert stands(loop).state == UNCLEAR
