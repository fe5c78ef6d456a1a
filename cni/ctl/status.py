"""`shimlanctl status`: what is attached, what carries it, what is left of the pools, and what is wrong with any of it.

It compares records and kernel as CHECK does, and changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cni import commands, offload, survey
from cni.ctl import tables
from cni.ctl.store import add_output, add_state_dir, nothing_in, open_existing
from cni.errors import CniError
from cni.shim import is_shim

if TYPE_CHECKING:
    import argparse
    from ipaddress import IPv4Address, IPv6Address

    from cni.attachment import Attachment, Link
    from cni.node import Node
    from cni.state import Nic
    from ipam.ledger import RangeUse

    Address = IPv4Address | IPv6Address

Row = dict[str, Any]

OK = "ok"
HARDWARE, SOFTWARE = "hardware", "software"
SHIM_NAME = re.compile(r"shim\d+")
FULL = "no address left"
DIFFERS = "differs: "
ADVICE = (
    ("stale", "`shimlanctl gc` clears it"),
    ("unused", "`shimlanctl gc` removes it"),
    ("differs", "have the runtime recreate the pod"),
    ("down", "recreate one of its pods: that repairs it for all"),
    ("leads to", "`shimlanctl gc` removes what leads nowhere"),
    ("foreign", "rename it if pods on its parent get no network: shimlan needs the name"),
    (FULL, "widen the range, or see `shimlanctl pool leases` for who has them"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `status`."""
    add_state_dir(parser)
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Print the listing; 0 also when something in it is wrong."""
    node = open_existing(args.state_dir)
    listing = observe(node) if node else {"attachments": [], "shims": [], "nics": [], "pools": []}
    if args.output == "json":
        print(json.dumps(listing, indent=2))
    else:
        print("\n".join(as_text(listing)).rstrip() if node else nothing_in(args.state_dir))
    return 0


# --- what is there -----------------------------------------------------------------------------------------------


def observe(node: Node) -> dict[str, list[Row]]:
    """The listing: attachments, shims, NICs that can forward in hardware, pools."""
    recorded = node.records.all()
    nics = node.nics.switchable()
    forwarded = offload.children(node.host, nics, recorded)
    attachments = [
        _attachment(each, _state(node, each), _tap(node, each), _forwarded_by(forwarded.get(each.key)))
        for each in recorded
    ]
    attachments += [_attachment(old, "stale: of an earlier boot") for old in node.records.of_earlier_boots()]
    return {
        "attachments": sorted(attachments, key=lambda row: (row["network"], row["containerID"], row["ifname"])),
        "shims": list(_shims(node, [*recorded, *_elsewhere(node)])),
        "nics": list(_nics(node, nics, recorded)),
        "pools": [pool(use) for use in node.leases(node.data_dir).ranges()],
    }


def _attachment(attachment: Attachment, state: str, tap: int = 0, forwarded_by: str = SOFTWARE) -> Row:
    key, link, shim = attachment.key, attachment.sandbox.link, attachment.host.link
    return {
        "network": key.network,
        "containerID": key.container_id,
        "ifname": key.ifname,
        "pod": attachment.pod,
        "netns": attachment.netns,
        "parent": attachment.parent,
        "mode": link.mode if link else "",
        "mac": link.mac if link else "",
        "tap": tap,
        "ips": [str(address) for address in attachment.sandbox.addresses],
        "shim": shim.name if shim else "",
        "forwardedBy": forwarded_by,
        "state": state,
    }


def _forwarded_by(in_hardware: bool | None) -> str:
    """Who forwards for a pod; None where its NIC could not."""
    return HARDWARE if in_hardware else SOFTWARE


def _nics(node: Node, nics: Sequence[Nic], recorded: Sequence[Attachment]) -> Iterator[Row]:
    """The NICs that can forward in hardware."""
    for use in offload.usage(node.host, nics, recorded):
        yield {
            "name": use.parent,
            "offload": "on" if use.active else "off",
            "before": "on" if use.was_on else "off",
            "hardware": use.hardware,
            "software": use.software,
            "refused": use.refused,
        }


def _state(node: Node, attachment: Attachment) -> str:
    standing = survey.standing(attachment, closely=True)
    if standing.state == survey.GONE:
        return "stale: namespace gone"
    if standing.state == survey.UNCLEAR:
        return f"unknown: {standing.reason}"
    try:
        with node.pod(attachment.netns, own_allowed=True) as pod:
            found = list(commands.differences(node, attachment, pod))
    except CniError as error:
        return f"unknown: {error.msg}"
    return DIFFERS + "; ".join(found) if found else OK


def _tap(node: Node, attachment: Attachment) -> int:
    """The number of a macvtap's character device (/dev/tapN) as it is now; 0 for no macvtap, or none to be seen."""
    link = attachment.sandbox.link
    if link is None or link.kind != "macvtap":
        return 0
    present = None
    with (
        suppress(CniError),  # its state says why
        node.pod_of(attachment) as pod,
    ):
        present = pod.namespace.child(link) if pod else None
    return present.index if present else 0


