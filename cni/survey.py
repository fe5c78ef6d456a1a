"""What can be seen from here of all pods: their network namespaces, and our links in them.

For those who cannot rely on the records alone: the rebuilding of a store, the clean-up, the operator's CLI. Nothing is
changed here. A namespace can be seen if it is mounted somewhere in our mount namespace, or if a process that we see
lives in it.
"""

from __future__ import annotations

import os
import re
from contextlib import closing, suppress

from cni import netns, offload
from cni.attachment import PROTO_SHIMLAN, Key, View
from cni.errors import CniError
from cni.frozen import frozen
from cni.kernel import Namespace
from cni.shim import is_shim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from ipaddress import IPv4Address, IPv6Address

    from cni.attachment import Attachment, Link
    from cni.node import Node

    Address = IPv4Address | IPv6Address

MOUNTS = "/proc/self/mountinfo"
NAMED = "/run/netns"
ALIAS = "shimlan "
LONGEST_ALIAS = 255  # then it may have been cut off

INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h

PRESENT, GONE, UNCLEAR = "present", "gone", "unclear"


@frozen
class Sighting:
    """One of our links with what belongs to it; `key` is None when its alias does not tell whose it is."""

    netns: str
    netns_id: str
    netns_cookie: int
    key: Key | None
    link: Link
    view: View
    parent: str
    parent_in_pod: bool

    @property
    def ips(self) -> tuple[Address, ...]:
        """The link's addresses."""
        return tuple(address.ip for address in self.view.addresses)


@frozen
class Standing:
    """Whether the namespace of an attachment is still there, and why that is believed."""

    state: str
    reason: str = ""


def standing(attachment: Attachment, closely: bool = False) -> Standing:
    """Whether the namespace of an attachment exists, as seen from here; a path alone may be another one's by now.

    `closely`: also tell it from a later one of the same path that got its inode number, which means to enter it.
    """
    path = attachment.netns
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
        return _gone_unless(_hidden(path), f"{path} does not exist")
    except OSError as error:
        return Standing(UNCLEAR, f"{path}: {error.strerror}")
    if netns.identity_of(status) == attachment.netns_id and not (closely and _is_another(attachment)):
        return Standing(PRESENT)
    if status.st_dev == os.stat(netns.OWN).st_dev:
        return Standing(GONE, f"{path} is another namespace by now")
    return _gone_unless(_hidden(path), f"{path} is no namespace any more")


def _is_another(attachment: Attachment) -> bool:
    """Whether the namespace at the path of an attachment has another cookie; not if that cannot be told."""
    if not attachment.netns_cookie:
        return False
    try:
        fd = netns.open_netns(attachment.netns)
        try:
            with closing(Namespace(fd)) as namespace:
                return namespace.cookie() != attachment.netns_cookie
        finally:
            os.close(fd)
    except CniError:
        return False


def _gone_unless(doubt: str, reason: str) -> Standing:
    return Standing(UNCLEAR, doubt) if doubt else Standing(GONE, reason)


def _hidden(path: str) -> str:
    """Why a namespace that is not here may be elsewhere; "" when there is no reason to think so.

    A container may see neither the directory in which the runtime keeps namespaces, nor what is mounted there later,
    nor the host's processes.
    """
    if path.startswith("/proc/"):
        return "" if sees_all_processes() else f"{path} does not exist here, nor do all processes of the host"
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        return f"there is no {directory} here"
    if _is_among_the_hosts_mounts() or receives_mounts(_mountinfo(), os.path.realpath(directory)):
        return ""
    return f"what the host mounts in {directory} does not show here: mount it with propagation (HostToContainer)"


def sees_all_processes() -> bool:
    """Whether all processes of the host show here, and not a container's alone."""
    return os.stat("/proc/self/ns/pid").st_ino == INITIAL_PID_NAMESPACE


def _is_among_the_hosts_mounts() -> bool:
    """Whether our mount namespace is that of the host's init, and so that of the runtime as well."""
    with suppress(OSError):
        return sees_all_processes() and os.path.samefile("/proc/self/ns/mnt", "/proc/1/ns/mnt")
    return False


def receives_mounts(mounts: Iterable[list[str]], directory: str) -> bool:
    """Whether a mount made in a directory by others would show here; `mounts` are the fields of mountinfo.

    It does where the mount below is shared with others or a slave of theirs (mount_namespaces(7)).
    """
    receives, longest = False, 0
    for fields in mounts:
        point = _unescaped(fields[4]).rstrip("/")
        if f"{directory}/".startswith(f"{point}/") and len(point) >= longest:
            peers = fields[6 : fields.index("-")]
            receives, longest = any(peer.startswith(("shared:", "master:")) for peer in peers), len(point)
    return receives


