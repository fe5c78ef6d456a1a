"""`shimlanctl pool`: how full the pools are, who has which address, and taking one back by hand."""

from __future__ import annotations

import argparse
import json
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from cni import survey
from cni.attachment import Key
from cni.ctl import status, tables
from cni.ctl.store import add_output, add_state_dir, nothing_in, open_existing
from cni.errors import CniError
from cni.node import Node
from ipam.ledger import Lease
from ipam.store import RECOVERED

Address = IPv4Address | IPv6Address

EXAMPLES = """examples:
  shimlanctl pool usage
  shimlanctl pool leases --network lan -o json
  shimlanctl pool release 192.168.1.77 --network lan
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `pool`."""
    parser.epilog = EXAMPLES
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    usage = actions.add_parser("usage", help="how many addresses of each range are in use")
    usage.set_defaults(act=_usage)
    leases = actions.add_parser("leases", help="who has which address")
    leases.set_defaults(act=_leases)
    for each in (usage, leases):
        each.add_argument("--network", metavar="NAME", default="", help="only this network")
        add_output(each)
    release = actions.add_parser("release", help="make one address available again")
    release.set_defaults(act=_release)
    release.add_argument("address", metavar="ADDRESS", type=ip_address)
    release.add_argument("--network", metavar="NAME", required=True, help="the network that leased it")
    release.add_argument("--yes", action="store_true", help="do not ask")
    release.add_argument("--force", action="store_true", help="even when a pod uses it: it may be given away twice")
    for each in (usage, leases, release):
        add_state_dir(each)


def run(args: argparse.Namespace) -> int:
    """Do the chosen action."""
    status_code: int = args.act(args)
    return status_code


def _usage(args: argparse.Namespace) -> int:
    node = open_existing(args.state_dir)
    rows = [status.pool(use) for use in node.leases(args.state_dir).ranges(args.network)] if node else []
    _print(args, rows, status.pools_text(rows) if node else [nothing_in(args.state_dir)])
    return 0


def _leases(args: argparse.Namespace) -> int:
    node = open_existing(args.state_dir)
    rows = [_row(lease) for lease in node.leases(args.state_dir).leases(args.network)] if node else []
    _print(args, rows, _leases_text(rows) if node else [nothing_in(args.state_dir)])
    return 0


def _row(lease: Lease) -> dict[str, Any]:
    return {
        "network": lease.network,
        "address": str(lease.address),
        "containerID": lease.container_id,
        "ifname": lease.ifname,
        "state": lease.state,
        "pod": lease.pod,
    }


def _leases_text(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["no leases"]
    return tables.table([name.upper() for name in rows[0]], (list(row.values()) for row in rows))


def _print(args: argparse.Namespace, rows: list[dict[str, Any]], text: list[str]) -> None:
    print(json.dumps(rows, indent=2) if args.output == "json" else "\n".join(text).rstrip())


# --- release -----------------------------------------------------------------------------------------------------


def _release(args: argparse.Namespace) -> int:
    node = open_existing(args.state_dir)
    if node is None:
        raise CniError(nothing_in(args.state_dir))
    lease = _lease(node, args.network, args.address)
    print(_describe(lease))
    alive = _life(node, lease)
    print(alive or _absence(node, lease))
    if alive and not args.force:
        raise CniError(f"{lease.address} is in use: delete the pod, or --force if you are sure that this is wrong")
    if not args.yes and not _confirmed(lease):
        raise CniError("nothing was released")
    with node.locks.attachment(_key(lease)):
        if _lease(node, args.network, args.address) != lease:
            raise CniError(f"{lease.address} has changed hands meanwhile: nothing was released")
        node.leases(node.data_dir).free(lease.network, lease.address)
    print(f"released {lease.address}")
    return 0


def _lease(node: Node, network: str, address: Address) -> Lease:
    found = [lease for lease in node.leases(node.data_dir).leases(network) if lease.address == address]
    if not found:
        raise CniError(f"{address} is free in network {network}: see `shimlanctl pool leases` for what is not")
    return found[0]


def _describe(lease: Lease) -> str:
    holder = f"{lease.ifname} of container {lease.container_id}" + (f", pod {lease.pod}" if lease.pod else "")
    what = {
        "held": f"held by {holder}",
        "cooling": f"cooling down, last held by {holder}",
        "conflict": "set aside: another machine on the LAN used it",
    }
    return f"{lease.address} in network {lease.network}: {what[lease.state]}"


def _life(node: Node, lease: Lease) -> str:
    """What shows that a pod uses the address now; "" for nothing."""
    if lease.state != "held":
        return ""
    seen = survey.sightings(node)
    for sighting in seen:
        if lease.address in sighting.ips or sighting.key == _key(lease):
            return f"alive: {sighting.link.name} in {sighting.netns}"
    if lease.address in survey.living_addresses(node, seen):
        return "alive: a child of the parent has its MAC, in a namespace that cannot be seen from here"
    attachment = node.records.find(_key(lease))
    standing = survey.standing(attachment, closely=True) if attachment else None
    return f"perhaps alive: {standing.reason}" if standing and standing.state == survey.UNCLEAR else ""


def _absence(node: Node, lease: Lease) -> str:
    if lease.state != "held":
        return "no pod uses it"
    if node.records.find(_key(lease)):
        return "its attachment is recorded, but no link has the address any more; `shimlanctl gc` may clear the rest"
    if lease.parent or lease.network == RECOVERED:
        return "no attachment is recorded for it, and no link has the address"
    return "another plugin leased it by shimlan-ipam: whether its container still exists cannot be told"


def _confirmed(lease: Lease) -> bool:
    if not sys.stdin.isatty():
        raise CniError("not on a terminal: say --yes to release it")
    return input(f"release {lease.address}? [y/N] ").strip().lower() in ("y", "yes")


def _key(lease: Lease) -> Key:
    return Key(lease.network, lease.container_id, lease.ifname)
