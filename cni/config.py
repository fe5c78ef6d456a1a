"""Network configuration: JSON to frozen dataclasses, every problem reported with its path.

Pure: nothing here looks at the host. The functions read like the table of keys in the README; `schema.json` beside this
file says the same to other programs, and a test holds the two together. Where null and, for names, addresses and paths,
"" are given, the key counts as absent. Unknown keys are left alone, as the spec asks.
"""

from __future__ import annotations

import ipam.config
from cni.frozen import frozen, replace
from cni.section import Section, checked, open_sources
from cni.values import (
    Unfit,
    absolute_path,
    address,
    boolean,
    file_name,
    integer,
    interface_name,
    mac,
    mapping,
    mtu,
    network_name,
    network_or_address,
    one_of,
    show,
    string,
)
from ipam.config import DEFAULT_DATA_DIR, ESSENTIAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
    from typing import Any

    from cni.section import Problem, Sources
    from ipam.config import IpamConf

    Address = IPv4Address | IPv6Address
    Network = IPv4Network | IPv6Network

MODE = one_of("bridge", "private", "vepa", "passthru", "source")
LINK_TYPE = one_of("macvlan", "macvtap")
OFFLOAD = one_of("auto", "on", "off")
# In which a NIC can tell children apart by their MAC (macvlan_supports_dest_filter in include/linux/if_macvlan.h).
OFFLOADED_MODES = ("bridge", "private", "vepa")
MAC_POLICY = one_of("ip", "pod", "random")
LOG_LEVEL = one_of("error", "warning", "warn", "info", "debug")
BCQUEUELEN = integer(1, 2**32 - 1)
BCLIM = integer(-1, 2**31 - 1)
PROBE_TIMEOUT_MS = integer(1, 10_000)
PROBE_RETRIES = integer(1, 10)
VLAN = integer(0, 4094)


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

    name: str
    raw: dict[str, Any]  # the configuration as it came, for delegates
    master: str = ""
    link_in_container: bool = False
    mode: str = "bridge"
    source_macs: tuple[str, ...] = ()  # mode source: those that are listened to; sorted
    link_type: str = "macvlan"
    vlan: int = 0  # the parent is this VLAN of the master; 0: the master itself
    mtu: int = 0
    mac: str = ""  # the one to use, whatever source won; normalised to lower case with colons
    mac_policy: str = "ip"
    bcqueuelen: int | None = None
    bclim: int | None = None
    shim: ShimConf = ShimConf()
    offload: str = "auto"  # "off" also where no NIC could do it
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


def parse(raw: object, environ_args: Mapping[str, str]) -> NetConf:
    """The network configuration; raises InvalidConfig that lists every problem.

    `raw` is the decoded standard input, whatever it may be; `environ_args` the parsed CNI_ARGS. Whether we speak its
    cniVersion is not looked at.
    """
    return checked(open_sources(raw, environ_args), _netconf)


def parse_for_delete(raw: object, environ_args: Mapping[str, str]) -> NetConf:
    """Like `parse`, but fails only without a usable name and dataDir; what else is wrong is left at its default.

    DEL has to work with a configuration that was changed, for the worse, since ADD.
    """
    return checked(open_sources(raw, environ_args), _netconf, essential=ESSENTIAL)


def for_call(conf: NetConf, raw: dict[str, Any], environ_args: Mapping[str, str]) -> NetConf:
    """A configuration that was parsed for one call, for another one: of another pod, with another prevResult.

    Nothing else in `raw` or CNI_ARGS may differ, and a prevResult must be an object.
    """
    pod = _pod(Section(environ_args, (), []))
    return replace(conf, raw=raw, pod=pod, prev_result=raw.get("prevResult"))


def check(raw: object) -> list[Problem]:
    """Every problem of a configuration, as `parse` would report them."""
    sources = open_sources(raw, {})
    _netconf(sources)
    return sources.problems


def _netconf(sources: Sources) -> NetConf:
    conf = sources.conf
    _check_for_libcni(conf)
    mode = conf.text("mode", MODE, "bridge")
    link_in_container = conf.read("linkInContainer", boolean, False)
    log_level = conf.read("logLevel", LOG_LEVEL, "info")
    without_ipam = NetConf(
        name=conf.required("name", network_name) or "",
        raw=dict(conf.values),
        master=conf.text("master", _master, ""),
        link_in_container=link_in_container,
        mode=mode,
        source_macs=_source_macs(conf, mode),
        link_type=conf.read("linkType", LINK_TYPE, "macvlan"),
        vlan=_vlan(conf, link_in_container),
        mtu=conf.read("mtu", mtu, 0),
        mac=_mac(sources),
        mac_policy=conf.read("macPolicy", MAC_POLICY, "ip"),
        bcqueuelen=conf.read("bcqueuelen", _bcqueuelen, None),
        bclim=conf.read("bclim", BCLIM, None),
        shim=_shim(conf, applies=mode == "bridge" and not link_in_container),
        offload=_offload(conf, applies=mode in OFFLOADED_MODES and not link_in_container),
        announce=conf.read("announce", boolean, True),
        detect_conflicts=_detect_conflicts(conf),
        data_dir=conf.text("dataDir", absolute_path, ""),
        log_level="warning" if log_level == "warn" else log_level,
        log_file=conf.text("logFile", string, ""),
        status_reports_exhaustion=conf.read("statusReportsExhaustion", boolean, False),
        dns=_dns(conf),
        pod=_pod(sources.environ),
        prev_result=conf.read("prevResult", mapping, None),
        valid_attachments=_valid_attachments(conf),
    )
    return _with_ipam(without_ipam, sources)


