"""What a plugin can leave behind, in a form that can be compared: in a namespace, in its settings, in the store."""

from __future__ import annotations

import glob
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cni.attachment import Attachment
from cni.ctl.lab import Lab, Node
from cni.ctl.node import Rows
from cni.database import Database, boot_id
from cni.state import Records
from ipam.ledger import Lease
from ipam.store import LeaseStore

# What changes by itself: the kernel finishes its duplicate address detection, and counts who looks at a link.
VOLATILE = frozenset({"tentative", "promiscuity", "allmulti", "stats", "stats64", "used", "confirmed", "updated"})
SYSCTLS = ("ipv?/conf/{}/*", "ipv?/neigh/{}/*")
SHARED_SYSCTLS = ("ipv4/*", "ipv6/*")


def network(node: Node) -> dict[str, Any]:
    """Links with addresses, routes and rules of both families, permanent neighbours and nftables of a namespace."""
    return {
        "links": _steady(node.ip_json("-d", "address")),
        "routes": _routes(node, "-4") + _routes(node, "-6"),
        "rules": node.ip_json("rule") + node.ip_json("-6", "rule"),
        "neighbours": _steady(node.ip_json("neigh", "show", "nud", "permanent")),
        "nftables": node.run("nft", "list", "ruleset", check=False).stdout,
    }


def _routes(node: Node, family: str) -> Rows:
    # For its own IPv6 addresses the kernel makes routes from a work queue, at a time of its choice.
    rows = node.ip_json(family, "route", "show", "table", "all")
    return [
        row
        for row in _steady(rows)
        if not (family == "-6" and row.get("table") == "local") and not str(row["dst"]).startswith("fe80")
    ]


def _steady(rows: Rows) -> Rows:
    return [
        {key: _steady(value) if key == "addr_info" else value for key, value in row.items() if key not in VOLATILE}
        for row in rows
    ]


def sysctls(node: Node, *links: str) -> dict[str, str]:
    """Every network sysctl of some links, of `all` and `default`, and of the namespace as a whole."""
    patterns = [pattern.format(link) for link in ("all", "default", *links) for pattern in SYSCTLS]

    def read() -> dict[str, str]:
        found = (glob.glob(f"/proc/sys/net/{pattern}") for pattern in (*patterns, *SHARED_SYSCTLS))
        return {path: _value(Path(path)) for paths in found for path in paths}

    return node.inside(read)


def _value(path: Path) -> str:
    try:
        return path.read_text() if path.is_file() else ""
    except OSError as error:  # stable_secret before it is set, and what can only be written
        return type(error).__name__


def records(lab: Lab, boot: str = "") -> list[Attachment]:
    """The attachments that are on record in a lab's data directory."""
    return _read(lab, lambda database: Records(database, boot or boot_id()).all())


def held(lab: Lab) -> list[Lease]:
    """The leases that somebody holds."""
    return [lease for lease in _read(lab, lambda database: LeaseStore(database).leases()) if lease.state == "held"]


def stored(lab: Lab) -> list[object]:
    """All that the store holds for somebody: records and leases."""
    return [*records(lab), *held(lab)]


def _read(lab: Lab, question: Callable[[Database], list[Any]]) -> list[Any]:
    database = Database(lab.data_dir)
    try:
        return question(database)
    finally:
        database.close()
