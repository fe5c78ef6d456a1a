"""Network and mount namespaces of our own, so that nothing we make can outlive us or touch the machine.

The kernel takes everything back when the last process in them ends, killed or not. Works without root wherever the
system lets users make user namespaces.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

CLONE_NEWNS = 0x00020000  # include/uapi/linux/sched.h
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
MS_REC = 16384  # include/uapi/linux/mount.h
MS_PRIVATE = 1 << 18

NETNS_DIRECTORY = Path("/run/netns")
SCRATCH = "/dev/shm"  # where files are private to the sandbox


class NotAllowed(Exception):
    """This user may not make namespaces; the message says what to do."""


def enter() -> None:
    """Move this process into namespaces of its own, with `lo` up and an empty /run/netns and SCRATCH.

    Only while the process has a single thread, for the kernel lets no other one make a user namespace. Raises
    NotAllowed.
    """
    try:
        _leave()
        _mount(b"none", b"/", None, MS_REC | MS_PRIVATE)
        for directory in (NETNS_DIRECTORY, Path(SCRATCH)):
            _hide(directory)
    except OSError as error:
        raise NotAllowed(_advice(error)) from error
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def _leave() -> None:
    """Into new namespaces, in a new user namespace if that is what it takes."""
    user, group = os.geteuid(), os.getegid()
    try:
        _unshare(CLONE_NEWNS | CLONE_NEWNET)
    except PermissionError:
        _unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUSER)
        _become_root(user, group)


def _become_root(user: int, group: int) -> None:
    """Map root of the new user namespace to who we were (user_namespaces(7))."""
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def _hide(directory: Path) -> None:
    """Cover a directory, or its parent if it does not exist, with an empty file system that nobody else sees."""
    if not directory.is_dir():
        _mount(b"tmpfs", bytes(directory.parent), b"tmpfs", 0)
        directory.mkdir()
    _mount(b"tmpfs", bytes(directory), b"tmpfs", 0)


def _unshare(flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    _raise_unless_zero(libc.unshare(flags), "unshare")


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.mount(source, target, kind, ctypes.c_ulong(flags), None)
    _raise_unless_zero(result, f"mount {os.fsdecode(target)}")


def _raise_unless_zero(result: int, what: str) -> None:
    if result:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def _advice(error: OSError) -> str:
    return (
        f"namespaces of our own are not allowed here ({error.strerror}): run it as root, or let users make them "
        "(sysctl user.max_user_namespaces above 0; kernel.unprivileged_userns_clone=1 on Debian; "
        "kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu; --privileged in a container)"
    )