def _elsewhere(node: Node) -> Iterator[Attachment]:
    """What is recorded in other data directories that an agent looks after: those pods share our shims."""
    for records in node.siblings():
        yield from records.all()


def _shims(node: Node, recorded: Sequence[Attachment]) -> Iterator[Row]:
    """Our shims, and links that only have such a name."""
    strangers = survey.unrecorded(node, (ip for each in recorded for ip in each.ips))
    for link in node.host.links():
        ours = is_shim(link)
        if ours or SHIM_NAME.fullmatch(link.name):
            parent = node.host.link_at(link.parent_index) if link.parent_index else None
            users = sum(1 for each in recorded if each.host.link and each.host.link.name == link.name)
            yield {
                "name": link.name,
                "parent": parent.name if parent else "",
                "mac": link.mac,
                "up": link.up,
                "pods": users,
                "state": _shim_state(link, users, strangers.get(link.name, [])) if ours else "foreign: not made by us",
            }


def _shim_state(link: Link, users: int, strangers: Sequence[Address]) -> str:
    if strangers:
        return f"leads to {', '.join(map(str, strangers))} of no attachment here"
    if not users:
        return "unused"
    return OK if link.up else "down"


def pool(use: RangeUse) -> Row:
    """A range in a listing."""
    return {
        "network": use.network,
        "start": str(use.start),
        "end": str(use.end),
        "size": use.size,
        "held": use.held,
        "cooling": use.cooling,
        "conflict": use.conflict,
        "excluded": use.excluded,
        "free": use.free,
    }


# --- how it is told ----------------------------------------------------------------------------------------------


def as_text(listing: dict[str, list[Row]]) -> list[str]:
    """The listing for people: what is wrong comes first."""
    wrong = list(_problems(listing))
    return [
        *(tables.section("WHAT IS WRONG", wrong) if wrong else []),
        *_attachments_text(listing["attachments"]),
        *_shims_text(listing["shims"]),
        *_nics_text(listing["nics"]),
        *pools_text(listing["pools"]),
    ]


def _problems(listing: dict[str, list[Row]]) -> Iterator[str]:
    for row in listing["attachments"]:
        if row["state"] != OK:
            yield from _problem(f"{row['network']} {row['containerID']} {row['ifname']}", row["state"])
    for row in listing["shims"]:
        if row["state"] != OK:
            yield from _problem(row["name"], row["state"])
    for row in listing["pools"]:
        if not row["free"]:
            yield from _problem(f"{row['network']} {row['start']}-{row['end']}", FULL)


def _problem(what: str, state: str) -> Iterator[str]:
    """What is wrong, each difference in a line of its own, and what to do about it."""
    kind, _, differences = state.partition(DIFFERS) if state.startswith(DIFFERS) else (state, "", "")
    yield f"! {what}: {kind or 'differs from what is recorded'}"
    yield from (f"    {difference}" for difference in differences.split("; ") if difference)
    yield from (f"    -> {text}" for beginning, text in ADVICE if state.startswith(beginning))


def _attachments_text(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["no attachments", ""]
    headers = ("", "NETWORK", "CONTAINER", "IFNAME", "POD", "ADDRESSES", "MAC", "PARENT", "MODE", "SHIM", "STATE")
    cells = (
        (
            _mark(row["state"]),
            row["network"],
            tables.short(row["containerID"]),
            f"{row['ifname']} (tap{row['tap']})" if row["tap"] else row["ifname"],
            row["pod"],
            ",".join(row["ips"]),
            row["mac"],
            row["parent"],
            f"{row['mode']} ({HARDWARE})" if row["forwardedBy"] == HARDWARE else row["mode"],
            row["shim"],
            _beginning(row["state"]),
        )
        for row in rows
    )
    return tables.section("ATTACHMENTS", tables.table(headers, cells))


def _shims_text(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["no shims", ""]
    headers = ("", "NAME", "PARENT", "MAC", "PODS", "STATE")
    cells = (
        (_mark(row["state"]), row["name"], row["parent"], row["mac"], row["pods"], _beginning(row["state"]))
        for row in rows
    )
    return tables.section("SHIMS", tables.table(headers, cells))


def _nics_text(rows: Sequence[Row]) -> list[str]:
    """Nothing where no NIC forwards in hardware, as on most hosts."""
    if not rows:
        return []
    headers = ("NAME", "OFFLOAD", "BEFORE", "HARDWARE", "SOFTWARE", "REFUSED")
    return tables.section("NICS", tables.table(headers, ([row[name.lower()] for name in headers] for row in rows)))


def pools_text(rows: Sequence[Row]) -> list[str]:
    """The table of the pools."""
    if not rows:
        return ["no pools: no address was leased since the start of the machine", ""]
    headers = ("NETWORK", "START", "END", "SIZE", "HELD", "COOLING", "CONFLICT", "EXCLUDED", "FREE")
    return tables.section("POOLS", tables.table(headers, ([row[name.lower()] for name in headers] for row in rows)))


def _mark(state: str) -> str:
    return " " if state == OK else "!"


def _beginning(state: str) -> str:
    """The table shows what kind of trouble it is; the list of problems says the rest."""
    return state if state.startswith("stale") else state.partition(":")[0].partition(" of ")[0]
