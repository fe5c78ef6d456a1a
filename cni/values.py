"""What one value of a configuration must look like: an address, a MAC, an interface name, a number in its bounds.

Each function takes a decoded JSON value and returns what it means, or raises `Unfit` with the second half of a sentence
that begins with the value's path. Which keys there are is the business of `cni.config` and `ipam.config`.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from cni import quickjson
from cni.protocol import NAME_RULE, is_identifier, is_interface_name, is_utf8

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Address = IPv4Address | IPv6Address
    Network = IPv4Network | IPv6Network

HEX_DIGITS = frozenset("0123456789abcdef")
PREFIX_LENGTHS = {str(length): length for length in range(129)}
LOWEST_MTU = 68  # ETH_MIN_MTU
HIGHEST_MTU = 65535
SHOWN_CHARACTERS = 60


class Unfit(ValueError):
    """The value cannot be used; the message says why."""


def show(value: object) -> str:
    """A value as a message shows it: scalars as JSON (shortened), containers by their kind."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = quickjson.dumps(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def string(value: object) -> str:
    """Text that the kernel and the file system can take: no NUL, no half of a surrogate pair."""
    if not isinstance(value, str):
        raise Unfit(f"must be a string, not {show(value)}")
    if "\0" in value or not (value.isascii() or is_utf8(value)):
        raise Unfit(f"{show(value)} holds a character that no name can have")
    return value


def boolean(value: object) -> bool:
    """true or false, nothing that merely resembles them."""
    if not isinstance(value, bool):
        raise Unfit(f"must be true or false, not {show(value)}")
    return value


def mapping(value: object) -> dict[str, Any]:
    """An object, passed on as it is."""
    if not isinstance(value, dict):
        raise Unfit(f"must be an object, not {show(value)}")
    return value


def integer(minimum: int, maximum: int) -> Callable[[object], int]:
    """A whole number between two bounds, both included; neither true nor 1.0 is one."""

    def convert(value: object) -> int:
        number = _whole(value)
        if not minimum <= number <= maximum:
            raise Unfit(f"must be between {minimum} and {maximum}, not {show(number)}")
        return number

    return convert


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise Unfit(f"must be a whole number, not {show(value)}")
    return value


def mtu(value: object) -> int:
    """An MTU, or 0 for that of the parent."""
    number = _whole(value)
    if number and not LOWEST_MTU <= number <= HIGHEST_MTU:
        raise Unfit(f"must be 0 or between {LOWEST_MTU} and {HIGHEST_MTU}, not {show(number)}")
    return number


def one_of(*options: str, unsupported: tuple[str, ...] = ()) -> Callable[[object], str]:
    """One of a few words; of `unsupported` it is said that they will mean something in another version."""

    def convert(value: object) -> str:
        if value in unsupported:
            raise Unfit(f"{show(value)} is not supported by this version")
        if value not in options:
            raise Unfit(f"must be one of {', '.join(options)}, not {show(value)}")
        return str(value)

    return convert


def address(value: object) -> Address:
    """An IPv4 or IPv6 address without a zone."""
    text = string(value)
    if "%" in text:
        raise Unfit(f"{show(value)} must be an IP address without a zone")
    try:
        return IPv6Address(text) if ":" in text else IPv4Address(text)
    except ValueError:
        raise Unfit(f"{show(value)} is not an IP address") from None


def requested_address(value: object) -> Address:
    """The address of "address" or "address/prefix length"."""
    text = string(value)
    return _split(text)[0] if "/" in text else address(text)


def address_list(value: object) -> tuple[Address, ...]:
    """The addresses of a comma-separated list, as CNI_ARGS have it; empty items are skipped."""
    return tuple(requested_address(item.strip()) for item in string(value).split(",") if item.strip())


def masked_network(value: object) -> Network:
    """A CIDR whose host bits, if any, are dropped, as the reference plugins do for routes."""
    return _network(*_split(string(value)))


def network(value: object) -> Network:
    """A CIDR without host bits."""
    host, length = _split(string(value))
    result = _network(host, length)
    if result.network_address != host:
        raise Unfit(f"{host}/{length} has host bits set; did you mean {result}?")
    return result


def network_or_address(value: object) -> Network:
    """A CIDR without host bits, or an address that stands for itself (/32 or /128)."""
    if isinstance(value, str) and "/" not in value:
        host = address(value)
        return _network(host, host.max_prefixlen)
    return network(value)


def pool_subnet(value: object) -> Network:
    """A subnet that has addresses to hand out: at most /30, or /126, as host-local has it."""
    subnet = network(value)
    longest = subnet.max_prefixlen - 2
    if subnet.prefixlen > longest:
        raise Unfit(f"{subnet} is too small to hand out addresses from; the longest prefix is /{longest}")
    return subnet


def _split(text: str) -> tuple[Address, int]:
    """Address and prefix length of a CIDR; netmasks are not prefix lengths."""
    head, _, tail = text.partition("/")
    try:
        host = address(head)
    except Unfit:
        raise Unfit(f"{show(text)} is not a CIDR such as 192.168.1.0/24") from None
    length = PREFIX_LENGTHS.get(tail, 129)
    if length > host.max_prefixlen:
        raise Unfit(f"{show(text)} is not a CIDR: its prefix length must be 0 to {host.max_prefixlen}")
    return host, length


def _network(host: Address, length: int) -> Network:
    kind = IPv4Network if host.version == 4 else IPv6Network
    return kind((int(host), length), strict=False)


def mac(value: object) -> str:
    """A unicast Ethernet address that is not zero, in lower case with colons; dashes and capitals are understood."""
    text = string(value).lower().replace("-", ":")
    octets = text.split(":")
    if len(octets) != 6 or any(len(octet) != 2 or not HEX_DIGITS.issuperset(octet) for octet in octets):
        raise Unfit(f"{show(value)} is not a MAC address")
    if int(octets[0], 16) & 1:
        raise Unfit(f"{text} is a multicast address, no interface can have it")
    if text == "00:00:00:00:00:00":
        raise Unfit(f"{text} is no address that an interface can have")
    return text


def interface_name(value: object) -> str:
    """A name that the kernel accepts for an interface."""
    name = string(value)
    if not is_interface_name(name):
        raise Unfit(f"{show(name)} is not an interface name: {NAME_RULE}")
    return name


def network_name(value: object) -> str:
    """A network's name as libcni has it: a letter or digit, then letters, digits, "_", "." and "-"."""
    name = string(value)
    if not is_identifier(name):
        raise Unfit(f'{show(name)} must begin with a letter or digit and hold only letters, digits, "_", "." and "-"')
    return name


def file_name(value: object) -> str:
    """The name of an executable to be looked up in CNI_PATH: not a path."""
    name = string(value)
    if "/" in name or name in ("", ".", ".."):
        raise Unfit(f"{show(name)} must be the plain name of an executable in CNI_PATH")
    return name


def absolute_path(value: object) -> str:
    """A path from the root on."""
    path = string(value)
    if not path.startswith("/"):
        raise Unfit(f"{show(path)} must be an absolute path")
    return path


def pod_name(value: object) -> str:
    """A pod as "namespace/name"."""
    pod = string(value)
    namespace, _, name = pod.partition("/")
    if not (namespace and name) or "/" in name:
        raise Unfit(f'{show(pod)} must be "namespace/name"')
    return pod
