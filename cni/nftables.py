"""Source NAT for what pods send through the shim to a service address: one nftables table of our own.

A ClusterIP in `shim.routes` reaches the host, which may translate its destination (DNAT) to another machine of the
LAN. That machine would answer the pod directly, from an address the pod never called; so the host also translates the
source, and the answer comes back through the host. The same holds for NodePorts that lead to a pod behind the shim.

Written and read as raw nfnetlink (include/uapi/linux/netfilter/nf_tables.h); `nft list table inet shimlan` shows it.
Which rules are wanted is the caller's business, and so is everything else in the ruleset.
"""

from __future__ import annotations

import binascii
import errno
import struct
from contextlib import contextmanager

from cni import netlink
from cni.errors import KernelRefused
from cni.netlink import NETLINK_NETFILTER, Message, attribute, attribute_map, nest, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cni.attachment import SourceNat

TABLE = "shimlan"
CHAIN = "postrouting"

AF_UNSPEC = 0
NFPROTO_INET = 1
NFPROTO_IPV4 = 2
NFPROTO_IPV6 = 10
NF_INET_POST_ROUTING = 4
NF_ACCEPT = 1
# One before srcnat (100), where kube-proxy masquerades: it would take the first address of the host in device order,
# which need not be one that pods send to the shim. The first chain to translate a connection decides, and of equal
# priority that is the one registered last.
PRIORITY = 99

NFNL_SUBSYS_NFTABLES = 10
NFNL_MSG_BATCH_BEGIN = 0x10
NFNL_MSG_BATCH_END = 0x11
NFT_MSG_NEWTABLE = 0
NFT_MSG_GETTABLE = 1
NFT_MSG_DELTABLE = 2
NFT_MSG_NEWCHAIN = 3
NFT_MSG_GETCHAIN = 4
NFT_MSG_NEWRULE = 6

NFTA_TABLE_NAME = 1
NFTA_CHAIN_TABLE = 1
NFTA_CHAIN_NAME = 3
NFTA_CHAIN_HOOK = 4
NFTA_CHAIN_POLICY = 5
NFTA_CHAIN_USE = 6
NFTA_CHAIN_TYPE = 7
NFTA_CHAIN_USERDATA = 12
NFTA_HOOK_HOOKNUM = 1
NFTA_HOOK_PRIORITY = 2
NFTA_RULE_TABLE = 1
NFTA_RULE_CHAIN = 2
NFTA_RULE_EXPRESSIONS = 4
NFTA_LIST_ELEM = 1
NFTA_EXPR_NAME = 1
NFTA_EXPR_DATA = 2
NFTA_DATA_VALUE = 1
NFTA_META_DREG = 1
NFTA_META_KEY = 2
NFTA_CT_DREG = 1
NFTA_CT_KEY = 2
NFTA_BITWISE_SREG = 1
NFTA_BITWISE_DREG = 2
NFTA_BITWISE_LEN = 3
NFTA_BITWISE_MASK = 4
NFTA_BITWISE_XOR = 5
NFTA_CMP_SREG = 1
NFTA_CMP_OP = 2
NFTA_CMP_DATA = 3
NFTA_IMMEDIATE_DREG = 1
NFTA_IMMEDIATE_DATA = 2
NFTA_NAT_TYPE = 1
NFTA_NAT_FAMILY = 2
NFTA_NAT_REG_ADDR_MIN = 3

NFT_REG_1 = 1
NFT_META_IIFNAME = 6
NFT_META_OIFNAME = 7
DIRECTIONS = (NFT_META_IIFNAME, NFT_META_OIFNAME)  # from pods, to pods
NFT_META_NFPROTO = 15
NFT_CT_STATUS = 2
NFT_CMP_EQ = 0
NFT_CMP_NEQ = 1
NFT_NAT_SNAT = 0
IPS_DST_NAT = 1 << 5  # include/uapi/linux/netfilter/nf_conntrack_common.h
IFNAMSIZ = 16
UDATA_CHAIN_COMMENT = 0  # libnftnl's NFTNL_UDATA_CHAIN_COMMENT, a (type, length, value) of one octet each and text

NLM_F_APPEND = 0x800  # include/uapi/linux/netlink.h
NFGENMSG = struct.pack("!BBH", NFPROTO_INET, 0, 0)
TABLE_NAME = text(NFTA_TABLE_NAME, TABLE)
CHAIN_NAME = text(NFTA_CHAIN_TABLE, TABLE) + text(NFTA_CHAIN_NAME, CHAIN)

