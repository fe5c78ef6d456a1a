"""A network namespace to try things in. It has no name: the kernel takes it back, with all that is in it, at the latest
when this process ends, however it ends.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cni import netns
from cni.errors import KernelRefused


@contextmanager
def namespace() -> Iterator[int]:
    """A descriptor of a new network namespace, for the time of a block. Raises KernelRefused."""
    made: list[int | OSError] = []
    maker = threading.Thread(target=lambda: made.append(_made()))  # it ends there, so that nobody has to go back
    maker.start()
    maker.join()
    (fd,) = made
    if isinstance(fd, OSError):
        raise KernelRefused(f"cannot make a network namespace: {fd.strerror}") from fd
    try:
        yield fd
    finally:
        os.close(fd)


def _made() -> int | OSError:
    """A descriptor of the namespace that this thread has moved to, or why it could not."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(netns.CLONE_NEWNET):
        code = ctypes.get_errno()
        return OSError(code, os.strerror(code))
    return os.open(netns.OWN, os.O_RDONLY | os.O_CLOEXEC)
