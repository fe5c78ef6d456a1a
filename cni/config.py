"""Network configuration: JSON to frozen dataclasses, every problem reported with its path.

Pure: nothing here looks at the host. `schema.json` beside this file says the same to other programs; a test holds the
two together.
"""

from __future__ import annotations

from cni.frozen import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
    from typing import Any

    from ipam.config import IpamConf

    Address = IPv4Address | IPv6Address
    Network = IPv4Network | IPv6Network


@frozen
class ShimConf:
    """The host side. `required`: the shim was asked for explicitly, so it is an error where it does not apply."""

    enabled: bool = True
    required: bool = False
    host_addresses: tuple[Address, ...] = ()  # those given by hand, in their order
    auto_addresses: bool = True  # "auto" was among hostAddresses
    routes: tuple[Network, ...] = ()
    snat: bool = True


@frozen
class ConflictDetection:
    """How to probe an address before it is used."""

    timeout_ms: int = 100
    retries: int = 2


@frozen
class NetConf:
    """One network configuration of type shimlan, checked. Zero, "" and None mean "not given"."""

    cni_version: str
    name: str
    raw: dict[str, Any]  # the configuration as it came, for delegates
    master: str = ""
    link_in_container: bool = False
    mode: str = "bridge"
    mtu: int = 0
    mac: str = ""  # the one to use, whatever source won; normalised to lower case with colons
    mac_policy: str = "ip"
    bcqueuelen: int | None = None
    bclim: int | None = None
    shim: ShimConf = ShimConf()
    announce: bool = True
    detect_conflicts: ConflictDetection | None = None
    data_dir: str = ""
    log_level: str = "info"
    log_file: str = ""
    status_reports_exhaustion: bool = False
    dns: dict[str, Any] | None = None
    ipam: IpamConf | None = None  # ipam.type is shimlan-ipam
    delegate: str = ""  # any other ipam.type
    pod: str = ""  # "namespace/name" from CNI_ARGS
    prev_result: dict[str, Any] | None = None
    valid_attachments: tuple[tuple[str, str], ...] | None = None  # GC: (containerID, ifname)s; None: no such key
