"""Is an address in use on the LAN? ARP probes (RFC 5227) and neighbour solicitations as in DAD (RFC 4862).

Asked from the parent before a pod gets the address. The probes name no sender, so nobody's neighbour cache learns
from them. The other children of the parent do not hear it: who has which address on this host is the IPAM's to know.
"""

from __future__ import annotations

# The private module on purpose: `import socket` costs 3-5 ms, mostly for enumerations that nothing here needs.
import _socket
import array
import errno
import struct
import time
from contextlib import closing, contextmanager

from cni.errors import CniError, KernelRefused, ParentUnusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Address, IPv6Address

    Address = IPv4Address | IPv6Address

ETH_P_IP = 0x0800  # include/uapi/linux/if_ether.h
ETH_P_ARP = 0x0806
ETH_P_IPV6 = 0x86DD
ETHERNET = struct.Struct("!6s6sH")
BROADCAST = b"\xff" * 6

ARP = struct.Struct("!HHBBH6s4s6s4s")  # hardware, protocol, their lengths, operation, sender's MAC and IP, target's
ARP_OF_IPV4 = (1, ETH_P_IP, 6, 4)
ARP_REQUEST = 1
NO_IPV4 = bytes(4)

IPV6 = struct.Struct("!IHBB16s16s")  # version and flow, payload's length, next header, hop limit, source, destination
ICMPV6 = struct.Struct("!BBHI16s")  # type, code, checksum, flags, target
IPPROTO_ICMPV6 = 58
NEIGHBOUR_SOLICITATION = 135
NEIGHBOUR_ADVERTISEMENT = 136
HOP_LIMIT = 255  # routers lower it, so it proves that the sender is on the link (RFC 4861, section 7.1)
NO_IPV6 = bytes(16)
SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")  # and the last three octets of the address

SOL_PACKET = 263  # include/linux/socket.h
PACKET_ADD_MEMBERSHIP = 1
PACKET_MR_MULTICAST = 0
SO_ATTACH_FILTER = 26
BPF_INSTRUCTION = struct.Struct("=HBBI")
BPF_LOAD_WORD = 0x20  # include/uapi/linux/bpf_common.h: BPF_LD | BPF_W | BPF_ABS
BPF_JUMP_IF_EQUAL = 0x15
BPF_RETURN = 0x06
MAX_FRAME = 2048


def who_has(ifname: str, mac: str, address: Address, timeout_ms: int, retries: int) -> str | None:
    """The MAC of whoever uses or probes for `address` on the LAN of `ifname`, None if nobody shows up.

    Sends `retries` probes from `mac`, the interface's own, and waits `timeout_ms` after each; returns with the first
    answer. Raises ParentUnusable if the interface is down or missing, KernelRefused without CAP_NET_RAW.
    """
    own = _octets(mac)
    with _refusals_explained(ifname), closing(_open(ifname, address)) as lan:
        for _ in range(retries):
            lan.send(probe(own, address))
            for frame in _received(lan, timeout_ms / 1000):
                if claims(frame, own, address):
                    return frame[6:12].hex(":")
    return None


def probe(own: bytes, address: Address) -> bytes:
    """The Ethernet frame that asks who has `address`."""
    if address.version == 4:
        request = ARP.pack(*ARP_OF_IPV4, ARP_REQUEST, own, NO_IPV4, bytes(6), address.packed)
        return ETHERNET.pack(BROADCAST, own, ETH_P_ARP) + request
    group = _solicited_node(address)
    solicitation = _checked(NO_IPV6, group, ICMPV6.pack(NEIGHBOUR_SOLICITATION, 0, 0, 0, address.packed))
    header = IPV6.pack(6 << 28, len(solicitation), IPPROTO_ICMPV6, HOP_LIMIT, NO_IPV6, group)
    return ETHERNET.pack(_multicast_mac(group), own, ETH_P_IPV6) + header + solicitation


def claims(frame: bytes, own: bytes, address: Address) -> bool:
    """Whether an Ethernet frame, not one of ours that came back, says that its sender uses or wants `address`."""
    if len(frame) < ETHERNET.size:
        return False
    ethertype: int
    _, sender, ethertype = ETHERNET.unpack_from(frame)
    packet = frame[ETHERNET.size :]
    if sender == own:
        return False
    if address.version == 4:
        return ethertype == ETH_P_ARP and _arp_claims(packet, own, address)
    return ethertype == ETH_P_IPV6 and _nd_claims(packet, address)


def _arp_claims(packet: bytes, own: bytes, address: Address) -> bool:
    """Its sender has the address, or probes for it at the same time (RFC 5227, section 2.1.1)."""
    if len(packet) < ARP.size:
        return False
    *kind, operation, sender_mac, sender, _, target = ARP.unpack_from(packet)
    if tuple(kind) != ARP_OF_IPV4 or sender_mac == own:
        return False
    probed = operation == ARP_REQUEST and sender == NO_IPV4 and target == address.packed
    return bool(probed or sender == address.packed)


