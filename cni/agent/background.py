"""Waiting for the kernel on threads: what `cni.deletion` leaves to somebody in the background.

One thread per deletion under way, as each of them sits in a system call for some 17 ms; threads that are free wait for
the next one for a while. Nothing here knows what it writes.
"""

from __future__ import annotations

import os
import queue
import threading
from contextlib import suppress

IDLE_SECONDS = 10.0
MOST = 512  # threads; beyond, `cni.deletion` waits in the foreground


class Background:
    """A `cni.deletion.Background` for processes that stay."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        self._free = threading.Semaphore(0)
        self._threads = threading.BoundedSemaphore(MOST)

    def __call__(self, fd: int, data: bytes) -> None:
        """Write to a descriptor on a thread; it may be closed meanwhile. Raises OSError."""
        copy = os.dup(fd)
        try:
            self._engage()
        except OSError:
            os.close(copy)
            raise
        self._work.put((copy, data))

    def _engage(self) -> None:
        """Have a thread wait for one more task: one that is free, or another one. Raises OSError."""
        if self._free.acquire(blocking=False):
            return
        if not self._threads.acquire(blocking=False):
            raise BlockingIOError(f"{MOST} deletions are under way")
        try:
            threading.Thread(target=self._run, name="deletion", daemon=True).start()
        except RuntimeError as error:
            self._threads.release()
            raise BlockingIOError(f"no more threads: {error}") from error

    def _run(self) -> None:
        try:
            while task := self._next():
                _write(*task)
                self._free.release()
        finally:
            self._threads.release()

    def _next(self) -> tuple[int, bytes] | None:
        """What to write next; None to end."""
        while True:
            try:
                return self._work.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                if self._free.acquire(blocking=False):
                    return None
                # Somebody has just counted on this thread.


def _write(fd: int, data: bytes) -> None:
    """Write to a descriptor and close it; whoever waits for an effect in vain finds out by himself."""
    with suppress(OSError):
        os.write(fd, data)
    os.close(fd)
