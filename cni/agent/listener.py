"""The socket that the agent listens on: one of its own, that of its predecessor, or one that systemd has made."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from _socket import AF_UNIX, SHUT_RD, SO_ACCEPTCONN, SO_PEERCRED, SOCK_STREAM, SOL_SOCKET, socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from cni.errors import IOFailure

BACKLOG = 1024  # connections that nobody has accepted yet; net.core.somaxconn may allow fewer
MODE = 0o600
LONGEST_PATH = 107 - len(".new")  # bytes; sun_path with its NUL has 108, unix(7)

CREDENTIALS = struct.Struct("iII")  # struct ucred, unix(7): process, user, group


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that listens. With `path` it is ours and `inode` its file's; without, systemd's, and outlives us."""

    socket: socket
    path: str = ""
    inode: tuple[int, int] = (0, 0)

    def withdraw(self) -> None:
        """Let nobody else in, but those who wait to be accepted; a socket of systemd's is left to the next agent."""
        if not self.path:
            return
        try:
            with suppress(OSError), _alone_in(self.path):
                if _inode(self.path) == self.inode:
                    os.unlink(self.path)
        finally:
            self.socket.shutdown(SHUT_RD)


def listen(path: str, take_over: bool = False) -> Listener:
    """Listen at a path that root alone may use; a socket that a dead agent has left there is replaced.

    So is a living agent's if `take_over`: it goes on with whom it has accepted, and new clients come to us, without a
    moment between. Raises IOFailure.
    """
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise IOFailure(f"{path} has more than the {LONGEST_PATH} bytes that are possible: choose a shorter path")
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o755, exist_ok=True)
        with _alone_in(path):
            _check_place(path, take_over)
            return _bind(path)
    except OSError as error:
        raise IOFailure(f"cannot listen at {path}: {error.strerror}; be root, or choose another path") from error


def adopt(fd: int) -> Listener:
    """The listening socket that systemd has passed. Raises IOFailure if it is something else."""
    try:
        passed = socket(fileno=fd)
        fits = (passed.family, passed.type) == (AF_UNIX, SOCK_STREAM) and passed.getsockopt(SOL_SOCKET, SO_ACCEPTCONN)
    except OSError:
        fits = False
    if not fits:
        raise IOFailure(
            f"descriptor {fd} is no Unix socket that listens: the .socket unit must have one ListenStream= with a "
            "path, and Accept=no"
        )
    passed.setblocking(True)
    return Listener(passed)


def _bind(path: str) -> Listener:
    """Nobody can connect before listen(2), and then the mode is right; rename(2) leaves no moment without a socket."""
    new = f"{path}.new"
    with suppress(FileNotFoundError):
        os.unlink(new)
    listener = socket(AF_UNIX, SOCK_STREAM)
    try:
        listener.bind(new)
        os.chmod(new, MODE)
        listener.listen(BACKLOG)
        inode = _inode(new)
        os.rename(new, path)
    except BaseException:
        listener.close()
        raise
    return Listener(listener, path, inode)


def _check_place(path: str, take_over: bool) -> None:
    """Raises IOFailure unless the path is free, or what is there may be replaced."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise IOFailure(f"{path} is there, and not a socket: remove it, or choose another path")
    pid = None if take_over else _served_by(path)
    if pid is not None:
        who = f"process {pid}" if pid else "a process that cannot be seen from here"
        how = f"kill {pid}" if pid else "its container, or whatever `ss -xlp` shows"
        raise IOFailure(f"{path} is served by {who}: stop that agent first ({how})")


def _served_by(path: str) -> int | None:
    """The process that listens at a socket, 0 if it cannot be seen from here; None if there is none any more."""
    probe = socket(AF_UNIX, SOCK_STREAM)
    try:
        probe.setblocking(False)
        probe.connect(path)
        return peer(probe)[0]
    except BlockingIOError:  # so many wait that there is no room for us
        return 0
    except (ConnectionRefusedError, FileNotFoundError):
        return None
    finally:
        probe.close()


def peer(connection: socket) -> tuple[int, int]:
    """Process and user at the other end, as of connect(2) or listen(2); 0 and 65534 if out of our namespaces."""
    pid, uid, _ = CREDENTIALS.unpack(connection.getsockopt(SOL_SOCKET, SO_PEERCRED, CREDENTIALS.size))
    return pid, uid


def _inode(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


@contextmanager
def _alone_in(path: str) -> Iterator[None]:
    """No other agent makes or removes a socket in this directory meanwhile."""
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)
