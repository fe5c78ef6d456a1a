"""The kernel's refusals in words that say what to do. Pure.

macvlan gives a number and no text (drivers/net/macvlan.c); what the numbers mean in its case was measured.
"""

from __future__ import annotations

import errno

from cni.diff import AddLink
from cni.errors import KernelRefused, ParentUnusable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.attachment import Link
    from cni.diff import Change
    from cni.netlink import NetlinkError


def explained(change: Change, error: NetlinkError) -> KernelRefused | ParentUnusable:
    """The error to raise for a change that the kernel refused."""
    code = error.errno
    if isinstance(change, AddLink) and (reason := _refused_link(change.link, code)):
        return ParentUnusable(reason, f"{change}: {error.strerror}")
    unreachable = "the gateway is in no subnet of the pod: correct ipam.routes or the gateway of the range"
    reason = {
        errno.EPERM: "run it as root (CAP_NET_ADMIN in the namespaces concerned)",
        errno.EADDRINUSE: "another link on the same parent has this MAC: choose another, or macPolicy random",
        errno.ENETUNREACH: unreachable,
        errno.EHOSTUNREACH: unreachable,
    }.get(code or 0, "")
    return KernelRefused(f"{change}: {error.strerror}" + (f"; {reason}" if reason else ""))


def _refused_link(link: Link, code: int | None) -> str:
    parent = link.parent
    of_vlan = {
        errno.EEXIST: f"{parent} has VLAN {link.vlan} already, under another name (`ip -d link show type vlan`): "
        'set "master" to that, and leave out "vlan"',
        errno.EOPNOTSUPP: f"{parent} takes no VLANs, or this kernel has none: `modprobe 8021q`",
    }
    if link.vlan and code in of_vlan:
        return of_vlan[code]
    return {
        errno.EBUSY: f"{parent} is used by a bridge, bond, Open vSwitch or ipvlan: use that device as master instead",
        errno.EINVAL: f"{parent} refuses another child: one in mode passthru excludes all others, the shim included",
        errno.ENODEV: f"{parent} is gone: is the NIC still there?",
        errno.EADDRNOTAVAIL: f"{link.mac} is no unicast MAC",
        errno.EOPNOTSUPP: f"this kernel has no {link.kind}: load it with `modprobe {link.kind}`",
        errno.EPERM: "creating links needs root (CAP_NET_ADMIN in the host's and the pod's namespace)",
    }.get(code or 0, "")
