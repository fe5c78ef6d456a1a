"""The executable `shimlan-ipam`: addresses for any main plugin that delegates to it (spec, section 4).

It knows neither links nor parents: what shimlan itself does beyond this lives in `cni`.
"""

from __future__ import annotations

import cni.plugin
from cni import __version__, protocol
from cni.errors import CniError, Differs, Exhausted, NotAvailable, TryAgainLater, attempt, summary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, BinaryIO, TextIO

    from cni.config import NetConf
    from cni.protocol import Call, Result
    from ipam.config import IpamConf
    from ipam.store import LeaseStore

ABOUT = f"CNI IPAM plugin shimlan-ipam {__version__}: addresses of one node, for any main plugin"


def main(environ: Mapping[str, str], stdin: BinaryIO, stdout: TextIO, stderr: TextIO) -> int:
    """Serve one call; returns the exit status."""
    return cni.plugin.main(environ, stdin, stdout, stderr, about=ABOUT, serve=_serve)


def run() -> None:
    """The console entry."""
    cni.plugin.run(main)


def _serve(call: Call, raw: dict[str, Any], version: str, stderr: TextIO) -> dict[str, Any] | None:
    # VERSION is asked often, and answered without what follows.
    import cni.config
    import ipam.config
    from cni.database import Database
    from cni.log import Log
    from cni.plugin import recovering
    from ipam.store import LeaseStore

    parse = ipam.config.parse_for_delete if call.command in ("DEL", "GC") else ipam.config.parse
    conf = parse(raw, call.args or {})
    # The main plugin may be any: of its keys only those count that mean the same everywhere, and dataDir is its own.
    main_conf = cni.config.parse_for_delete({**raw, "dataDir": None}, call.args or {})
    leases = LeaseStore(Database(conf.data_dir))
    log = Log(stderr, context=f"{call.command} {conf.network}: ")
    if call.command == "ADD":
        result = recovering(lambda: _add(leases, call, conf, main_conf), log, conf.data_dir, conf.data_dir)
        return protocol.render_result(result, version)
    stories = {"DEL": _delete, "CHECK": _check, "STATUS": _status, "GC": _collect}
    recovering(lambda: stories[call.command](leases, call, conf, main_conf), log, conf.data_dir, conf.data_dir)
    return None


def _add(leases: LeaseStore, call: Call, conf: IpamConf, main_conf: NetConf) -> Result:
    from ipam.service import result_of

    try:
        allocation = leases.allocate(conf, call.container_id, call.ifname, pod=main_conf.pod, mac=main_conf.mac)
    except Exhausted:
        leases.remember_ranges(conf)
        raise
    try:
        return result_of(conf, allocation)
    except CniError:
        leases.release(conf.network, call.container_id, call.ifname, cooldown_seconds=0)
        raise


def _delete(leases: LeaseStore, call: Call, conf: IpamConf, _main_conf: NetConf) -> None:
    leases.release(conf.network, call.container_id, call.ifname, conf.cooldown_seconds)


def _check(leases: LeaseStore, call: Call, conf: IpamConf, main_conf: NetConf) -> None:
    held = leases.find(conf.network, call.container_id, call.ifname)
    if not held:
        raise Differs(f"{call.container_id} ({call.ifname}) holds no address of network {conf.network}")
    if main_conf.prev_result is None:
        return
    told = {ip.address for ip in protocol.parse_result(main_conf.prev_result).ips}
    if missing := [str(address) for address in held if address not in told]:
        raise Differs(f"prevResult: lacks {', '.join(missing)}, held by {call.container_id} ({call.ifname})")


def _status(leases: LeaseStore, _call: Call, conf: IpamConf, main_conf: NetConf) -> None:
    from ipam.service import check_room

    try:
        leases.check_writable()
        if main_conf.status_reports_exhaustion:
            check_room(leases, conf)
    except TryAgainLater:  # busy for the moment
        raise
    except CniError as error:
        raise NotAvailable(error.msg, error.details) from error


def _collect(leases: LeaseStore, _call: Call, conf: IpamConf, main_conf: NetConf) -> None:
    """Release what interfaces hold that are not listed; errors do not stop it."""
    if main_conf.valid_attachments is None:
        return
    held = {(lease.container_id, lease.ifname) for lease in leases.leases(conf.network) if lease.state == "held"}
    errors: list[CniError] = []
    for container_id, ifname in sorted(held - set(main_conf.valid_attachments)):
        errors += attempt(leases.release, conf.network, container_id, ifname, conf.cooldown_seconds)
    if errors:
        raise summary(errors)
