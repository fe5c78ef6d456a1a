"""A store that cannot be written, opened or locked: a clear error, nothing half-done, and DEL gets there in the end."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cni.ctl import sandbox
from cni.ctl.lab import CniAnswer, Lab, Pod
from cni.database import BUSY_SECONDS, FILE
from tests.kernel.torture import footprint, inventory, launch, read_only

SHIM = {"routes": ["10.96.0.0/12"]}
IO_FAILURE, TRY_AGAIN_LATER, NOT_AVAILABLE = 5, 11, 50


def call(lab: Lab, pod: Pod, command: str) -> CniAnswer:
    """One verb for a pod."""
    return launch(lab, pod, command).land()


def refused(answer: CniAnswer, code: int, *words: str) -> None:
    """The answer is an error with a code, whose message says what is wrong, where, and what to do."""
    assert answer.status == 1, answer.stdout
    assert answer.json["code"] == code
    assert [word for word in words if word not in answer.json["msg"]] == [], answer.json["msg"]
    assert "Traceback" not in answer.stderr


@pytest.fixture
def tiny() -> Iterator[Path]:
    """A file system that other things can fill; an agent lets its write-ahead log grow to some 4 MB."""
    with tempfile.TemporaryDirectory(dir=sandbox.SCRATCH) as directory:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", directory], check=True)
        try:
            yield Path(directory)
        finally:
            subprocess.run(["umount", "--lazy", directory], check=True)


@contextmanager
def filled(directory: Path) -> Iterator[None]:
    """A file system without a free block, for the time of a block."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    yield
    ballast.unlink()


def network(lab: Lab, *pods: Pod) -> list[str]:
    """What there is, without the store, which cannot be asked."""
    return [line for node in (lab.host, *pods) for line in footprint(node)]


# --- a full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [False, True], ids=["new", "in-use"])
def test_a_full_disk_refuses_an_add_and_leaves_nothing(lab: Lab, tiny: Path, used: bool) -> None:
    lab.data_dir = str(tiny / "data")
    conf = lab.conf(dual=True, shim=SHIM)
    living = [lab.pod("living", conf)] if used else []
    pod = lab.container("pod", conf)
    before = network(lab, pod, *living)
    with filled(tiny):
        refused(call(lab, pod, "ADD"), IO_FAILURE, lab.data_dir, "disk", "free")
        assert network(lab, pod, *living) == before
    stored = inventory(lab)
    assert not any(pod.container_id in line for line in stored)
    pod.add()
    for one in (pod, *living):
        one.check()
        assert lab.host.pings(one)


def test_a_disk_that_fills_up_during_many_adds_leaves_nothing_half_done(lab: Lab, tiny: Path) -> None:
    """Each ADD gets further than the one before, by one block."""
    lab.data_dir = str(tiny / "data")
    pod = lab.container("pod", lab.conf(dual=True, shim=SHIM))
    before = network(lab, pod)
    codes = []
    with filled(tiny):
        for size in range((tiny / "ballast").stat().st_size, 0, -4096):
            os.truncate(tiny / "ballast", size)
            answer = call(lab, pod, "ADD")
            codes.append(answer.status and answer.json["code"])
            if answer.ok:
                break
            refused(answer, IO_FAILURE, lab.data_dir)
            assert network(lab, pod) == before
    assert len(codes) > 3
    pod.delete()
    assert network(lab, pod) == before


def test_a_full_disk_keeps_a_del_from_finishing_but_not_for_ever(lab: Lab, tiny: Path) -> None:
    lab.data_dir = str(tiny / "data")
    living = lab.pod("living", lab.conf(dual=True, shim=SHIM))
    before = inventory(lab)
    pods = [lab.pod(f"pod{number}", lab.conf(dual=True, shim=SHIM)) for number in range(4)]
    with filled(tiny):
        answers = [call(lab, pod, "DEL") for pod in pods]
        for answer in answers:
            if not answer.ok:
                refused(answer, IO_FAILURE, lab.data_dir)
    for pod in pods:
        pod.delete()
        assert [link["ifname"] for link in pod.links()] == ["lo"]
    assert inventory(lab) == before
    living.check()


# --- a store that cannot be written --------------------------------------------------------------------------------


def test_a_read_only_store_refuses_every_verb_that_writes(lab: Lab) -> None:
    living, pod = lab.pod("living", lab.conf(dual=True, shim=SHIM)), lab.container("pod", lab.conf(dual=True))
    before = inventory(lab, living, pod)
    with read_only(lab.data_dir):
        for one, command in ((pod, "ADD"), (living, "DEL"), (living, "GC")):
            answer = launch(lab, one, command, **{"cni.dev/valid-attachments": []}).land()
            refused(answer, IO_FAILURE, lab.data_dir, "dataDir")
        refused(call(lab, pod, "STATUS"), NOT_AVAILABLE, lab.data_dir)
    assert inventory(lab, living, pod) == before
    living.check()
    living.delete()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_data_dir_that_is_a_file_is_named(lab: Lab, place: str) -> None:
    Path(lab.data_dir, "file").touch()
    pod = lab.container("pod", {**lab.conf(), "dataDir": f"{lab.data_dir}/{place}"})
    before = inventory(lab, pod)
    for command in ("ADD", "DEL"):
        refused(call(lab, pod, command), IO_FAILURE, f"{lab.data_dir}/{place}", "dataDir")
    assert inventory(lab, pod) == before


def test_a_lease_directory_that_is_a_file_is_named(lab: Lab) -> None:
    """ipam.dataDir may be another one: then the leases are elsewhere than the records."""
    Path(lab.data_dir, "file").touch()
    pod = lab.container("pod", lab.conf(ipam={"dataDir": f"{lab.data_dir}/file"}))
    before = inventory(lab, pod)
    refused(call(lab, pod, "ADD"), IO_FAILURE, f"{lab.data_dir}/file")
    assert inventory(lab, pod) == before


# --- a store that is locked ------------------------------------------------------------------------------------------


@contextmanager
def locked(lab: Lab) -> Iterator[None]:
    """Somebody else writes to the store, for the time of a block."""
    rival = sqlite3.connect(f"{lab.data_dir}/{FILE}", isolation_level=None)
    rival.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        rival.execute("ROLLBACK")
        rival.close()


def test_a_locked_store_asks_to_try_again_and_nothing_is_touched(lab: Lab) -> None:
    living, pod = lab.pod("living", lab.conf(dual=True)), lab.container("pod", lab.conf(dual=True))
    before = inventory(lab, living, pod)
    with locked(lab):
        flights = [launch(lab, one, command) for one, command in ((pod, "ADD"), (living, "DEL"), (living, "CHECK"))]
        for flight in flights:
            refused(flight.land(), TRY_AGAIN_LATER, lab.data_dir, f"{BUSY_SECONDS:g} s")
    assert inventory(lab, living, pod) == before
    living.check()
    living.delete()
    pod.add()


# --- a store that is gone --------------------------------------------------------------------------------------------


def test_pods_can_go_after_their_store_is_lost(lab: Lab) -> None:
    before = network(lab)
    pods = [lab.pod(f"pod{number}", lab.conf(dual=True, shim=SHIM)) for number in range(2)]
    shutil.rmtree(lab.data_dir)
    first, second = pods
    first.delete()
    assert lab.host.pings(second), "the shim went with the first pod, and the second one is cut off"
    second.delete()
    assert network(lab) == before
    assert [link["ifname"] for pod in pods for link in pod.links()] == ["lo", "lo"]
    os.makedirs(lab.data_dir, exist_ok=True)
