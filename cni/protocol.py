"""The words of the CNI spec: environment, versions, results, errors, as values and as JSON.

Pure: it reads what it is given and returns what is to be printed. What the words are used for is the business of
`cni.commands`. Section names refer to SPEC.md of CNI 1.1.0.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

from cni import quickjson
from cni.errors import DecodingFailure, IncompatibleVersion, InvalidEnvironment
from cni.frozen import frozen, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
    from typing import Any

    from cni.errors import CniError

    Address = IPv4Address | IPv6Address
    Network = IPv4Network | IPv6Network

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = VERSIONS[-1]
MAX_STDIN = 4 << 20  # bytes; a configuration with its prevResult has a few thousand
MAX_DEPTH = 100  # of objects in objects; a configuration has some ten
INFINITY = float("inf")

# Section 2, "Parameters": what each verb cannot do without.
REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "STATUS": (),
    "GC": (),
    "VERSION": (),
}
IDENTIFIER = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
KNOWN_ARGS = frozenset({"IP", "MAC", "GATEWAY", "IgnoreUnknown"})
NAME_LENGTH = 15  # bytes; IFNAMSIZ less the NUL, include/uapi/linux/if.h
NAME_RULE = f"1 to {NAME_LENGTH} bytes, no '/', ':', '%' or white space, and none of . .. all default"


@frozen
class Call:
    """What a runtime asks for: the CNI_* variables, checked."""

    command: str
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    path: str = ""
    args: dict[str, str] | None = None
    own_netns: bool = False  # CNI_NETNS_OVERRIDE: the namespace may be the plugin's own


@frozen
class Interface:
    """An entry of `interfaces`; `sandbox` is empty for links of the host, `mtu` 0 when unknown."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0
    socket_path: str = ""  # of other plugins, to be passed on
    pci_id: str = ""
    tap: int = 0  # a key of our own: the number of a macvtap's character device (/dev/tapN)


@frozen
class IpConfig:
    """An entry of `ips`; `interface` is an index into `interfaces`."""

    address: Address
    prefixlen: int
    gateway: Address | None = None
    interface: int | None = None


@frozen
class RouteConfig:
    """An entry of `routes`; zero and None mean that the key is absent."""

    dst: Network
    gw: Address | None = None
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int = 0
    scope: int | None = None


@frozen
class Result:
    """The success result of ADD, whatever version it is written in."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IpConfig, ...] = ()
    routes: tuple[RouteConfig, ...] = ()
    dns: dict[str, Any] | None = None


def parse_environ(environ: Mapping[str, str]) -> Call:
    """The call that the CNI_* variables describe; raises InvalidEnvironment naming every variable that is wrong."""
    command = environ.get("CNI_COMMAND", "")
    if command not in REQUIRED:
        raise InvalidEnvironment(f"CNI_COMMAND: {command!r} is none of {', '.join(REQUIRED)}")
    values = {name: environ.get(name, "") for name in ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")}
    problems = [f"{name} is missing" for name in REQUIRED[command] if not values[name]]
    problems += _problems(values)
    if problems and REQUIRED[command]:
        raise InvalidEnvironment("; ".join(problems))
    return Call(
        command=command,
        container_id=values["CNI_CONTAINERID"],
        netns=values["CNI_NETNS"],
        ifname=values["CNI_IFNAME"],
        path=environ.get("CNI_PATH", ""),
        args=parse_cni_args(environ.get("CNI_ARGS", "")) if REQUIRED[command] else {},
        own_netns=is_true(environ.get("CNI_NETNS_OVERRIDE", "")),
    )


def _problems(values: Mapping[str, str]) -> list[str]:
    found = []
    if (container_id := values["CNI_CONTAINERID"]) and not is_identifier(container_id):
        found.append(f"CNI_CONTAINERID: {container_id!r} must start with a letter or digit, then also _ . -")
    if (ifname := values["CNI_IFNAME"]) and not is_interface_name(ifname):
        found.append(f"CNI_IFNAME: {ifname!r} is no interface name: {NAME_RULE}")
    if "\0" in values["CNI_NETNS"]:
        found.append("CNI_NETNS: contains a NUL")
    return found + [f"{name}: {value!r} is not UTF-8" for name, value in values.items() if not is_utf8(value)]


def is_utf8(text: str) -> bool:
    """Whether the octets of a variable were text: the others come as halves of surrogate pairs (PEP 383)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_identifier(text: str) -> bool:
    """Whether a container ID or network name has the form that the spec asks for."""
    # Nothing is left of a text of letters alone: to strip is quicker than to look at each of 64.
    return bool(text) and text.isascii() and text[0].isalnum() and not text.strip(IDENTIFIER)


