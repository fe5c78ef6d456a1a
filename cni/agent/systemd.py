"""What systemd and its services say to each other: sockets that were opened for us, and how we are doing.

The two protocols are small and stable, sd_listen_fds(3) and sd_notify(3), so nothing has to be installed for them.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping, MutableMapping

FIRST = 3  # SD_LISTEN_FDS_START: the descriptors follow the standard streams
NAMES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def listen_fds(environ: MutableMapping[str, str]) -> list[int]:
    """The descriptors that systemd has passed to this process, none of which a child will inherit.

    Takes the variables out of `environ`, for children would believe that they are meant. Raises OSError if they are
    malformed or lie.
    """
    pid, count, _ = (environ.pop(name, "") for name in NAMES)
    if not count or pid != str(os.getpid()):
        return []
    if not (count.isascii() and count.isdigit()):
        raise OSError(errno.EINVAL, f"LISTEN_FDS={count!r} is no number: only systemd should set it, so unset it")
    passed = range(FIRST, FIRST + int(count))
    for fd in passed:
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            message = f"LISTEN_FDS={count} promises a descriptor {fd} that is not open: unset it"
            raise OSError(error.errno, message) from error
    return list(passed)


def notify(state: str, environ: Mapping[str, str]) -> None:
    """Tell systemd "READY=1", "STOPPING=1", "STATUS=..."; nothing happens where nobody wants to know.

    Raises OSError if NOTIFY_SOCKET is set and nobody listens there.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        # "@" stands for the NUL of abstract addresses (unix(7)).
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(state.encode())
