"""A store that is damaged: put aside, and made anew from what the kernel knows of the pods.

The links in the pods carry their attachments' names, so most of it comes back: records good enough for CHECK, DEL and
GC, and the leases. What is lost: pods' names, sticky addresses, cooldowns, reservations of conflicts, delegates.

What pods have whose names cannot be told (a pod in a namespace that cannot be seen from here, known only by its host
route) is held by the network `RECOVERED`: all networks on the same parent avoid it. A DEL whose prevResult names such an
address frees it, `shimlanctl gc` does when nothing of the pod is left, and so does a reboot.
"""

from __future__ import annotations

import os
from contextlib import suppress

from cni import nftables, shim, survey
from cni.attachment import (
    PROTO_BOOT,
    PROTO_SHIMLAN,
    SHIM_SYSCTLS,
    Attachment,
    Key,
    Leasing,
    SourceNat,
    View,
    shim_link,
    shim_name,
)
from cni.database import COMPANIONS, Database, boot_id, put_aside
from cni.errors import CniError, KernelRefused
from cni.frozen import frozen, replace
from cni.node import Node
from cni.state import Records
from ipam.config import IpamConf
from ipam.store import RECOVERED, LeaseStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from ipaddress import IPv4Address, IPv6Address

    from cni.log import Log
    from cni.survey import Sighting

    Address = IPv4Address | IPv6Address

WORKSHOP = "rebuild"  # directory below dataDir in which the new store is made
COOLDOWN_SECONDS = IpamConf.cooldown_seconds  # the configuration's own value is not known here


@frozen
class Orphan:
    """An address that the host still leads to a pod, without anybody knowing which."""

    ip: Address
    shim: str
    parent: str


@frozen
class Report:
    """What `recover` did; `aside` is where the damaged store went, "" when somebody else had dealt with it."""

    aside: str = ""
    attachments: tuple[Attachment, ...] = ()
    nameless: tuple[Sighting, ...] = ()
    orphans: tuple[Orphan, ...] = ()


def recover(data_dir: str, log: Log, *, lease_dir: str = "", attachments: bool = True) -> Report:
    """Replace the store of a data directory if it is damaged; says so in the log, as an error.

    `lease_dir` is where the leases of its attachments are if elsewhere; `attachments` False is for a directory with
    leases only. One process does the work, alone: the others wait, and find it done. Raises IOFailure, TryAgainLater.
    """
    node = Node(data_dir, log)
    reports: list[Report] = []

    def successor() -> str:
        log.error(f"the store in {data_dir} is damaged: rebuilding it from what the kernel knows of the pods")
        report = _observe(node, lease_dir or data_dir)
        reports.append(report)
        return _build(node, report if attachments else replace(report, attachments=()), report, lease_dir)

    with node.locks.everything():
        aside = put_aside(data_dir, successor)
    if not aside:
        return Report()
    report = replace(reports[0], aside=aside)
    _tell(log, report)
    _restore_source_nat(node, report)
    return report
