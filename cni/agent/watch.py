"""Hears what changes in the host's network namespace and in those of pods, and says what has to be looked at again.

One socket hears all of them: what has a number in our namespace can be heard from here (NETLINK_LISTEN_ALL_NSID). No
descriptor of a pod's namespace is kept, for it would keep the namespace alive; why numbers are enough is told in
docs/decisions/0017-events-of-all-namespaces.md. What an event means is the business of `cni.agent.events`, and what to
do about it that of the caller.
"""

from __future__ import annotations

import errno
import math
import os
import random
import select
import socket
import struct
import sys
import threading
import time
from _socket import MSG_TRUNC  # an int; that of `socket` takes ten times as long to compare
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from types import TracebackType

from cni import netns, rtnetlink
from cni.agent import sieve
from cni.agent.events import CLEAN, HOST, Dirty, Picture, dirty_of
from cni.netlink import (
    HEADER,
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    SOL_NETLINK,
    Message,
    NetlinkError,
    Socket,
    attribute,
    attribute_map,
    text,
    u32,
)
from cni.nftables import NFTA_TABLE_NAME, TABLE, UNSUPPORTED
from cni.rtnetlink import AF_UNSPEC, NETNSA_FD, NETNSA_NSID, NSID_HEADER, RTM_GETNSID

DEBOUNCE_SECONDS = 0.1
READING_SECONDS = 0.2
RECEIVE_BYTES = 1 << 16
BUFFER_BYTES = 8 << 20  # the kernel doubles it, and counts 0.8 KiB for a route and 2.3 KiB for a link
SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
NETLINK_LISTEN_ALL_NSID = 8  # include/uapi/linux/netlink.h
RTM_NEWNSID, RTM_DELNSID = 88, 89
NSID = struct.Struct("=i")
ANCILLARY_BYTES = socket.CMSG_SPACE(NSID.size)
NOT_ASSIGNED = -1  # NETNSA_NSID_NOT_ASSIGNED
OUR_NUMBERS = 1 << 30  # and above; the kernel gives the lowest that are free
SPREAD = 1 << 29  # of where agents begin, so that one finds those of its predecessor in use only by chance

# RTNLGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE, _NSID of include/uapi/linux/rtnetlink.h.
ROUTE_GROUPS = sum(1 << (group - 1) for group in (1, 3, 5, 7, 9, 11, 28))
NFTABLES_GROUP = 1 << (7 - 1)  # NFNLGRP_NFTABLES, include/uapi/linux/netfilter/nfnetlink.h
OF_OUR_TABLE = text(NFTA_TABLE_NAME, TABLE)  # tables, chains and rules name their table in attribute 1, all of them


