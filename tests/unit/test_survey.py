"""What can be seen of pods: whether the namespace of an attachment is there, gone, or perhaps only out of sight."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cni import survey
from cni.frozen import replace
from cni.netns import identity_of
from cni.survey import GONE, PRESENT, UNCLEAR, Standing, standing
from tests.unit.attachments import planned

NO_PROCESS = "/proc/4194305/ns/net"  # above the highest number that a process can have


def stands(netns: str | Path, netns_id: str = "4:1") -> Standing:
    return standing(replace(planned(), netns=str(netns), netns_id=netns_id))


def test_a_namespace_is_known_by_its_identity(tmp_path: Path) -> None:
    path = tmp_path / "pod"
    path.touch()
    assert stands(path, identity_of(path.stat())) == Standing(PRESENT)
    assert stands(path) == Standing(GONE, f"{path} is another namespace by now")


def test_it_is_gone_when_its_directory_is_there_and_it_is_not(tmp_path: Path) -> None:
    assert stands(tmp_path / "pod") == Standing(GONE, f"{tmp_path}/pod does not exist")


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
