"""Locks: exclusive between processes and threads, given back by the dead, and not waited for for ever."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from cni import locks
from cni.attachment import Key
from cni.errors import IOFailure, TryAgainLater
from cni.locks import Locks

KEY, OTHER = Key("lan", "a", "eth0"), Key("lan", "b", "eth0")
KINDS: dict[str, Callable[[Locks], AbstractContextManager[None]]] = {
    "attachment": lambda held: held.attachment(KEY),
    "shim": lambda held: held.shim(7),
    "source NAT": lambda held: held.source_nat(),
}


@pytest.fixture
def held(tmp_path: Path) -> Locks:
    return Locks(str(tmp_path))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_threads_take_turns(held: Locks, kind: Callable[[Locks], AbstractContextManager[None]]) -> None:
    inside: list[str] = []

    def work() -> None:
        with kind(held):
            inside.append("in")
            time.sleep(0.005)
            inside.append("out")

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == ["in", "out"] * 5


def test_different_locks_do_not_wait_for_each_other(held: Locks) -> None:
    with held.attachment(KEY), held.attachment(OTHER), held.shim(1), held.shim(2), held.source_nat():
        pass


def test_who_waits_too_long_is_told_to_try_again(held: Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.05)
    with held.shim(7), pytest.raises(TryAgainLater, match="busy with the shim of if7") as failure, held.shim(7):
        pass
    assert failure.value.code == 11


def test_the_dead_hold_nothing(held: Locks) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with held.attachment(KEY):
            os.write(writer, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(reader, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
    with held.attachment(KEY):
        pass


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    missing = Locks(str(tmp_path / "file" / "below"))
    (tmp_path / "file").write_text("")
    with pytest.raises(IOFailure, match="is dataDir writable"), missing.source_nat():
        pass
