"""The frames of a probe, octet by octet, and what counts as a claim to an address."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest

from cni.probe import BPF_JUMP_IF_EQUAL, BPF_LOAD_WORD, claims, interest, probe

OWN = bytes.fromhex("020000000001")
OTHER = bytes.fromhex("020000000002")
V4 = IPv4Address("192.0.2.77")
V6 = IPv6Address("2001:db8::12:3456")

ARP_PROBE = bytes.fromhex(
    "ffffffffffff 020000000001 0806"  # to all, from us, ARP
    "0001 0800 06 04 0001"  # Ethernet, IPv4, request
    "020000000001 00000000"  # sender: our MAC, no address
    "000000000000 c000024d"  # target: 192.0.2.77
)
ARP_REPLY = bytes.fromhex(
    "020000000001 020000000002 0806  0001 0800 06 04 0002  020000000002 c000024d  020000000001 00000000"
)
SOLICITATION = bytes.fromhex(
    "3333ff123456 020000000001 86dd"
    "60000000 0018 3a ff"  # 24 octets of ICMPv6, hop limit 255
    "00000000000000000000000000000000 ff0200000000000000000001ff123456"
    "87 00 e41e 00000000 20010db8000000000000000000123456"
)
ADVERTISEMENT = bytes.fromhex(
    "333300000001 020000000002 86dd"
    "60000000 0020 3a ff"
    "20010db8000000000000000000123456 ff020000000000000000000000000001"
    "88 00 905b 20000000 20010db8000000000000000000123456 0201020000000002"
)
PADDING = bytes(18)  # to Ethernet's 60 octets


def changed(frame: bytes, offset: int, octets: str) -> bytes:
    """A copy of a frame with other octets at an offset."""
    new = bytes.fromhex(octets)
    return frame[:offset] + new + frame[offset + len(new) :]


def resealed(frame: bytes) -> bytes:
    """A copy of an ICMPv6 frame with the right checksum, computed as a number modulo 65535."""
    (length,) = struct.unpack_from("!H", frame, 18)
    message = frame[54:56] + bytes(2) + frame[58 : 54 + length]
    covered = int.from_bytes(frame[22:54] + struct.pack("!II", length, 58) + message, "big")
    return frame[:56] + struct.pack("!H", 0xFFFF - covered % 0xFFFF) + frame[58:]


def from_other(frame: bytes) -> bytes:
    """A probe of ours as another machine would send it."""
    return frame.replace(OWN, OTHER)


CLAIMS = {
    "ARP reply": (ARP_REPLY, V4),
    "padded ARP reply": (ARP_REPLY + PADDING, V4),
    "ARP request of the owner": (changed(ARP_REPLY, 20, "0001"), V4),
    "ARP probe for the same address": (from_other(ARP_PROBE), V4),
    "neighbour advertisement": (ADVERTISEMENT, V6),
    "padded neighbour advertisement": (ADVERTISEMENT + PADDING, V6),
    "DAD of the same address": (from_other(SOLICITATION), V6),
}

NO_CLAIMS = {
    "empty frame": (b"", V4),
    "our ARP probe, back from the LAN": (ARP_PROBE, V4),
    "our ARP probe, sent on by a repeater": (changed(ARP_PROBE, 6, OTHER.hex()), V4),
    "ARP reply of another address": (ARP_REPLY, IPv4Address("192.0.2.78")),
    "ARP probe for another address": (from_other(ARP_PROBE), IPv4Address("192.0.2.78")),
    "ARP request for the address": (changed(from_other(ARP_PROBE), 28, "c0000201"), V4),
    "ARP reply to the address": (changed(changed(ARP_REPLY, 28, "00000000"), 38, "c000024d"), V4),
    "ARP of another protocol": (changed(ARP_REPLY, 16, "86dd"), V4),
    "ARP cut short": (ARP_REPLY[:-1], V4),
    "ARP behind a VLAN tag": (ARP_REPLY[:12] + bytes.fromhex("81000005") + ARP_REPLY[12:], V4),
    "our solicitation, back from the LAN": (SOLICITATION, V6),
    "advertisement of another address": (ADVERTISEMENT, IPv6Address("2001:db8::13:3456")),
    "advertisement from beyond a router": (changed(ADVERTISEMENT, 21, "fe"), V6),
    "advertisement with a wrong checksum": (changed(ADVERTISEMENT, 56, "0000"), V6),
    "advertisement with a code": (resealed(changed(ADVERTISEMENT, 55, "01")), V6),
    "advertisement cut short": (ADVERTISEMENT[:-1], V6),
    "advertisement shorter than it may be": (ADVERTISEMENT[:70], V6),
    "advertisement without a whole target": (changed(ADVERTISEMENT, 18, "0010"), V6),
    "same octets as another protocol": (changed(ADVERTISEMENT, 20, "11"), V6),
    "redirect": (resealed(changed(ADVERTISEMENT, 54, "89")), V6),
    "solicitation by somebody with an address": (
        resealed(changed(from_other(SOLICITATION), 22, "20010db8000000000000000000000001")),
        V6,
    ),
    "IPv6 for an IPv4 address": (ADVERTISEMENT, V4),
    "ARP for an IPv6 address": (ARP_REPLY, V6),
}


def test_arp_probe_names_no_sender_address() -> None:
    assert probe(OWN, V4) == ARP_PROBE


def test_solicitation_is_that_of_duplicate_address_detection() -> None:
    assert probe(OWN, V6) == SOLICITATION


@pytest.mark.parametrize(("frame", "address"), CLAIMS.values(), ids=CLAIMS.keys())
def test_claims(frame: bytes, address: IPv4Address | IPv6Address) -> None:
    assert claims(frame, OWN, address)
    assert passes(interest(address), frame)


@pytest.mark.parametrize(("frame", "address"), NO_CLAIMS.values(), ids=NO_CLAIMS.keys())
def test_no_claims(frame: bytes, address: IPv4Address | IPv6Address) -> None:
    assert not claims(frame, OWN, address)


@pytest.mark.parametrize("address", [IPv4Address("192.0.2.78"), IPv6Address("2001:db8::1")])
@pytest.mark.parametrize("frame", [ARP_PROBE, ARP_REPLY, SOLICITATION, ADVERTISEMENT, b"", bytes(60)])
def test_the_filter_spares_us_what_concerns_other_addresses(frame: bytes, address: IPv4Address | IPv6Address) -> None:
    assert not passes(interest(address), frame)


def passes(program: bytes, frame: bytes) -> bool:
    """What the kernel makes of a classic BPF program that only loads words, jumps if equal and returns."""
    instructions = list(struct.iter_unpack("=HBBI", program))
    position = word = 0
    while True:
        code, if_equal, otherwise, value = instructions[position]
        position += 1
        if code == BPF_LOAD_WORD:
            if value + 4 > len(frame):  # the kernel drops the frame then
                return False
            (word,) = struct.unpack_from("!I", frame, value)
        elif code == BPF_JUMP_IF_EQUAL:
            position += if_equal if word == value else otherwise
        else:
            return bool(value)
