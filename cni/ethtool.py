"""ethtool over generic netlink: reads and switches the one feature of NICs that concerns macvlan, l2-fwd-offload.

A NIC with it has the children of a macvlan in its own hands: frames for them go past the macvlan driver into queues of
their own. Numbers and layouts are those of include/uapi/linux/{genetlink,ethtool_netlink}.h; kernels before 5.7 answer
that they do not know. What is to be done with it is the business of `cni.offload`.
"""

from __future__ import annotations

import errno
import struct

from cni.frozen import frozen
from cni.netlink import Message, NetlinkError, Socket, attribute, attribute_map, attributes, nest, text, u32

FEATURE = "l2-fwd-offload"

NETLINK_GENERIC = 16
GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 16, 3, 1, 2
ETHTOOL_MSG_FEATURES_GET, ETHTOOL_MSG_FEATURES_SET = 11, 12
ETHTOOL_A_HEADER_DEV_INDEX, ETHTOOL_A_HEADER_FLAGS, ETHTOOL_FLAG_OMIT_REPLY = 1, 3, 1 << 1
ETHTOOL_A_FEATURES_HEADER, ETHTOOL_A_FEATURES_HW, ETHTOOL_A_FEATURES_WANTED = 1, 2, 3
ETHTOOL_A_FEATURES_ACTIVE, ETHTOOL_A_FEATURES_NOCHANGE = 4, 5
ETHTOOL_A_BITSET_NOMASK, ETHTOOL_A_BITSET_BITS, ETHTOOL_A_BITSET_BITS_BIT = 1, 3, 1
ETHTOOL_A_BITSET_BIT_NAME, ETHTOOL_A_BITSET_BIT_VALUE = 2, 3
NAME = FEATURE.encode() + b"\0"

COMMAND_HEADER = struct.Struct("=BBxx")  # struct genlmsghdr
VERSION = 1
UNKNOWN = (errno.ENOENT, errno.EOPNOTSUPP)  # to a kernel that is too old, or a NIC without any features

_family = 0  # of "ethtool", once it is known; it lasts as long as the kernel runs


@frozen
class Forwarding:
    """The feature of one NIC: whether it can be switched, and whether it is on."""

    switchable: bool = False
    active: bool = False


def forwarding(index: int) -> Forwarding:
    """The feature of the NIC with that index in the current namespace.

    Raises NetlinkError; a kernel that knows nothing of it counts as a NIC without.
    """
    try:
        with Socket(NETLINK_GENERIC) as socket:
            return parse_features(socket.get(get_features(_family_id(socket), index)))
    except NetlinkError as error:
        if error.errno not in UNKNOWN:
            raise
        return Forwarding()


def switch(index: int, on: bool) -> None:
    """Ask the NIC with that index to have the feature on or off; it may say yes and do nothing. Raises NetlinkError."""
    with Socket(NETLINK_GENERIC) as socket:
        (refusal,) = socket.request([set_feature(_family_id(socket), index, on)])
    if refusal:
        raise refusal


def _family_id(socket: Socket) -> int:
    global _family  # noqa: PLW0603  (a process asks once)
    if not _family:
        _family = parse_family(socket.get(get_family()))
    return _family


# --- messages ----------------------------------------------------------------------------------------------------


def get_family() -> Message:
    """Ask for the number of ethtool's family."""
    return Message(GENL_ID_CTRL, 0, COMMAND_HEADER.pack(CTRL_CMD_GETFAMILY, 2) + text(CTRL_ATTR_FAMILY_NAME, "ethtool"))


def parse_family(body: bytes) -> int:
    """The answer to `get_family`."""
    (number,) = struct.unpack("=H", attribute_map(body, COMMAND_HEADER.size)[CTRL_ATTR_FAMILY_ID])
    return int(number)


def get_features(family: int, index: int) -> Message:
    """Ask for all features of a NIC, by their names."""
    header = nest(ETHTOOL_A_FEATURES_HEADER, u32(ETHTOOL_A_HEADER_DEV_INDEX, index))
    return Message(family, 0, COMMAND_HEADER.pack(ETHTOOL_MSG_FEATURES_GET, VERSION) + header)


def set_feature(family: int, index: int, on: bool) -> Message:
    """Ask a NIC to switch the feature; only what is listed is to change."""
    flags = u32(ETHTOOL_A_HEADER_FLAGS, ETHTOOL_FLAG_OMIT_REPLY)
    header = nest(ETHTOOL_A_FEATURES_HEADER, u32(ETHTOOL_A_HEADER_DEV_INDEX, index), flags)
    value = attribute(ETHTOOL_A_BITSET_BIT_VALUE, b"") if on else b""
    bit = nest(ETHTOOL_A_BITSET_BITS_BIT, attribute(ETHTOOL_A_BITSET_BIT_NAME, NAME), value)
    wanted = nest(ETHTOOL_A_FEATURES_WANTED, nest(ETHTOOL_A_BITSET_BITS, bit))
    return Message(family, 0, COMMAND_HEADER.pack(ETHTOOL_MSG_FEATURES_SET, VERSION) + header + wanted)


def parse_features(body: bytes) -> Forwarding:
    """The answer to `get_features`."""
    sets = attribute_map(body, COMMAND_HEADER.size)
    return Forwarding(
        switchable=_has(sets.get(ETHTOOL_A_FEATURES_HW)) and not _has(sets.get(ETHTOOL_A_FEATURES_NOCHANGE)),
        active=_has(sets.get(ETHTOOL_A_FEATURES_ACTIVE)),
    )


def _has(bitset: bytes | None) -> bool:
    """Whether the feature is in a set. A set with a mask lists what it could hold, and marks what it holds."""
    parts = attribute_map(bitset or b"")
    for _, bit in attributes(parts.get(ETHTOOL_A_BITSET_BITS, b"")):
        # Of sixty features one is read: looking into all of them would take longer than the kernel's answer.
        if NAME in bit and (fields := attribute_map(bit))[ETHTOOL_A_BITSET_BIT_NAME] == NAME:
            return ETHTOOL_A_BITSET_NOMASK in parts or ETHTOOL_A_BITSET_BIT_VALUE in fields
    return False