LAYOUT = 1  # part of the fingerprint: raise it with every change of the rules' form, so that nodes replace old ones

# Without nf_tables nfnetlink answers EINVAL or EOPNOTSUPP; without the chain type or an expression of ours, ENOENT.
ABSENT = frozenset({errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP})
UNSUPPORTED = ABSENT | {errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT}


def connect() -> netlink.Socket:
    """A socket to nftables in the current network namespace; raises KernelRefused where there is none."""
    with _refusals_explained():
        return netlink.Socket(NETLINK_NETFILTER)


def sync(socket: netlink.Socket, rules: Iterable[SourceNat]) -> bool:
    """Make our table hold exactly these rules, or be gone when there are none; tells whether it had to be changed.

    One transaction, so that nobody sees half of it, and of two at once one comes after the other. Connections keep
    their translation. Raises KernelRefused.
    """
    wanted = _ordered(rules)
    if _holds(socket, wanted):
        return False
    # Deleting what does not exist is an error, creating what exists is not: hence the creation before the deletion.
    cleared = [_request(NFT_MSG_NEWTABLE, TABLE_NAME, netlink.NLM_F_CREATE), _request(NFT_MSG_DELTABLE, TABLE_NAME)]
    with _refusals_explained():
        socket.batch(_batch(NFNL_MSG_BATCH_BEGIN), cleared + _table_messages(wanted), _batch(NFNL_MSG_BATCH_END))
    return True


def in_place(socket: netlink.Socket, rules: Iterable[SourceNat]) -> bool:
    """Whether our table holds these rules, judged by one request: their fingerprint and their number.

    Raises KernelRefused.
    """
    return _holds(socket, _ordered(rules))


def _ordered(rules: Iterable[SourceNat]) -> list[SourceNat]:
    """The rules in an order of ours, without repetitions; addresses of one shim and family keep theirs."""
    return sorted(dict.fromkeys(rules), key=lambda rule: (rule.shim, rule.address.version))


def _holds(socket: netlink.Socket, wanted: list[SourceNat]) -> bool:
    if not wanted:
        return _get(socket, NFT_MSG_GETTABLE, TABLE_NAME) is None
    chain = _get(socket, NFT_MSG_GETCHAIN, CHAIN_NAME)
    if chain is None:
        return False
    found = attribute_map(chain, len(NFGENMSG))
    same = found.get(NFTA_CHAIN_USERDATA) == _comment(wanted)
    return same and found.get(NFTA_CHAIN_USE) == struct.pack("!I", len(wanted) * len(DIRECTIONS))


def _get(socket: netlink.Socket, kind: int, name: bytes) -> bytes | None:
    with _refusals_explained():
        try:
            return socket.get(_request(kind, name))
        except netlink.NetlinkError as error:
            if error.errno in ABSENT:
                return None
            raise


@contextmanager
def _refusals_explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _explained(error) from error


def _explained(error: OSError) -> KernelRefused:
    instead = 'or set "snat": false in "shim"'
    if error.errno in (errno.EPERM, errno.EACCES):
        return KernelRefused(f"source NAT for shim.routes needs CAP_NET_ADMIN: grant it, {instead}", str(error))
    if error.errno in UNSUPPORTED:
        modules = "nf_tables, nft_chain_nat, nft_nat and nft_ct"
        return KernelRefused(
            f"this kernel has no source NAT in nftables, which shim.routes needs: load {modules}, {instead}", str(error)
        )
    return KernelRefused(f"nftables refused the source NAT for shim.routes ({error.strerror})", str(error))


