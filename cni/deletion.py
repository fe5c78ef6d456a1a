"""Deleting a link without waiting for RCU.

The answer to RTM_DELLINK comes after some 17 ms of RCU waits (netdev_run_todo in net/core/dev.c), for which sending the
request takes that long; the notification comes at once, and then name and MAC are free. Somebody in the background sits
out the wait: a child process of the one-shot plugin, a thread of a process that stays.
"""

from __future__ import annotations

import errno
import os
import select
import time

from cni import rtnetlink
from cni.errors import KernelRefused
from cni.netlink import NLMSG_ERROR, NetlinkError, refusal_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni.netlink import Message, Socket

    # Writes bytes to a descriptor in the background, however long that takes, and whether or not the caller closes it
    # meanwhile. Raises OSError when there is nobody to do it.
    Background = Callable[[int, bytes], None]

# For an answer; who was to send the request may have been killed before, and the link be there still.
ANSWER_SECONDS = 1.0


def delete_link(socket: Socket, index: int, background: Background) -> None:
    """Delete a link; returns when the kernel says that it is gone. Raises KernelRefused, and NetlinkError.

    The kernel's answer to a request that somebody sent in the background may come to the socket after the return.
    """
    message = rtnetlink.delete_link(index)
    if not _deleted_in_background(socket, message, index, background):
        # Not while the socket hears of links: what is not received during the wait could be too much for it.
        _raise_unless_gone(*socket.request([message]))


def _deleted_in_background(socket: Socket, message: Message, index: int, background: Background) -> bool:
    """Whether there was somebody to send the request, and the kernel has said that the link is gone."""
    number, request = socket.frame(message)
    with socket.hearing(rtnetlink.RTNLGRP_LINK):
        try:
            background(socket.fileno(), request)
        except OSError:  # no more processes or descriptors: the wait is the lesser evil
            return False
        return _hear_of(socket, number, index)


def _hear_of(socket: Socket, number: int, index: int) -> bool:
    """Whether the kernel has said that a link is gone, in answer to the request with that number or by notification."""
    poll = select.poll()
    poll.register(socket.fileno(), select.POLLIN)
    deadline = time.monotonic() + ANSWER_SECONDS
    while (left := deadline - time.monotonic()) > 0 and poll.poll(left * 1000):
        try:
            for kind, flags, sequence, body in socket.receive():
                if rtnetlink.is_deletion(kind, body, index):
                    return True
                if kind == NLMSG_ERROR and sequence == number:
                    _raise_unless_gone(refusal_of(body, flags))
                    return True
        except NetlinkError as error:
            if error.errno != errno.ENOBUFS:  # too many notifications; the answer will do
                raise
    return False


def _raise_unless_gone(error: NetlinkError | None) -> None:
    if error and error.errno != errno.ENODEV:
        raise KernelRefused(f"cannot remove the link: {error.strerror}") from error


def in_child(fd: int, data: bytes) -> None:
    """A `Background` that is a child process; it lets go of the standard streams at once.

    A runtime reads ours until the last holder has closed them.
    """
    if os.fork():
        return
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.write(fd, data)
    finally:
        os._exit(0)
