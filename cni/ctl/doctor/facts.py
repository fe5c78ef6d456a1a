"""What doctor goes by: the configuration, and what was found out about the host, the LAN and the data directory.

Values only. How they are found out is told by `configuration`, `host`, `lan` and `state`, what they mean by `checks`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cni.ethtool import Forwarding

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from cni.attachment import Parent
    from cni.config import NetConf
    from ipam.allocate import Usage

    Address = IPv4Address | IPv6Address

NO_FORWARDING = Forwarding()


@dataclass(frozen=True)
class NetworkFile:
    """A conf or conflist: its name, the types of its plugins, and why it cannot be read, if it cannot."""

    name: str
    types: tuple[str, ...] = ()
    unreadable: str = ""


@dataclass(frozen=True)
class Configuration:
    """The network to look at; `conf` has defaults where there is none, or where it is wrong."""

    conf: NetConf
    path: str = ""  # "": there is none
    directory: str = ""  # where runtimes look
    problems: tuple[str, ...] = ()
    types: tuple[str, ...] = ()  # of its chain
    before: tuple[NetworkFile, ...] = ()  # files that a runtime finds before it
    expected: bool = True  # somebody has asked for a configuration, or wants one to be there


@dataclass(frozen=True)
class Kernel:
    """Which kinds of links it makes, and why source NAT does not work, if it does not."""

    kinds: dict[str, bool]
    no_source_nat: str = ""


@dataclass(frozen=True)
class ParentState:
    """The link that is to carry the pods; `refusal` says why there is none."""

    parent: Parent | None = None
    refusal: str = ""
    carrier: bool = True
    promiscuity: int = 0  # how many want it to receive everything
    macs: int = 0  # that it receives for besides its own
    foreign_shim: str = ""  # a link that has the shim's name and is none
    unmade: str = ""  # the VLAN device that will be the parent; until then it is the link below
    forwarding: Forwarding = NO_FORWARDING  # in hardware
    obstacle: str = ""  # why that cannot be had
    in_software: int = 0  # children that the NIC does not have in its own hands, but for the shim


@dataclass(frozen=True)
class Reached:
    """The addresses of the host that pods reach; `refusal` says why an ADD would not have them."""

    addresses: tuple[Address, ...] = ()
    refusal: str = ""


@dataclass(frozen=True)
class Sysctls:
    """Settings of the kernel, "" where it has none; `locked`: why new links' settings cannot be changed."""

    parent: dict[str, str]  # ARP and reverse path, the larger of `all` and the parent's, as the kernel counts them
    forwarding: dict[int, bool]  # by IP version
    locked: str = ""


@dataclass(frozen=True)
class Manager:
    """A program that configures networks by itself: whether it runs here, and what makes it touch or spare shims."""

    name: str
    running: bool  # as far as processes show
    spared_by: str = ""  # where it is told to leave them alone
    taken_by: str = ""  # where it is told to manage them
    takes_by_itself: bool = False  # without being told
    hidden: bool = False  # it may run where we do not see it


@dataclass(frozen=True)
class ServiceProxy:
    """What of kube-proxy can be seen: its mode, "" for nothing, and whether it was told strictARP."""

    mode: str = ""
    strict_arp: bool = False


@dataclass(frozen=True)
class Stranger:
    """An attempt to speak on the LAN from a MAC that is not the NIC's; `refusal` says why no child can be made."""

    refusal: str = ""
    asked: str = ""  # somebody who answers the host; "": nobody is known
    answered: bool = False
    old_names: bool = False  # a new link's name is looked up in the host's namespace


@dataclass(frozen=True)
class Lan:
    """What the LAN said."""

    stranger: Stranger
    dead_gateways: tuple[str, ...] = ()  # that pods need, and that do not answer the host either
    asked_addresses: int = 0
    free_addresses: int = 0
    conflicts: tuple[tuple[str, str], ...] = ()  # address and MAC


@dataclass(frozen=True)
class Store:
    """The file with records and leases; `unusable`, `damage` and `busy` say why it cannot be written or read."""

    path: str
    exists: bool = False
    unusable: str = ""
    damage: str = ""
    busy: str = ""
    schema: int = 0
    known_schema: int = 0
    held: frozenset[Address] = field(default_factory=frozenset)
    usages: tuple[tuple[Usage, ...], ...] = ()  # of each pool of the network, its ranges


@dataclass(frozen=True)
class Agent:
    """The agent: nobody's socket, one that serves, or one that does not, and then why."""

    socket: str
    exists: bool = False
    trouble: str = ""


@dataclass(frozen=True)
class Executables:
    """What runtimes would execute, from the directories that they look into."""

    directories: tuple[str, ...]
    plugin: str = ""  # "": there is none
    is_client: bool = False
    fallback: str = ""  # the in-process plugin that the client runs without an agent
    missing: tuple[str, ...] = ()  # other plugins that the configuration names