def _rule(rule: SourceNat, interface_key: int) -> Message:
    """`iifname SHIM ct status dnat meta nfproto ipv4 snat ip to ADDRESS`, or with oifname, or with v6.

    The kernel knows iifname in postrouting since 5.7, and only of packets that it forwards.
    """
    family = NFPROTO_IPV4 if rule.address.version == 4 else NFPROTO_IPV6
    expressions = (
        _meta(interface_key),
        _compare(NFT_CMP_EQ, rule.shim.encode().ljust(IFNAMSIZ, b"\0")),
        _expression("ct", _be32(NFTA_CT_DREG, NFT_REG_1), _be32(NFTA_CT_KEY, NFT_CT_STATUS)),
        _mask(IPS_DST_NAT),
        _compare(NFT_CMP_NEQ, bytes(4)),
        _meta(NFT_META_NFPROTO),
        _compare(NFT_CMP_EQ, bytes([family])),
        _expression(
            "immediate", _be32(NFTA_IMMEDIATE_DREG, NFT_REG_1), _data(NFTA_IMMEDIATE_DATA, rule.address.packed)
        ),
        _expression(
            "nat",
            _be32(NFTA_NAT_TYPE, NFT_NAT_SNAT),
            _be32(NFTA_NAT_FAMILY, family),
            _be32(NFTA_NAT_REG_ADDR_MIN, NFT_REG_1),
        ),
    )
    body = text(NFTA_RULE_TABLE, TABLE) + text(NFTA_RULE_CHAIN, CHAIN) + nest(NFTA_RULE_EXPRESSIONS, *expressions)
    return _request(NFT_MSG_NEWRULE, body, netlink.NLM_F_CREATE | NLM_F_APPEND)


def _table_messages(wanted: list[SourceNat]) -> list[Message]:
    if not wanted:
        return []
    hook = nest(NFTA_CHAIN_HOOK, _be32(NFTA_HOOK_HOOKNUM, NF_INET_POST_ROUTING), _be32(NFTA_HOOK_PRIORITY, PRIORITY))
    chain = (
        CHAIN_NAME
        + hook
        + _be32(NFTA_CHAIN_POLICY, NF_ACCEPT)
        + text(NFTA_CHAIN_TYPE, "nat")
        + attribute(NFTA_CHAIN_USERDATA, _comment(wanted))
    )
    return [
        _request(NFT_MSG_NEWTABLE, TABLE_NAME, netlink.NLM_F_CREATE),
        _request(NFT_MSG_NEWCHAIN, chain, netlink.NLM_F_CREATE),
        *(_rule(rule, direction) for rule in wanted for direction in DIRECTIONS),
    ]


def _comment(wanted: list[SourceNat]) -> bytes:
    """The chain's user data: the comment that nft shows, holding a fingerprint of the rules."""
    content = " ".join(f"{rule.shim} {rule.address}" for rule in wanted)
    fingerprint = binascii.crc32(f"{LAYOUT} {content}".encode())
    comment = f"managed by shimlan, rules {fingerprint:08x}".encode() + b"\0"
    return bytes([UDATA_CHAIN_COMMENT, len(comment)]) + comment


def _request(kind: int, body: bytes, flags: int = 0) -> Message:
    return Message(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, NFGENMSG + body)


def _batch(kind: int) -> Message:
    return Message(kind, 0, struct.pack("!BBH", AF_UNSPEC, 0, NFNL_SUBSYS_NFTABLES))


def _expression(name: str, *attributes: bytes) -> bytes:
    return nest(NFTA_LIST_ELEM, text(NFTA_EXPR_NAME, name), nest(NFTA_EXPR_DATA, *attributes))


def _meta(key: int) -> bytes:
    return _expression("meta", _be32(NFTA_META_DREG, NFT_REG_1), _be32(NFTA_META_KEY, key))


def _compare(operator: int, value: bytes) -> bytes:
    return _expression(
        "cmp", _be32(NFTA_CMP_SREG, NFT_REG_1), _be32(NFTA_CMP_OP, operator), _data(NFTA_CMP_DATA, value)
    )


def _mask(bits: int) -> bytes:
    """reg 1 = reg 1 & bits; like the status of a connection, registers are in host order."""
    return _expression(
        "bitwise",
        _be32(NFTA_BITWISE_SREG, NFT_REG_1),
        _be32(NFTA_BITWISE_DREG, NFT_REG_1),
        _be32(NFTA_BITWISE_LEN, 4),
        _data(NFTA_BITWISE_MASK, struct.pack("=I", bits)),
        _data(NFTA_BITWISE_XOR, bytes(4)),
    )


def _data(kind: int, value: bytes) -> bytes:
    return nest(kind, attribute(NFTA_DATA_VALUE, value))


def _be32(kind: int, value: int) -> bytes:
    """An attribute holding a 32-bit number in network order, as all of nftables' numbers are."""
    return attribute(kind, struct.pack("!I", value))
