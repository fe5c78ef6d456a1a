"""Network namespaces: opening, telling apart, entering and leaving them."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager

from cni.errors import NetnsUnclear, NetnsUnusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLONE_NEWNET = 0x40000000
OWN = "/proc/thread-self/ns/net"
# What says nothing about a namespace: we lack a right, descriptors or memory.
OURS = (errno.EPERM, errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)


def open_netns(path: str) -> int:
    """A descriptor of the namespace at `path`; raises NetnsUnusable when there is none to open."""
    try:
        # Opening a named pipe would wait for somebody to write into it.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        code = (error.errno or 0) if isinstance(error, OSError) else errno.EINVAL
        raise not_to_be_opened(path, code) from error


def not_to_be_opened(path: str, code: int) -> NetnsUnusable:
    """The error for a namespace that cannot be opened, by its errno."""
    if code in OURS:
        return NetnsUnclear(f"CNI_NETNS: cannot open {path!r}: {os.strerror(code)}")
    return NetnsUnusable(f"CNI_NETNS: cannot open {path!r}: {os.strerror(code)}; is the container still there?")


def identity(fd: int) -> str:
    """What tells a namespace from others for as long as it lives; the kernel may reuse it afterwards."""
    return identity_of(os.fstat(fd))


def identity_of(status: os.stat_result) -> str:
    """The same from what stat(2) says of a namespace's file."""
    return f"{status.st_dev}:{status.st_ino}"


def is_own(fd: int) -> bool:
    """Whether the descriptor is of the namespace that this thread is in."""
    return identity(fd) == own_identity()


def own_identity() -> str:
    """The identity of the namespace that this thread is in."""
    return identity_of(os.stat(OWN))


class Stranded(BaseException):
    """A thread could not go back to the namespace it came from, and must end: it would take a pod for the host."""


class Home:
    """Where threads go back to: as a rule where they came from, which takes a descriptor each time."""

    fd: int | None = None


def settle() -> None:
    """Have every thread go back to the namespace of this one from now on; for processes that stay in one."""
    Home.fd = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def entered(fd: int | None) -> Iterator[None]:
    """Be in the namespace for the time of a block; None means to stay. Raises NetnsUnusable, or Stranded."""
    if fd is None:
        yield
        return
    home = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC) if Home.fd is None else Home.fd
    try:
        try:
            _setns(fd)
        except OSError as error:
            if error.errno in OURS:
                raise NetnsUnclear(f"CNI_NETNS: cannot enter: {error.strerror}; CAP_SYS_ADMIN is needed") from error
            raise NetnsUnusable(f"CNI_NETNS: cannot enter: {error}; it must be a network namespace") from error
        try:
            yield
        finally:
            _return(home)
    finally:
        if home != Home.fd:
            os.close(home)


def _return(home: int) -> None:
    try:
        _setns(home)
    except OSError as error:
        raise Stranded(f"cannot go back to the host's network namespace: {error}") from error


def _setns(fd: int) -> None:
    if hasattr(os, "setns"):  # Python 3.12
        os.setns(fd, CLONE_NEWNET)
    elif _setns_of_libc()(fd, CLONE_NEWNET):
        import _ctypes

        code = _ctypes.get_errno()
        raise OSError(code, os.strerror(code))


_found: list[Callable[[int, int], int]] = []


def _setns_of_libc() -> Callable[[int, int], int]:
    """setns(2) for Python 3.11. The package around `_ctypes` defines dozens of types that nobody here needs: 2 ms."""
    if not _found:
        import _ctypes

        class Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
            _type_ = "i"

        class Function(_ctypes.CFuncPtr):
            _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
            _restype_ = Int

        libc = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # the process itself, as dlopen(3) has it
        _found.append(Function(_ctypes.dlsym(libc, "setns")))
    return _found[0]
