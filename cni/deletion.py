"""Deleting a link without waiting for RCU.

The answer to RTM_DELLINK comes after some 17 ms of RCU waits (netdev_run_todo in net/core/dev.c); the notification
comes at once, and then name and MAC are free. Somebody in the background sits out the wait: a child process of the
one-shot plugin, a thread of a process that stays.
"""

from __future__ import annotations

import errno
import os
import select
import time
from contextlib import suppress

from cni import rtnetlink
from cni.errors import CniError, KernelRefused
from cni.netlink import NetlinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni.netlink import Socket

    # Runs an action that yields a number in the background; the descriptor returned yields that number as one byte,
    # and is the caller's to close. Raises OSError.
    Background = Callable[[Callable[[], int]], int]

DELETE_SECONDS = 20.0


def delete_link(watch: Socket, connect: Callable[[], Socket], index: int, background: Background) -> None:
    """Delete a link; returns when the kernel says that it is gone. Raises KernelRefused.

    `watch` hears the link notifications of the namespace, `connect` opens another socket there.
    """
    try:
        done = background(lambda: _delete(connect, index))
    except OSError:  # no more processes or descriptors: the wait is the lesser evil
        _raise_unless_gone(bytes([_delete(connect, index)]))
        return
    try:
        _wait_until_gone(watch, done, index)
    finally:
        os.close(done)


def _delete(connect: Callable[[], Socket], index: int) -> int:
    try:
        with connect() as sender:
            (error,) = sender.request([rtnetlink.delete_link(index)])
    except NetlinkError as failure:
        error = failure
    except CniError:
        return errno.EIO
    return (error.errno or errno.EIO) & 0xFF if error else 0


def in_child(action: Callable[[], int]) -> int:
    """A `Background` that is a child process; it lets go of the standard streams at once.

    A runtime reads ours until the last holder has closed them.
    """
    reader, writer = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if child:
        os.close(writer)
        return reader
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.close(reader)
        os.write(writer, bytes([action()]))
    finally:
        os._exit(0)


def _wait_until_gone(watch: Socket, done: int, index: int) -> None:
    poller = select.poll()
    poller.register(watch.fileno(), select.POLLIN)
    poller.register(done, select.POLLIN)
    deadline = time.monotonic() + DELETE_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        for fd, _ in poller.poll(left * 1000):
            if fd == done:
                _raise_unless_gone(os.read(done, 1))
                return
            with suppress(OSError):  # ENOBUFS: too many notifications; the child's answer will do
                if any(rtnetlink.is_deletion(kind, body, index) for kind, _, _, body in watch.receive()):
                    return
    raise KernelRefused(f"the kernel did not remove the link within {DELETE_SECONDS:.0f} s")


def _raise_unless_gone(answer: bytes) -> None:
    code = answer[0] if answer else errno.EIO
    if code not in (0, errno.ENODEV):
        raise KernelRefused(f"cannot remove the link: {os.strerror(code)}")
