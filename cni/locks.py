"""Locks between the processes that share a data directory.

One file, one byte of it per lock: the kernel gives a lock back when its holder dies, and nothing is left to clean up.
Open-file-description locks (fcntl(2), F_OFD_SETLK) also hold between the threads of one process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
import zlib
from contextlib import contextmanager

from cni.errors import IOFailure, TryAgainLater

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni.attachment import Key

WAIT_SECONDS = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.02

FLOCK = struct.Struct("@hhqqi4x")  # struct flock of 64-bit Linux, include/uapi/asm-generic/fcntl.h
# Bytes of the lock file: an interface index has 31 bits, attachments follow from the 33rd on.
SOURCE_NAT = 1 << 31
ATTACHMENTS = 1 << 32
TO_THE_END = 0  # as a length


class Locks:
    """The locks of one data directory."""

    def __init__(self, data_dir: str) -> None:
        self._path = f"{data_dir}/lock"

    def attachment(self, key: Key) -> _Held:
        """One command at a time per attachment; a collision of checksums only costs some parallelism."""
        return self._hold(_byte(key), f"attachment {key.container_id}")

    @contextmanager
    def attachment_if_free(self, key: Key) -> Iterator[bool]:
        """The same without waiting; whether it is ours. For those who hold one and must not wait for another."""
        with self._opened() as fd:
            yield _locked(fd, _byte(key))

    def shim(self, parent_index: int) -> _Held:
        """Creating and removing the shim of one parent."""
        return self._hold(parent_index, f"shim of if{parent_index}")

    def everything(self) -> _Held:
        """Nobody else holds any of these locks: no command is under way."""
        return self._hold(0, "attachments", length=TO_THE_END)

    def source_nat(self) -> _Held:
        """Rewriting the nftables table."""
        return self._hold(SOURCE_NAT, "nftables table")

    @contextmanager
    def _hold(self, byte: int, what: str, length: int = 1) -> Iterator[None]:
        with self._opened() as fd:
            _acquire(fd, byte, what, length)
            yield

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The lock file; what was locked through it is free again at the end."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise IOFailure(f"cannot open {self._path}: {error.strerror}; is dataDir writable?") from error
        try:
            yield fd
        finally:
            # Closing would not do: a child process that waits for a link's deletion shares the open file.
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
            os.close(fd)


if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    _Held = AbstractContextManager[None]


def _byte(key: Key) -> int:
    return ATTACHMENTS + zlib.crc32(key.alias.encode())


def _acquire(fd: int, byte: int, what: str, length: int = 1) -> None:
    deadline, pause = time.monotonic() + WAIT_SECONDS, FIRST_PAUSE
    while not _locked(fd, byte, length):
        if time.monotonic() > deadline:
            raise TryAgainLater(f"another process has been busy with the {what} for {WAIT_SECONDS:.0f} s")
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE)


def _locked(fd: int, byte: int, length: int = 1) -> bool:
    """Take the lock if nobody has it; whether that succeeded."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, length, 0))
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True