def _with_ipam(conf: NetConf, sources: Sources) -> NetConf:
    """The configuration with its way to get addresses: our own, a delegate, or none (layer 2 only)."""
    section = sources.conf.section("ipam")
    kind = section.text("type", file_name, "")
    data_dir = conf.data_dir or DEFAULT_DATA_DIR
    if kind != ipam.config.TYPE:
        return replace(conf, delegate=kind, data_dir=data_dir)
    own = ipam.config.read(section, sources, conf.name, data_dir)
    return replace(conf, ipam=own, data_dir=conf.data_dir or own.data_dir)


def _check_for_libcni(conf: Section) -> None:
    """`cniVersion`, `type` and `capabilities` are for others to use; here only their kind is checked."""
    conf.read("cniVersion", string, "")
    conf.read("type", string, "")
    capabilities = conf.section("capabilities")
    for name in capabilities:
        capabilities.read(name, boolean, False)


def _master(value: object) -> str:
    """The parent's name; "auto" says the same as no name at all: the interface of the default route."""
    return "" if value == "auto" else interface_name(value)


def _source_macs(conf: Section, mode: str) -> tuple[str, ...]:
    macs = tuple(sorted(set(conf.each("sourceMacs", mac))))
    if macs and mode != "source":
        conf.problem("sourceMacs", f'only has a meaning with "mode": "source", not {mode}')
    return macs


def _vlan(conf: Section, link_in_container: bool) -> int:
    vlan = conf.read("vlan", VLAN, 0)
    if vlan and link_in_container:
        conf.problem(
            "vlan",
            "is only made on the host; with linkInContainer have the plugin vlan make it in the container, "
            'and name it as "master"',
        )
    return vlan


def _mac(sources: Sources) -> str:
    """The MAC that was asked for; all sources are checked, the most specific one wins."""
    asked = (
        sources.runtime.text("mac", mac, ""),
        sources.cni_args.text("mac", mac, ""),
        sources.environ.text("MAC", mac, ""),
        sources.conf.text("mac", mac, ""),
    )
    return next(filter(None, asked), "")


def _bcqueuelen(value: object) -> int:
    if value == 0 and not isinstance(value, (bool, float)):
        raise Unfit(
            "0 would deliver no broadcast at all, not even ARP; leave the key out for the kernel's default of 1000"
        )
    return BCQUEUELEN(value)


def _shim(conf: Section, applies: bool) -> ShimConf:
    """What `shim` asks for; asked for explicitly where no shim can work, it is a problem."""
    value = conf.values.get("shim")
    if value is None:
        return ShimConf(enabled=applies)
    if isinstance(value, dict):
        shim = _shim_options(conf.section("shim"))
    else:
        enabled = conf.read("shim", _switch, False)
        shim = ShimConf(enabled=enabled, required=enabled)
    if shim.required and not applies:
        conf.problem("shim", 'a shim only works with mode bridge and a master on the host; use "shim": false')
    return shim


def _offload(conf: Section, applies: bool) -> str:
    """What `offload` asks for, "off" where no NIC could do it; asked for explicitly there, it is a problem."""
    offload = conf.read("offload", OFFLOAD, "auto")
    if offload == "on" and not applies:
        conf.problem("offload", '"on" needs mode bridge, private or vepa, and a master on the host; use "auto"')
    return offload if applies else "off"


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise Unfit(f"must be true, false or an object, not {show(value)}")
    return value


def _shim_options(shim: Section) -> ShimConf:
    hosts = shim.each("hostAddresses", _host_address, needed=shim.has("hostAddresses")) or ("auto",)
    return ShimConf(
        required=True,
        host_addresses=tuple(host for host in hosts if not isinstance(host, str)),
        auto_addresses="auto" in hosts,
        routes=shim.each("routes", network_or_address),
        snat=shim.read("snat", boolean, True),
    )


def _host_address(value: object) -> Address | str:
    return "auto" if value == "auto" else address(value)


def _detect_conflicts(conf: Section) -> ConflictDetection | None:
    value = conf.values.get("detectConflicts")
    if isinstance(value, dict):
        section = conf.section("detectConflicts")
        return ConflictDetection(
            timeout_ms=section.read("timeoutMs", PROBE_TIMEOUT_MS, 100),
            retries=section.read("retries", PROBE_RETRIES, 2),
        )
    return ConflictDetection() if conf.read("detectConflicts", _switch, False) else None


def _dns(conf: Section) -> dict[str, Any] | None:
    """The `dns` of the result, passed on as it came."""
    dns = conf.section("dns")
    dns.read("domain", string, "")
    for key in ("nameservers", "search", "options"):
        dns.each(key, string)
    return dict(dns.values) if conf.has("dns") else None


def _pod(environ: Section) -> str:
    """The pod's "namespace/name", which Kubernetes runtimes tell."""
    namespace = environ.read("K8S_POD_NAMESPACE", string, "")
    name = environ.read("K8S_POD_NAME", string, "")
    return f"{namespace}/{name}" if namespace and name else ""


def _valid_attachments(conf: Section) -> tuple[tuple[str, str], ...] | None:
    """GC's list. Both keys mean the same; null means that no attachment is valid. None where the list is unusable."""
    key = next((key for key in ("cni.dev/valid-attachments", "cni.dev/attachments") if key in conf.values), None)
    if key is None:
        return None
    before = len(conf.problems)
    entries = conf.items(key)
    attachments = tuple(_attachment(entries.section(index)) for index in entries)
    # Half a list would make GC remove what the other half was to keep.
    return attachments if len(conf.problems) == before else None


def _attachment(entry: Section) -> tuple[str, str]:
    return entry.required("containerID", string) or "", entry.required("ifname", string) or ""