def _nd_claims(packet: bytes, address: Address) -> bool:
    """An advertisement of the address, or somebody else's solicitation of DAD for it (RFC 4862, section 5.4.3)."""
    if len(packet) < IPV6.size + ICMPV6.size:
        return False
    _, length, protocol, hop_limit, source, destination = IPV6.unpack_from(packet)
    message = packet[IPV6.size : IPV6.size + length]
    if protocol != IPPROTO_ICMPV6 or hop_limit != HOP_LIMIT or len(message) != length or length < ICMPV6.size:
        return False
    kind, code, _, _, target = ICMPV6.unpack_from(message)
    if code or target != address.packed or _checksum(source, destination, message):
        return False
    return bool(kind == NEIGHBOUR_ADVERTISEMENT or (kind == NEIGHBOUR_SOLICITATION and source == NO_IPV6))


def interest(address: Address) -> bytes:
    """A classic BPF program that passes the frames with the last four octets of `address` where `claims` looks."""
    sender, target, nd_target = 28, 38, 74  # in ARP; the last word of the target in neighbour discovery
    offsets = (sender, target) if address.version == 4 else (nd_target,)
    word = int.from_bytes(address.packed[-4:], "big")
    program = b""
    for position, offset in enumerate(offsets):
        over_the_rest = 2 * (len(offsets) - position) - 1
        program += BPF_INSTRUCTION.pack(BPF_LOAD_WORD, 0, 0, offset)
        program += BPF_INSTRUCTION.pack(BPF_JUMP_IF_EQUAL, over_the_rest, 0, word)
    return program + BPF_INSTRUCTION.pack(BPF_RETURN, 0, 0, 0) + BPF_INSTRUCTION.pack(BPF_RETURN, 0, 0, MAX_FRAME)


def _open(ifname: str, address: Address) -> _socket.socket:
    # Protocol 0 receives nothing; what bind then lets in has passed the filter.
    lan = _socket.socket(_socket.AF_PACKET, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)
    try:
        _attach(lan, interest(address))
        lan.bind((ifname, ETH_P_ARP if address.version == 4 else ETH_P_IPV6))
        if address.version == 6:
            _join(lan, ifname, _multicast_mac(_solicited_node(address)))
    except OSError:
        lan.close()
        raise
    return lan


def _attach(lan: _socket.socket, program: bytes) -> None:
    instructions = array.array("B", program)  # an array tells its address, which struct sock_fprog wants
    pointer, length = instructions.buffer_info()
    lan.setsockopt(_socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", length // BPF_INSTRUCTION.size, pointer))


def _join(lan: _socket.socket, ifname: str, group: bytes) -> None:
    """Let the interface's filter pass a multicast MAC: that on which others probe. Closing the socket undoes it."""
    membership = struct.pack("=iHH8s", _socket.if_nametoindex(ifname), PACKET_MR_MULTICAST, len(group), group)
    lan.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, membership)


def _received(lan: _socket.socket, seconds: float) -> Iterator[bytes]:
    """The frames meant for this interface, until so many seconds are over."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        lan.settimeout(left)
        try:
            frame, (_, _, packet_type, *_) = lan.recvfrom(MAX_FRAME)
        except TimeoutError:
            return
        # Frames of other machines, seen while somebody captures, and of VLANs that do not exist here.
        if packet_type != _socket.PACKET_OTHERHOST:
            yield frame


@contextmanager
def _refusals_explained(ifname: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _explained(error, ifname) from error


def _explained(error: OSError, ifname: str) -> CniError:
    instead = 'or set "detectConflicts": false'
    if error.errno == errno.ENETDOWN:
        return ParentUnusable(f"{ifname} is down, so no address can be probed on it: set it up, {instead}")
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return ParentUnusable(f'there is no interface {ifname} to probe addresses on: correct "master"')
    if error.errno in (errno.EPERM, errno.EACCES):
        return KernelRefused(f"detectConflicts needs CAP_NET_RAW: grant it, {instead}", str(error))
    return KernelRefused(f"no address can be probed on {ifname} ({error.strerror}): repair it, {instead}", str(error))


def _solicited_node(address: Address) -> bytes:
    return SOLICITED_NODE + address.packed[-3:]


def _multicast_mac(group: bytes) -> bytes:
    return b"\x33\x33" + group[-4:]


def _checked(source: bytes, destination: bytes, message: bytes) -> bytes:
    """An ICMPv6 message with its checksum filled in."""
    return message[:2] + struct.pack("!H", _checksum(source, destination, message)) + message[4:]


def _checksum(source: bytes, destination: bytes, message: bytes) -> int:
    """Of ICMPv6 with its pseudo header (RFC 8200, section 8.1); 0 if the message holds the right one already."""
    covered = source + destination + struct.pack("!II", len(message), IPPROTO_ICMPV6) + message
    covered += bytes(len(covered) % 2)
    total: int = sum(struct.unpack(f"!{len(covered) // 2}H", covered))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
