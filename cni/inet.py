"""Addresses and networks from what they are known by, without the guessing of `ipaddress.ip_address` and `ip_network`.

Those try IPv4 first, and an exception for each address of IPv6 costs more than everything else about it; from an
address they make a network by way of its text.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

TYPE_CHECKING = False
if TYPE_CHECKING:
    Address = IPv4Address | IPv6Address
    Network = IPv4Network | IPv6Network


def address(text: str) -> Address:
    """The address of a text; raises ValueError."""
    return IPv6Address(text) if ":" in text else IPv4Address(text)


def network(text: str) -> Network:
    """The network of a text without host bits; raises ValueError."""
    return IPv6Network(text) if ":" in text else IPv4Network(text)


def unpacked(data: bytes) -> Address:
    """The address of its 4 or 16 octets; raises ValueError."""
    return IPv4Address(data) if len(data) == 4 else IPv6Address(data)


def subnet(ip: Address, prefixlen: int) -> Network:
    """The network of that length around an address; raises ValueError."""
    bits = ip.max_prefixlen - prefixlen
    first = int(ip) >> bits << bits
    return IPv4Network((first, prefixlen)) if ip.version == 4 else IPv6Network((first, prefixlen))


def single(ip: Address) -> Network:
    """The network of an address alone."""
    return subnet(ip, ip.max_prefixlen)