def is_interface_name(text: str) -> bool:
    """Whether Linux takes the name for a link just as it is.

    See dev_valid_name and, for "%", dev_alloc_name in net/core/dev.c; `all` and `default` are sysctl directories that
    no link may have (devinet_sysctl_register in net/ipv4/devinet.c).
    """
    return (
        0 < len(text.encode(errors="surrogateescape")) <= NAME_LENGTH
        and text not in (".", "..", "all", "default")
        and not any(c in "/:%\0" or c.isspace() for c in text)
    )


def is_true(text: str) -> bool:
    """Whether a variable says yes, as Go's strconv.ParseBool has it."""
    return text in ("1", "t", "T", "true", "TRUE", "True")


def parse_cni_args(text: str) -> dict[str, str]:
    """CNI_ARGS ("A=1;B=2") as a mapping. Unknown keys are refused unless IgnoreUnknown is true, as libcni does."""
    args: dict[str, str] = {}
    for pair in filter(None, text.split(";")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InvalidEnvironment(f"CNI_ARGS: {pair!r} is not of the form KEY=VALUE")
        args[key] = value
    unknown = [key for key in args if key not in KNOWN_ARGS and not key.startswith("K8S_POD_")]
    if unknown and not is_true(args.get("IgnoreUnknown", "")):
        raise InvalidEnvironment(f"CNI_ARGS: unknown {', '.join(unknown)}; add IgnoreUnknown=1 to have it ignored")
    return args


def decode(data: bytes | str, what: str = "stdin: the network configuration") -> dict[str, Any]:
    """The JSON object that stdin, or whatever `what` says, holds; raises DecodingFailure."""
    if len(data) > MAX_STDIN:
        raise DecodingFailure(f"{what} has more than {MAX_STDIN} bytes")
    try:
        value = quickjson.loads(data)
    except (ValueError, RecursionError) as error:
        raise DecodingFailure(f"{what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DecodingFailure(f"{what} must be a JSON object")
    if oddity := _oddity(value):
        raise DecodingFailure(f"{what} {oddity}")
    return value


def _oddity(value: object) -> str:
    """Why a value cannot be passed on as JSON, "" if it can: Python reads more than the standard knows (RFC 8259)."""
    level = [value]
    for _ in range(MAX_DEPTH):
        containers = [list(entry.values()) if isinstance(entry, dict) else entry for entry in level]
        level = [entry for container in containers if isinstance(container, list) for entry in container]
        if not level:
            return ""
        if any(isinstance(entry, float) and not -INFINITY < entry < INFINITY for entry in level):
            return "holds a number that JSON cannot express"
    return f"is nested more than {MAX_DEPTH} levels deep"


def version_of(conf: Mapping[str, Any]) -> str:
    """The cniVersion of a configuration; raises IncompatibleVersion when it is none that we speak."""
    # A configuration without the key is one of 0.1.0 (section 1, "Version").
    version = conf.get("cniVersion", "0.1.0")
    if version not in VERSIONS:
        raise IncompatibleVersion(
            f"cniVersion: {version!r} is not supported; use one of {', '.join(VERSIONS)}",
        )
    return str(version)


def version_answer(conf: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to VERSION: the asked version where it is one of ours, and all that we speak."""
    asked = conf.get("cniVersion")
    return {"cniVersion": asked if asked in VERSIONS else NEWEST, "supportedVersions": list(VERSIONS)}


def error_answer(error: CniError, version: str) -> dict[str, Any]:
    """The error result (section "Error")."""
    answer: dict[str, Any] = {"cniVersion": version, "code": error.code, "msg": error.msg}
    if error.details:
        answer["details"] = error.details
    return answer


def parse_result(value: object) -> Result:
    """A result of any version from 0.3.0 on, of a delegate or in prevResult; raises DecodingFailure."""
    try:
        return _parse_result(value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DecodingFailure(f"not a CNI result: {error!r}", repr(value)[:2000]) from error


def _parse_result(value: Any) -> Result:
    return Result(
        interfaces=tuple(_parse_interface(entry) for entry in value.get("interfaces") or ()),
        ips=tuple(_parse_ip(entry) for entry in value.get("ips") or ()),
        routes=tuple(_parse_route(entry) for entry in value.get("routes") or ()),
        dns=dict(value.get("dns") or {}),
    )


def _parse_interface(entry: Any) -> Interface:
    return Interface(
        name=str(entry["name"]),
        mac=str(entry.get("mac") or ""),
        sandbox=str(entry.get("sandbox") or ""),
        mtu=int(entry.get("mtu") or 0),
        socket_path=str(entry.get("socketPath") or ""),
        pci_id=str(entry.get("pciID") or ""),
        tap=int(entry.get("tap") or 0),
    )


def _parse_ip(entry: Any) -> IpConfig:
    address = ip_interface(entry["address"])
    index = entry.get("interface")
    return IpConfig(
        address=address.ip,
        prefixlen=address.network.prefixlen,
        gateway=ip_address(entry["gateway"]) if entry.get("gateway") else None,
        interface=None if index is None else int(index),
    )


def _parse_route(entry: Any) -> RouteConfig:
    scope = entry.get("scope")
    return RouteConfig(
        dst=ip_network(entry["dst"], strict=False),
        gw=ip_address(entry["gw"]) if entry.get("gw") else None,
        mtu=_number(entry.get("mtu")),
        advmss=_number(entry.get("advmss")),
        priority=_number(entry.get("priority")),
        table=_number(entry.get("table")),
        scope=None if scope is None else _number(scope, 255),
    )


def _number(value: Any, highest: int = 2**32 - 1) -> int:
    """A number that the kernel has room for; absent ones are 0."""
    number = int(value or 0)
    if not 0 <= number <= highest:
        raise ValueError(f"{value} is not between 0 and {highest}")
    return number


def render_result(result: Result, version: str) -> dict[str, Any]:
    """A result in the shape of `version`: before 1.0.0 an address tells its family, before 1.1.0 nobody tells MTUs."""
    rendered: dict[str, Any] = {"cniVersion": version}
    if result.interfaces:
        rendered["interfaces"] = [_render_interface(entry, version) for entry in result.interfaces]
    if result.ips:
        rendered["ips"] = [_render_ip(entry, version) for entry in result.ips]
    if result.routes:
        rendered["routes"] = [_render_route(entry, version) for entry in result.routes]
    rendered["dns"] = result.dns or {}
    return rendered


def _render_interface(interface: Interface, version: str) -> dict[str, Any]:
    rendered: dict[str, Any] = {"name": interface.name}
    if interface.mac:
        rendered["mac"] = interface.mac
    if interface.mtu and version == NEWEST:
        rendered["mtu"] = interface.mtu
    if interface.sandbox:
        rendered["sandbox"] = interface.sandbox
    if version == NEWEST:
        passed_on = {"socketPath": interface.socket_path, "pciID": interface.pci_id}
        rendered |= {key: value for key, value in passed_on.items() if value}
    if interface.tap:
        rendered["tap"] = interface.tap
    return rendered


def _render_ip(ip: IpConfig, version: str) -> dict[str, Any]:
    rendered: dict[str, Any] = {"version": str(ip.address.version)} if version.startswith("0.") else {}
    if ip.interface is not None:
        rendered["interface"] = ip.interface
    rendered["address"] = f"{ip.address}/{ip.prefixlen}"
    if ip.gateway is not None:
        rendered["gateway"] = str(ip.gateway)
    return rendered


def _render_route(route: RouteConfig, version: str) -> dict[str, Any]:
    rendered: dict[str, Any] = {"dst": str(route.dst)}
    if route.gw is not None:
        rendered["gw"] = str(route.gw)
    if version == NEWEST:
        optional = {"mtu": route.mtu, "advmss": route.advmss, "priority": route.priority, "table": route.table}
        rendered |= {key: value for key, value in optional.items() if value}
        if route.scope is not None:
            rendered["scope"] = route.scope
    return rendered


def merge(previous: Result, ours: Result) -> Result:
    """The result of a chain: what the plugins before us did, then our part with its indices moved behind theirs."""
    offset = len(previous.interfaces)
    moved = tuple(ip if ip.interface is None else replace(ip, interface=ip.interface + offset) for ip in ours.ips)
    return Result(
        interfaces=previous.interfaces + ours.interfaces,
        ips=previous.ips + moved,
        routes=previous.routes + ours.routes,
        dns=ours.dns or previous.dns,
    )
