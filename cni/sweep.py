"""Taking back what is stale, whether a runtime asks for it or not: the work behind `shimlanctl gc`.

An attachment is stale when its namespace is gone. Everything else is when no attachment here is recorded for it *and*
nothing shows that a pod still lives by it: no link with its name or address in any namespace that can be seen, no
child of the parent with its MAC. So neither pods in namespaces that cannot be seen from here are touched, nor those of
another data directory that share a shim.

Leases without an attachment are taken back only if shimlan itself got them, which shows in their parent: an ADD was
killed between the lease and the record. Those of shimlan-ipam under another main plugin never have an attachment, and
who holds them is not known here: they are the runtime's DEL and GC to release.
"""

from __future__ import annotations

import time
from functools import partial

from cni import delegate, nftables, offload, shim, survey, teardown, vlan
from cni.attachment import PROTO_SHIMLAN, Key
from cni.errors import CniError, KernelRefused
from cni.frozen import frozen
from cni.kernel import PROBE_NAME
from cni.protocol import Call
from ipam.config import DEFAULT_DATA_DIR, IpamConf
from ipam.store import RECOVERED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Set
    from ipaddress import IPv4Address, IPv6Address

    from cni.attachment import Attachment, Link
    from cni.node import Node

    Address = IPv4Address | IPv6Address

LINGER_SECONDS = 3.0  # how long a MAC may stay on the parent when its namespace goes away; mostly 0.05
LINGER_PAUSE = 0.02


@frozen
class Finding:
    """Something stale, the commands that clear it by hand, and the attachment that it is, if it is one."""

    what: str
    commands: tuple[str, ...]
    key: Key | None = None


@frozen
class Outcome:
    """What was (or would be) cleared, what was left alone and why, and what could not be cleared."""

    cleared: tuple[Finding, ...]
    left: tuple[str, ...]
    errors: tuple[str, ...]


