"""The `ipam` section of a network configuration, as frozen dataclasses."""

from __future__ import annotations

from cni.frozen import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    Address = IPv4Address | IPv6Address
    Network = IPv4Network | IPv6Network

DEFAULT_DATA_DIR = "/var/lib/cni/shimlan"


@frozen
class Range:
    """Addresses `start`..`end` (both included) of `subnet`; `gateway` is never handed out."""

    subnet: Network
    start: Address
    end: Address
    gateway: Address


@frozen
class Reservation:
    """Addresses kept for one pod ("namespace/name") or for one MAC; exactly one of the two is set."""

    ips: tuple[Address, ...]
    pod: str = ""
    mac: str = ""


@frozen
class IpamRoute:
    """A route of the pod; `gw` None means the gateway of the pod's address of the same family."""

    dst: Network
    gw: Address | None = None
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int = 0
    scope: int | None = None


@frozen
class IpamConf:
    """What `shimlan-ipam` is asked to do. Each entry of `pools` gives the pod one address."""

    network: str
    pools: tuple[tuple[Range, ...], ...]
    requested: tuple[Address, ...] = ()
    exclude: tuple[Network, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    sticky: str = "none"
    cooldown_seconds: int = 60
    routes: tuple[IpamRoute, ...] = ()
    resolv_conf: str = ""
    data_dir: str = DEFAULT_DATA_DIR