class Watch:
    """Hears the namespace of the thread that makes it, and the namespaces that it is told to follow.

    One thread waits; any may call the other functions. Of what happened before nothing is known: whoever makes one
    follows the pods first, and then looks at everything. `hears_pods` is false without CAP_NET_BROADCAST: then of
    pods nothing but their end is heard.
    """

    def __init__(self, debounce: float = DEBOUNCE_SECONDS) -> None:
        """`debounce`: seconds from the first event of a burst to the answer. Raises OSError."""
        self._debounce = debounce
        self._lock = threading.Lock()  # of the picture, the numbers, what is to be told, and the socket for requests
        self._picture = Picture()
        self._origins = {NOT_ASSIGNED: HOST}  # by number
        self._numbers = count(random.randrange(OUR_NUMBERS, OUR_NUMBERS + SPREAD))  # to give away
        self._untold = CLEAN
        # Events were lost, and some from before are still to be read: until then the kernel loses more without a word
        # (NETLINK_S_CONGESTED in net/netlink/af_netlink.c), and what is read is older than what we have looked up.
        self._lossy = False
        self._buffer = bytearray(RECEIVE_BYTES)
        with ExitStack() as opened:
            self._home = os.open(netns.OWN, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, self._home)
            self._own_identity = netns.identity(self._home)
            self._alarm = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            opened.callback(os.close, self._alarm)
            self._requests = opened.enter_context(Socket())
            self._rtnetlink = opened.enter_context(_listen(NETLINK_ROUTE, ROUTE_GROUPS))
            sieve.attach(self._rtnetlink)
            self.hears_pods = _hear_all_namespaces(self._rtnetlink)
            self._nftables = _listen_to_nftables(opened)
            self._poll = _poll_of(self._alarm, self._rtnetlink, self._nftables)
            self._learn_own_number()
            self._learn()
            self._opened = opened.pop_all()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all sockets; nobody may wait any more."""
        self._opened.close()

    # --- what to hear ------------------------------------------------------------------------------------------

    def follow(self, identity: str, fd: int) -> None:
        """Hear a pod's namespace, given by its identity and a descriptor that may be closed afterwards.

        It costs little where the namespace is followed already. Raises OSError.
        """
        if identity == self._own_identity:
            return
        with self._lock:
            number = self._number(fd)
            before = self._origins.get(number)
            if before == identity:
                return
            if before is not None:  # it has died, or its number would not be free; the event is still to be read
                self._untold |= _gone(before)
            self._forget(identity)
            self._origins[number] = identity

    def forget(self, identity: str) -> None:
        """Do not hear a pod's namespace any more."""
        with self._lock:
            self._forget(identity)

    def wake(self, dirty: Dirty = CLEAN) -> None:
        """Have `wait` return at once, with whatever else the caller knows to be dirty."""
        with self._lock:
            self._untold |= dirty
        os.eventfd_write(self._alarm, 1)

    # --- waiting -----------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> Dirty:
        """What has become dirty, once anything has; nothing when it was woken or the time, in seconds, is over.

        Takes `debounce` longer while there are events, to answer a burst of them once. Raises OSError when a socket
        fails for good.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while ready := self._ready(deadline):
            woken = self._alarm in ready
            if woken:
                os.eventfd_read(self._alarm)
            else:
                time.sleep(self._debounce)
            dirty = self._read()
            if dirty or woken:
                return dirty
        return CLEAN

    def _ready(self, deadline: float) -> set[int]:
        milliseconds = None if deadline == math.inf else max(0.0, deadline - time.monotonic()) * 1000
        return {fd for fd, _ in self._poll.poll(milliseconds)}

    def _read(self) -> Dirty:
        """What there is to be read, as far as it can be read in a short time, and what is known otherwise."""
        found: dict[tuple[str, str], None] = {}
        complete, empty = _repeat(lambda: self._read_rtnetlink(found))
        self._lossy = self._lossy or not complete
        if self._nftables and not _repeat(lambda: self._read_nftables(found))[0]:
            found[HOST, "events of nftables were lost"] = None
        with self._lock:
            if self._lossy:
                self._start_over()
            dirty, self._untold = dirty_of(found) | self._untold, CLEAN
        if empty:
            self._lossy = False
        return dirty

    def _read_rtnetlink(self, found: dict[tuple[str, str], None]) -> bool:
        """Read one event and note what it makes dirty; whether it was whole. Raises OSError."""
        with self._lock:
            size, ancillary, status, _ = self._rtnetlink.recvmsg_into([self._buffer], ANCILLARY_BYTES)
            # Kernels before June 2026 may tell the host's own events with a negative number, or with the one that the
            # namespace has in itself (70f8592ee905 and 88b126b39f97).
            number = NSID.unpack(ancillary[0][2])[0] if ancillary else NOT_ASSIGNED
            origin = self._origins.get(number)
            if origin is not None:
                for kind, flags, port, body in _messages(memoryview(self._buffer)[:size]):
                    if kind in (RTM_NEWNSID, RTM_DELNSID):
                        self._renumber(origin, kind, body)
                    elif reason := self._picture.reason(origin, kind, flags, port, body):
                        found[origin, reason] = None
        return not status & MSG_TRUNC

    def _read_nftables(self, found: dict[tuple[str, str], None]) -> bool:
        """The same for the changes of one transaction, or some of them. Raises OSError."""
        assert self._nftables is not None
        size, _, status, _ = self._nftables.recvmsg_into([self._buffer])
        if self._buffer.find(OF_OUR_TABLE, 0, size) >= 0:
            found[HOST, f"nftables table {TABLE} changed"] = None
        return not status & MSG_TRUNC

    # --- numbers of namespaces ---------------------------------------------------------------------------------

    def _number(self, fd: int) -> int:
        """The number of a namespace in ours; it is given one if it has none."""
        while True:
            wanted = attribute(NETNSA_NSID, NSID.pack(next(self._numbers)))
            change = Message(RTM_NEWNSID, 0, NSID_HEADER.pack(AF_UNSPEC) + u32(NETNSA_FD, fd) + wanted)
            refusal, answer = self._requests.change_and_get(change, rtnetlink.get_nsid(fd))
            if refusal and refusal.errno != errno.EEXIST:  # it has a number, or somebody else has this one
                raise refusal
            number = rtnetlink.parse_nsid(answer)
            if number != NOT_ASSIGNED:
                return number

    def _renumber(self, origin: str, kind: int, body: bytes) -> None:
        """Numbers were given or taken; other namespaces number theirs, which is nothing to us."""
        if origin != HOST:
            return
        number = int.from_bytes(attribute_map(body, NSID_HEADER.size).get(NETNSA_NSID, b""), sys.byteorder, signed=True)
        identity = self._origins.get(number)
        if kind == RTM_NEWNSID:
            if number < OUR_NUMBERS:
                self._learn_own_number()
        elif identity and self._may_exist(number, identity):
            self._untold |= Dirty(pods=frozenset({identity}), reasons=(f"{identity}: number {number} given anew",))

    def _may_exist(self, number: int, identity: str) -> bool:
        """Whether a followed namespace that lost its number may exist; it is told as gone if not.

        It may where the number is in use: by another one that we do not follow, or by itself if it is new.
        """
        self._picture.forget(identity)
        if self._is_assigned(number):
            return True
        self._forget(identity)
        self._untold |= _gone(identity)
        return False

    def _is_assigned(self, number: int) -> bool:
        body = NSID_HEADER.pack(AF_UNSPEC) + attribute(NETNSA_NSID, NSID.pack(number))
        try:
            self._requests.get(Message(RTM_GETNSID, 0, body))
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        return True

    def _learn_own_number(self) -> None:
        self._origins[rtnetlink.parse_nsid(self._requests.get(rtnetlink.get_nsid(self._home)))] = HOST

    def _forget(self, identity: str) -> None:
        self._origins = {number: origin for number, origin in self._origins.items() if origin != identity}
        self._picture.forget(identity)

    # --- the picture -------------------------------------------------------------------------------------------

    def _learn(self) -> None:
        """See what is there on the host now, to tell changes from it.

        Pods are not asked: to ask for the links of another namespace (IFLA_TARGET_NETNSID) gives ours a number in
        itself, as the parents of those links are here, and that confuses others who listen as we do.
        """
        self._picture.forget(HOST)
        for question in (rtnetlink.dump_links(), rtnetlink.dump_neighbours(0)):
            for kind, body in self._requests.dump(question):
                self._picture.reason(HOST, kind, body=body)

    def _start_over(self) -> None:
        """Events were lost: nothing is known to be as it was, nor who has which number."""
        self._untold |= Dirty(everything=True, reasons=("events were lost",))
        self._learn_own_number()
        self._learn()
        for number, identity in list(self._origins.items()):
            if identity != HOST:
                self._may_exist(number, identity)


def _gone(identity: str) -> Dirty:
    return Dirty(gone=frozenset({identity}), reasons=(f"{identity}: gone",))


def _listen(protocol: int, groups: int) -> socket.socket:
    """A netlink socket that hears multicast groups, and does not wait for them."""
    heard = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    try:
        try:
            heard.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        except PermissionError:
            heard.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)  # as much of it as is allowed
        heard.bind((0, groups))
    except OSError:
        heard.close()
        raise
    return heard


def _hear_all_namespaces(heard: socket.socket) -> bool:
    try:
        heard.setsockopt(SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, 1)
    except PermissionError:
        return False
    return True


def _listen_to_nftables(opened: ExitStack) -> socket.socket | None:
    """Where there are no nftables, or none for us, there is no table of ours either."""
    try:
        return opened.enter_context(_listen(NETLINK_NETFILTER, NFTABLES_GROUP))
    except OSError as error:
        if error.errno not in UNSUPPORTED | {errno.EPERM}:
            raise
        return None


def _poll_of(*descriptors: int | socket.socket | None) -> select.poll:
    poll = select.poll()
    for descriptor in descriptors:
        if descriptor is not None:
            poll.register(descriptor, select.POLLIN)
    return poll


def _repeat(read: Callable[[], bool]) -> tuple[bool, bool]:
    """Read from a socket until nothing is left, or for a short time. Raises OSError.

    Returns whether nothing was lost, and whether nothing is left.
    """
    complete = True
    until = time.monotonic() + READING_SECONDS
    while time.monotonic() < until:
        try:
            complete = read() and complete
        except BlockingIOError:
            return complete, True
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            complete = False
    return complete, False


def _messages(data: memoryview) -> Iterator[tuple[int, int, int, bytes]]:
    """The (type, flags, port, body)s of a datagram."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, flags, _, port = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            return
        yield kind, flags, port, bytes(data[offset + HEADER.size : offset + length])
        offset += (length + 3) & ~3