class Grace:
    """How long what is stale has been so, for those who look again and again; `clock` tells seconds."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self.seconds = seconds
        self._clock = clock
        self._stale: dict[str, tuple[float, float]] = {}  # when it was first and last seen to be

    def is_over(self, what: str) -> bool:
        """Note that something is stale; whether it was so a grace time ago as well."""
        now = self._clock()
        since, _ = self._stale.get(what, (now, now))
        self._stale[what] = since, now
        return now - since >= self.seconds

    def spare(self, what: str) -> None:
        """Something is not stale (any more)."""
        self._stale.pop(what, None)

    def next_end(self) -> float:
        """When the first of these times is over, or was without anybody looking; infinite when nothing is stale."""
        return min((since + self.seconds for since, _ in self._stale.values()), default=float("inf"))

    def looked(self, began: float) -> None:
        """Somebody has looked at everything, and began at that time: what he did not see as stale is not.

        What was so for long enough, and could not be cleared for some reason, is left for another such time.
        """
        now = self._clock()
        self._stale = {
            what: (since if now - since < self.seconds else now, last)
            for what, (since, last) in self._stale.items()
            if last >= began
        }


def sweep(node: Node, dry_run: bool = False, grace: Grace | None = None) -> Outcome:
    """Clear everything stale, or only tell what that is; errors do not stop it.

    With `grace` only what has been stale for long enough, and without waiting for commands that are under way.
    """
    broom = _Broom(node, dry_run, grace)
    broom.attachments()
    broom.earlier_boots()
    broom.host_entries()
    broom.leases()
    broom.recovered_leases()
    broom.shims()
    broom.probes()
    broom.vlans()
    broom.source_nat()
    return Outcome(tuple(broom.cleared), tuple(broom.left), tuple(broom.errors))


class _Broom:
    def __init__(self, node: Node, dry_run: bool, grace: Grace | None) -> None:
        self.cleared: list[Finding] = []
        self.left: list[str] = []
        self.errors: list[str] = []
        self._node = node
        self._dry_run = dry_run
        self._grace = grace
        self._seen = survey.sightings(node)
        self._gone: set[Key] = set()
        self._strangers = False  # living pods that no data directory known here has recorded
        self._patience = 0.0 if grace else LINGER_SECONDS

    # --- what is recorded --------------------------------------------------------------------------------------

    def attachments(self) -> None:
        """Attachments whose namespace is gone."""
        for attachment in self._node.records.all():
            if survey.standing(attachment, closely=True).state != survey.PRESENT:
                self._locked(attachment.key, partial(self._judge, attachment.key))

    def _judge(self, key: Key) -> None:
        """Clear an attachment if it is (still) stale; under its lock no command works on it."""
        attachment = self._node.records.find(key)
        if attachment is None or (standing := survey.standing(attachment, closely=True)).state == survey.PRESENT:
            return
        doubt = standing.reason if standing.state == survey.UNCLEAR else self._sign_of_life(attachment)
        if doubt:
            self.left.append(f"{key}: {doubt}")
            return
        finding = Finding(f"{gone(key)}: {standing.reason}", tuple(_by_hand(attachment)), key)
        if self._clear(finding, partial(teardown.take_back, self._node, attachment), gone(key)):
            self._gone.add(key)

    def _sign_of_life(self, attachment: Attachment) -> str:
        """What shows that a link exists although its namespace is not where it was; "" for nothing."""
        for sighting in self._seen:
            if sighting.key == attachment.key:
                return f"its link is alive in {sighting.netns}"
        link = attachment.sandbox.link
        if link and not attachment.parent_in_pod and self._receives(attachment.parent_index, link.mac):
            return f"{attachment.parent} still has a child {link.mac}: it lives in a namespace not to be seen from here"
        return ""

    def earlier_boots(self) -> None:
        """Records from before the machine started anew."""
        for attachment in self._node.records.of_earlier_boots():
            self._locked(attachment.key, partial(self._judge_old, attachment))

    def _judge_old(self, attachment: Attachment) -> None:
        key = attachment.key
        if self._node.records.find(key) is None:
            finding = Finding(f"{key}: of an earlier boot", (f"# forget the record of {key}",), key)
            self._clear(finding, partial(self._forget, attachment))

    def _forget(self, attachment: Attachment) -> None:
        key = attachment.key
        if attachment.delegate:
            delegate.delete(attachment.delegate, Call("DEL", key.container_id, "", key.ifname))
        self._node.records.forget(key)

    # --- what no record tells of -------------------------------------------------------------------------------

    def host_entries(self) -> None:
        """Routes and neighbours on shims that lead nowhere."""
        entries = list(survey.host_entries(self._node))
        recorded = {ip for attachment in self._node.records.all() for ip in attachment.ips}
        strangers = [(link, ip, mac) for link, ip, mac in entries if ip not in recorded]
        seen = {ip for sighting in self._seen for ip in sighting.ips}
        noted = {ip for records in self._node.siblings() for attachment in records.all() for ip in attachment.ips}
        for link, ip, mac in strangers:
            if ip in seen or (mac and self._receives(link.parent_index, mac)):
                self._strangers |= ip not in noted
                self.left.append(f"{ip} behind {link.name}: not recorded here, but its pod is alive")
            else:
                finding = Finding(f"{ip} behind {link.name}: of no attachment", tuple(_entry_by_hand(link, ip, mac)))
                self._clear(finding, partial(shim.forget, self._node, [ip]))

    def leases(self) -> None:
        """Leases that shimlan got for an attachment of which nothing was made."""
        leases = self._node.leases(self._node.data_dir)
        got = [lease for lease in leases.leases() if lease.state == "held" and lease.parent]
        keys = dict.fromkeys(Key(e.network, e.container_id, e.ifname) for e in got if e.network != RECOVERED)
        recorded = {attachment.key for attachment in self._node.records.all()}
        alive = survey.living_addresses(self._node, self._seen)
        for key in keys:
            if key not in recorded:
                self._locked(key, partial(self._release, key, alive))

    def _release(self, key: Key, alive: Set[Address]) -> None:
        leases = self._node.leases(self._node.data_dir)
        ips = leases.find(key.network, key.container_id, key.ifname)
        if not ips or self._node.records.find(key) or alive & set(ips):
            return
        commands = (_release_by_hand(ip, key.network, self._node.data_dir) for ip in ips)
        finding = Finding(f"{key}: leased, but never attached", tuple(commands))
        self._clear(
            finding, partial(leases.release, key.network, key.container_id, key.ifname, IpamConf.cooldown_seconds)
        )

    def recovered_leases(self) -> None:
        """Addresses that a rebuilt store keeps for pods of which nothing is left."""
        leases = self._node.leases(self._node.data_dir)
        alive = survey.living_addresses(self._node, self._seen)
        for lease in leases.leases(RECOVERED):
            if lease.state == "held" and lease.address not in alive:
                command = _release_by_hand(lease.address, RECOVERED, self._node.data_dir)
                finding = Finding(f"{lease.address}: kept for a pod that is gone", (command,))
                self._clear(finding, partial(leases.free_recovered, [lease.address]))

    # --- what nobody needs any more ----------------------------------------------------------------------------

    def shims(self) -> None:
        """Shims without pods."""
        alive = survey.living_addresses(self._node, self._seen)
        needed = {link.name for link, ip, _ in survey.host_entries(self._node) if ip in alive}
        needed |= {attachment.host.link.name for attachment in self._remaining() if attachment.host.link}
        for link in self._node.host.links():
            if shim.is_shim(link) and link.name not in needed:
                finding = Finding(f"{link.name}: no attachment uses it", (f"ip link del {link.name}",))
                self._clear(finding, partial(shim.remove_unused, self._node, link, link.parent_index))

    def probes(self) -> None:
        """What somebody left who was killed while he asked whether a MAC is taken: nobody else could have that MAC."""
        for link in self._node.host.links():
            if link.kind == "macvlan" and link.name.startswith(PROBE_NAME) and not link.alias:
                finding = Finding(f"{link.name}: left by somebody who was killed", (f"ip link del {link.name}",))
                self._clear(finding, partial(self._node.host.delete_link, link.index))

    def vlans(self) -> None:
        """VLAN devices of ours without pods."""
        needed = {attachment.vlan.name for attachment in self._remaining() if attachment.vlan}
        for link in self._node.host.links():
            if not vlan.is_ours(link) or link.name in needed:
                continue
            if children := vlan.children(self._node, link) - self._shim_macs(link):
                self.left.append(f"{link.name}: not used by any attachment here, but it carries {', '.join(children)}")
                continue
            finding = Finding(f"{link.name}: no attachment uses it", (f"ip link del {link.name}",))
            self._clear(finding, partial(vlan.remove_unused, self._node, link.name))

    def _shim_macs(self, parent: Link) -> set[str]:
        """Those of shims on a link: in a dry run they are still there."""
        return {
            link.mac for link in self._node.host.links() if shim.is_shim(link) and link.parent_index == parent.index
        }

    def source_nat(self) -> None:
        """The nftables table, when it holds anything else than the attachments need and no other pods live by it."""
        if self._strangers:
            return
        rules = shim.source_nat(self._node, list(self._remaining()))
        try:
            with nftables.connect() as socket:
                if nftables.in_place(socket, rules):
                    return
        except KernelRefused:  # no nftables, no table
            return
        command = "# rewrite table inet shimlan" if rules else "nft delete table inet shimlan"
        self._clear(
            Finding("nft table inet shimlan: not what the attachments need", (command,)),
            partial(shim.sync_source_nat, self._node),
        )

    # --- tools -------------------------------------------------------------------------------------------------

    def _remaining(self) -> Iterator[Attachment]:
        return (attachment for attachment in self._node.records.all() if attachment.key not in self._gone)

    def _receives(self, parent_index: int, mac: str) -> bool:
        """Whether the parent has a child with that MAC; waits for those that are just going away."""
        while mac in self._node.host.received_macs(parent_index):
            if self._patience <= 0:
                return True
            time.sleep(LINGER_PAUSE)
            self._patience -= LINGER_PAUSE
        return offload.has_child(self._node, parent_index, mac)

    def _locked(self, key: Key, judge: Callable[[], None]) -> None:
        """Judge an attachment on which no command works meanwhile; whoever can look again later does not wait."""
        if self._grace is None:
            with self._node.locks.attachment(key):
                judge()
            return
        with self._node.locks.attachment_if_free(key) as free:
            if free:
                judge()
            else:
                self.left.append(f"{key}: a command is under way")

    def _clear(self, finding: Finding, action: Callable[[], object], subject: str = "") -> bool:
        """Whether it is, or would be, cleared. `subject`: what to remember it by until the grace time is over."""
        if self._grace and not self._grace.is_over(subject or finding.what):
            self.left.append(f"{finding.what}: not for {self._grace.seconds:g} s yet")
            return False
        try:
            if not self._dry_run:
                action()
        except (CniError, OSError) as error:
            self.errors.append(f"{finding.what}: {error}")
        else:
            self.cleared.append(finding)
            if self._grace:
                self._grace.spare(subject or finding.what)
        return True


def gone(key: Key) -> str:
    """What a `Grace` remembers an attachment by whose namespace is gone."""
    return f"{key}: namespace gone"


def _by_hand(attachment: Attachment) -> Iterator[str]:
    key, shim_link = attachment.key, attachment.host.link
    if shim_link:
        macs = {entry.ip: entry.mac for entry in attachment.host.neighbours}
        for ip in attachment.ips:
            yield from _entry_by_hand(shim_link, ip, macs.get(ip, ""))
    if attachment.leasing:
        for ip in attachment.ips:
            yield _release_by_hand(ip, key.network, attachment.leasing.data_dir)
    yield f"# forget the record of {key}"


def _release_by_hand(ip: Address, network: str, data_dir: str) -> str:
    where = "" if data_dir == DEFAULT_DATA_DIR else f" --state-dir {data_dir}"
    return f"shimlanctl pool release {ip} --network {network}{where} --yes"


def _entry_by_hand(link: Link, ip: Address, mac: str) -> Iterator[str]:
    yield f"ip route del {ip} dev {link.name} proto {PROTO_SHIMLAN}"
    if mac:
        yield f"ip neigh del {ip} dev {link.name}"
