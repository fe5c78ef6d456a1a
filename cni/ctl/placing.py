"""Files that other programs may read at any moment: placed whole or not at all, set aside, put back.

What a file should be is decided elsewhere (`cni.ctl.wares`). Whoever looks, decides and acts does so in `alone_in` the
directory, so that two installers do not undo each other's work.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from cni.errors import TryAgainLater

WAIT_SECONDS = 60.0
PAUSE_SECONDS = 0.05
UNFINISHED = ".shimlan-unfinished-"  # a runtime loads no file of such a name
ASIDE = ".bak-shimlan-"


@contextmanager
def alone_in(directory: str) -> Iterator[None]:
    """Keep other installers out of a directory, which is made if need be. Raises TryAgainLater, OSError.

    The lock is on the directory itself: nothing is left of it, and it holds across containers that share the directory.
    """
    os.makedirs(directory, mode=0o755, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(fd, directory)
        for name in os.listdir(fd):
            if name.startswith(UNFINISHED):  # of an installer that was killed: a living one has the lock
                os.unlink(name, dir_fd=fd)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, directory: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TryAgainLater(f"{directory} is locked by another installer: end it, or try again") from None
        time.sleep(PAUSE_SECONDS)


def place(path: str, content: bytes, mode: int, verify: Callable[[str], None] | None = None) -> None:
    """Put a file in place, so that at any moment the old one or the new one is there; on the disk when it returns.

    `verify` gets the path of the finished file before it takes its place, and raises when it is no good.
    """
    directory = os.path.dirname(path)
    fd, new = tempfile.mkstemp(prefix=UNFINISHED, dir=directory)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            os.fchmod(fd, mode)
            file.flush()
            os.fsync(fd)
        if verify:
            verify(new)
        os.rename(new, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(new)
        raise
    sync(directory)


def set_aside(path: str) -> str:
    """Keep what stands at a path under another name as well, which is returned: `put_back` finds it."""
    for kept in _asides(path):
        if os.path.samestat(os.lstat(kept), os.lstat(path)):  # by somebody who got no further
            return kept
    aside = f"{path}{ASIDE}{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    os.link(path, aside, follow_symlinks=False)
    return aside


def put_back(path: str) -> str | None:
    """Rename what was set aside last back, over what is there; its name, None if nothing was."""
    asides = _asides(path)
    if not asides:
        return None
    os.rename(asides[-1], path)
    sync(os.path.dirname(path))
    return asides[-1]


def _asides(path: str) -> list[str]:
    """What was set aside from a path, the last one at the end."""
    directory, name = os.path.split(path)
    return sorted(os.path.join(directory, entry) for entry in os.listdir(directory) if entry.startswith(name + ASIDE))


def remove(path: str) -> None:
    """Remove a file for good."""
    os.unlink(path)
    sync(os.path.dirname(path))


def sync(directory: str) -> None:
    """Have the names in a directory on the disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
