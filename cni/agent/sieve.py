"""What the kernel can keep back by itself: a socket filter against the commonest events that undo nothing of ours.

Every address brings its routes, every conversation moves a neighbour from state to state, and each such event would
wake the agent. A decision tree over fields at fixed places, as a program for SO_ATTACH_FILTER: classic BPF, see
Documentation/networking/filter.rst of the kernel. What it drops must be nothing to `cni.agent.events`, too; what it
lets pass need not be anything.
"""

from __future__ import annotations

import socket
import struct
from array import array

from cni.agent.events import ORDINARY_STATES, PROTO_KERNEL, RTM_DELADDR
from cni.attachment import SCOPE_LINK
from cni.netlink import HEADER, NLM_F_REPLACE
from cni.rtnetlink import RTM_DELROUTE, RTM_NEWADDR, RTM_NEWNEIGH, RTM_NEWROUTE

RTM_DELNEIGH = 29
SO_ATTACH_FILTER = 26  # include/uapi/asm-generic/socket.h
INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter, include/uapi/linux/filter.h
PROGRAM = struct.Struct("@HP")  # struct sock_fprog
LOAD = {"I": 0x20, "H": 0x28, "B": 0x30}  # BPF_LD | BPF_ABS and the size, by struct's name for it
EQUALS, AT_LEAST, HAS = 0x15, 0x35, 0x45  # BPF_JMP | BPF_K and BPF_JEQ, BPF_JGE, BPF_JSET
RETURN = 0x06  # BPF_RET | BPF_K: how many bytes to deliver

Instructions = list[tuple[int, int, int, int]]
Field = tuple[str, int]  # size and place

TYPE, FLAGS, PORT = ("H", 4), ("H", 6), ("I", 12)  # of struct nlmsghdr
ADDRESS_SCOPE = ("B", HEADER.size + 3)  # of struct ifaddrmsg
ROUTE_PROTOCOL = ("B", HEADER.size + 5)  # of struct rtmsg
NEIGHBOUR_STATE = ("H", HEADER.size + 8)  # of struct ndmsg

KEEP: Instructions = [(RETURN, 0, 0, 0xFFFFFFFF)]
DROP: Instructions = [(RETURN, 0, 0, 0)]


def choose(field: Field, test: int, value: int, then: Instructions, otherwise: Instructions) -> Instructions:
    """Go on with `then` where the test of a field holds, else with `otherwise`."""
    size, place = field
    # Netlink has numbers in the order of the host, BPF reads them in that of the network.
    seen = int.from_bytes(struct.pack(f"={size}", value), "big")
    return [(LOAD[size], 0, 0, place), (test, 0, len(then), seen), *then, *otherwise]


def by_type(branches: dict[int, Instructions]) -> Instructions:
    """Go on with the branch of a message's type; what has none is kept."""
    tree = KEEP
    for kind, branch in branches.items():
        tree = choose(TYPE, EQUALS, kind, branch, tree)
    return tree


SIEVE = by_type(
    {
        RTM_NEWROUTE: choose(FLAGS, HAS, NLM_F_REPLACE, KEEP, DROP),
        RTM_DELROUTE: choose(ROUTE_PROTOCOL, EQUALS, PROTO_KERNEL, DROP, KEEP),
        RTM_NEWADDR: choose(ADDRESS_SCOPE, AT_LEAST, SCOPE_LINK, DROP, KEEP),
        RTM_DELADDR: choose(ADDRESS_SCOPE, AT_LEAST, SCOPE_LINK, DROP, KEEP),
        # What nobody asked for, unless it failed: an entry may have been deleted by ioctl(2), as arp(8) does it.
        RTM_NEWNEIGH: choose(NEIGHBOUR_STATE, HAS, ORDINARY_STATES, choose(PORT, EQUALS, 0, DROP, KEEP), KEEP),
        RTM_DELNEIGH: DROP,
    }
)


def attach(heard: socket.socket) -> None:
    """Have a socket deliver only what the sieve keeps. Raises OSError."""
    program = array("B", b"".join(INSTRUCTION.pack(*instruction) for instruction in SIEVE))
    address, _ = program.buffer_info()
    heard.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, PROGRAM.pack(len(SIEVE), address))
