"""Locks between the processes that share a data directory.

One file, one byte of it per lock: the kernel gives a lock back when its holder dies, and nothing is left to clean up.
Open-file-description locks (fcntl(2), F_OFD_SETLK) also hold between the threads of one process, but who waits for
one has to look again and again. So threads queue up for a lock of the process first, which wakes them in time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
import zlib
from _thread import allocate_lock
from contextlib import contextmanager

from cni.errors import IOFailure, TryAgainLater

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Iterator

    from cni.attachment import Key

WAIT_SECONDS = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.001, 0.02

FLOCK = struct.Struct("@hhqqi4x")  # struct flock of 64-bit Linux, include/uapi/asm-generic/fcntl.h
# Bytes of the lock file: an interface index has 31 bits, a checksum 32.
SOURCE_NAT = 1 << 31
ATTACHMENTS = 1 << 32
VLANS = 1 << 33
TO_THE_END = 0  # as a length
UNLOCK = FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, TO_THE_END, 0)
QUEUES = 1024  # for attachments; to share one only costs some parallelism


class Locks:
    """The locks of one data directory."""

    def __init__(self, data_dir: str) -> None:
        self._path = f"{data_dir}/lock"
        self._queues: dict[int, LockType] = {}

    def attachment(self, key: Key) -> Held:
        """One command at a time per attachment; a collision of checksums only costs some parallelism."""
        byte = _byte(key)
        return Held(self._path, byte, f"attachment {key.container_id}", self._queue(ATTACHMENTS + byte % QUEUES))

    @contextmanager
    def attachment_if_free(self, key: Key) -> Iterator[bool]:
        """The same without waiting; whether it is ours. For those who hold one and must not wait for another."""
        fd = _open(self._path)
        try:
            yield _locked(fd, _byte(key))
        finally:
            _release(fd)

    def shim(self, parent_index: int) -> Held:
        """Creating and removing the shim of one parent."""
        return Held(self._path, parent_index, f"shim of if{parent_index}", self._queue(parent_index))

    def vlan(self, device: str) -> Held:
        """Creating and removing a VLAN device, and becoming its user; to be taken before the lock of a shim on it."""
        byte = VLANS + zlib.crc32(device.encode(errors="surrogateescape"))
        return Held(self._path, byte, f"VLAN device {device}", self._queue(byte))

    def everything(self) -> Held:
        """Nobody else holds any of these locks: no command is under way."""
        return Held(self._path, 0, "attachments", self._queue(0), length=TO_THE_END)

    def source_nat(self) -> Held:
        """Rewriting the nftables table."""
        return Held(self._path, SOURCE_NAT, "nftables table", self._queue(SOURCE_NAT))

    def _queue(self, number: int) -> LockType:
        return self._queues.setdefault(number, allocate_lock())


class Held:
    """A lock for the time of a `with` block. Raises TryAgainLater and IOFailure on entering."""

    def __init__(self, path: str, byte: int, what: str, queue: LockType, length: int = 1) -> None:
        self._path, self._byte, self._length = path, byte, length
        self._what = what
        self._queue = queue
        self._fd = -1

    def __enter__(self) -> None:
        if not self._queue.acquire(timeout=WAIT_SECONDS):
            raise _busy(self._what)
        try:
            self._fd = _open(self._path)
            try:
                _acquire(self._fd, self._byte, self._what, self._length)
            except BaseException:
                _release(self._fd)
                raise
        except BaseException:
            self._queue.release()
            raise

    def __exit__(self, *_: object) -> None:
        _release(self._fd)
        self._queue.release()


def _open(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:  # whoever stays may outlive the directory
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            return os.open(path, flags, 0o600)
    except OSError as error:
        raise IOFailure(f"cannot open {path}: {error.strerror}; is dataDir writable?") from error


def _release(fd: int) -> None:
    """Give back what was locked through a descriptor, and close it."""
    # Closing would not do: a child process that waits for a link's deletion shares the open file.
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, UNLOCK)
    os.close(fd)


def _byte(key: Key) -> int:
    return ATTACHMENTS + zlib.crc32(key.alias.encode())


def _acquire(fd: int, byte: int, what: str, length: int = 1) -> None:
    deadline, pause = time.monotonic() + WAIT_SECONDS, FIRST_PAUSE
    while not _locked(fd, byte, length):
        if time.monotonic() > deadline:
            raise _busy(what)
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE)


def _busy(what: str) -> TryAgainLater:
    return TryAgainLater(f"another process has been busy with the {what} for {WAIT_SECONDS:.0f} s")


def _locked(fd: int, byte: int, length: int = 1) -> bool:
    """Take the lock if nobody has it; whether that succeeded."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, length, 0))
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True