def sightings(node: Node) -> list[Sighting]:
    """Every link of ours whose parent is in this namespace, or in its own; namespaces that refuse are left out."""
    home = os.open(netns.OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [sighting for path in namespaces().values() for sighting in _sightings_in(node, path, home)]
    finally:
        os.close(home)


def host_entries(node: Node) -> Iterator[tuple[Link, Address, str]]:
    """What the host has of pods: the shim, the pod's address, its MAC ("" when only a route is left)."""
    for link in node.host.links():
        if is_shim(link):
            macs = {entry.ip: entry.mac for entry in node.host.neighbours(link.index)}
            routes = (route for route in node.host.routes(link.index) if route.protocol == PROTO_SHIMLAN)
            for ip in dict.fromkeys((*(route.dst.network_address for route in routes), *macs)):
                yield link, ip, macs.get(ip, "")


def unrecorded(node: Node, known: Iterable[Address]) -> dict[str, list[Address]]:
    """The addresses behind each shim that are not among those known."""
    ours = set(known)
    found: dict[str, list[Address]] = {}
    for link, ip, _ in host_entries(node):
        if ip not in ours:
            found.setdefault(link.name, []).append(ip)
    return found


def living_addresses(node: Node, seen: Iterable[Sighting]) -> set[Address]:
    """The addresses of links that exist: of those seen, and of those that only the parent of a shim knows of.

    A macvlan that is up has its parent receive for its MAC, whatever namespace it is in.
    """
    alive = {ip for sighting in seen for ip in sighting.ips}
    others = [(link.parent_index, ip, mac) for link, ip, mac in host_entries(node) if mac and ip not in alive]
    macs = {index: node.host.received_macs(index) for index, _, _ in others}
    behind = {ip for index, ip, mac in others if mac in macs[index] or offload.has_child(node, index, mac)}
    return behind | alive


def namespaces() -> dict[str, str]:
    """The network namespaces that can be seen, by identity; of several paths one that outlives the processes."""
    found: dict[str, str] = {}
    for path in (*_mounted(), *_named(), *_of_processes()):
        with suppress(OSError):
            found.setdefault(netns.identity_of(os.stat(path)), path)
    return found


def parse_alias(alias: str) -> Key | None:
    """The key in the alias of a link of ours (see `Key.alias`); None when there is none, or when it may be cut off."""
    parts = alias.removeprefix(ALIAS).split("/")
    if not alias.startswith(ALIAS) or len(parts) != 3 or len(alias) >= LONGEST_ALIAS:
        return None
    return Key(*parts)


def _sightings_in(node: Node, path: str, home: int) -> Iterator[Sighting]:
    try:
        with node.pod(path, own_allowed=True) as pod:
            own = pod.namespace.fd is not None and netns.is_own(pod.namespace.fd)
            for link, parent_here in pod.namespace.children_of(home):
                if link.kind in ("macvlan", "macvtap") and link.alias.startswith(ALIAS) and not is_shim(link):
                    inside, view = parent_here and not own, _view(pod.namespace, link)
                    parent = (pod.namespace if parent_here else node.host).link_at(link.parent_index)
                    name = parent.name if parent else ""
                    yield Sighting(*pod.netns, parse_alias(link.alias), link, view, name, inside)
    except (CniError, OSError) as error:
        node.log.debug(f"{path} is left out: {error}")


def _view(namespace: Namespace, link: Link) -> View:
    return View(
        link=link,
        addresses=tuple(address for _, address in namespace.addresses(link.index, permanent=True)),
        routes=tuple(namespace.routes(link.index)),
        neighbours=tuple(namespace.neighbours(link.index)),
    )


def _mounted() -> Iterator[str]:
    """Where namespaces are mounted."""
    return (_unescaped(fields[4]) for fields in _mountinfo() if fields[3].startswith("net:["))


def _mountinfo() -> Iterator[list[str]]:
    """The fields of each mount (proc(5)): ID, parent, device, root, mount point, options, peer groups, "-", ..."""
    with open(MOUNTS, encoding="utf-8", errors="surrogateescape") as mounts:
        yield from map(str.split, mounts)


def _unescaped(point: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)


def _named() -> Iterator[str]:
    with suppress(OSError):
        yield from (f"{NAMED}/{name}" for name in os.listdir(NAMED))


def _of_processes() -> Iterator[str]:
    yield from (f"/proc/{name}/ns/net" for name in os.listdir("/proc") if name.isdecimal())
