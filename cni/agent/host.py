"""The host's namespace for a process that stays: what was read is remembered until the kernel tells of a change.

Each ADD asks for the parent, its addresses and the shim. Answering takes the kernel's lock of all network
configuration, which in a burst is what everybody waits for. The kernel queues its notification of a change before the
change is reported as done, so whoever looks into the queue first never uses what is out of date.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

from cni import kernel, rtnetlink
from cni.kernel import Namespace
from cni.netlink import NetlinkError, Socket

if TYPE_CHECKING:
    from cni.attachment import Facts, InterfaceAddress, Link, Parent, Vlan
    from cni.config import NetConf
    from cni.deletion import Background

T = TypeVar("T")

# RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE of
# include/uapi/linux/rtnetlink.h.
GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
MOST = 1024  # answers; a host has some ten parents
UNKNOWN: Any = object()  # None is an answer


class Memory:
    """Answers of the kernel about one namespace, that of the thread which makes it; threads may share it."""

    def __init__(self) -> None:
        self._changes = Socket(groups=GROUPS)
        self._pending = select.poll()
        self._pending.register(self._changes.fileno(), select.POLLIN)
        self._lock = threading.Lock()
        self._answers: dict[Hashable, Any] = {}
        self._links: dict[int, tuple[tuple[bytes, int, bytes], tuple[object, ...]]] = {}  # essence and fingerprint

    def recall(self, question: Hashable, ask: Callable[[], T]) -> T:
        """The answer to a question: as remembered, or asked for anew if anything has changed since."""
        with self._lock:
            self._forget_if_changed()
            answers = self._answers
        known: T = answers.get(question, UNKNOWN)
        if known is not UNKNOWN:
            return known
        answer = ask()
        # What was asked for before a change goes into the dictionary of that time, which nobody reads any more.
        if len(answers) < MOST:
            answers[question] = answer
        return answer

    def forget(self) -> None:
        """Forget all answers, for those who know of a change that the kernel may not have told everybody of yet."""
        with self._lock:
            self._answers = {}

    def _forget_if_changed(self) -> None:
        changed = lost = False
        while self._pending.poll(0):
            try:
                for kind, _, _, body in self._changes.receive():
                    changed = self._matters(kind, body) or changed
            except NetlinkError:  # ENOBUFS: more than the socket could hold
                lost = True
        if changed or lost:
            self._answers = {}
        if lost:  # what is the same as before the loss may have changed twice
            self._links.clear()

    def _matters(self, kind: int, body: bytes) -> bool:
        """Whether a notification tells of anything that could change an answer."""
        if kind in (rtnetlink.RTM_NEWROUTE, rtnetlink.RTM_DELROUTE):
            # Those to single destinations are of pods, and no question is about them.
            _, length, *_ = rtnetlink.ROUTE_HEADER.unpack_from(body)
            return bool(length == 0)
        if kind == rtnetlink.RTM_DELLINK:
            self._links.pop(rtnetlink.parse_index(body), None)
        if kind != rtnetlink.RTM_NEWLINK:
            return True
        return self._is_news(rtnetlink.parse_index(body), body)

    def _is_news(self, index: int, body: bytes) -> bool:
        """Whether a link is another one than it was; with each child that comes and goes its parent tells of itself."""
        known = self._links.get(index)
        if known:
            (head, offset, info), before = known
            if body.startswith(head) and body.startswith(info, offset):
                return False
        seen = rtnetlink.link_fingerprint(body)
        self._links[index] = rtnetlink.link_essence(body), seen
        return not known or seen != before


class Host(Namespace):
    """The host's namespace, with a memory; one thread at a time may use it."""

    def __init__(self, memory: Memory, background: Background) -> None:
        super().__init__(background=background)
        self._memory = memory

    def link(self, name: str) -> Link | None:
        return self._memory.recall(("link", name), lambda: super(Host, self).link(name))

    def parent(self, name: str) -> Parent | None:
        return self._memory.recall(("parent", name), lambda: super(Host, self).parent(name))

    def addresses(self, index: int = 0, permanent: bool = False) -> list[tuple[int, InterfaceAddress]]:
        return self._memory.recall(
            ("addresses", index, permanent), lambda: super(Host, self).addresses(index, permanent)
        )

    def default_link(self) -> str:
        return self._memory.recall(("default",), super().default_link)

    def facts(self, conf: NetConf, vlan: Vlan | None = None) -> Facts:
        return self._memory.recall(kernel.question_of_facts(conf, vlan), lambda: super(Host, self).facts(conf, vlan))

    def delete_link(self, index: int) -> None:
        super().delete_link(index)
        self._memory.forget()
