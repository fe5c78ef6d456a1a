"""Mending one attachment, under its lock: the record first, then the pod's end, then the host's.

The order keeps frames of the shim off the LAN: the host gets its entries for a pod only while the pod's link is up to
receive what they lead to. What is wrong, and what is to be done about it, is the business of `cni.agent.mending`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from cni import nftables, offload, shim, vlan
from cni.agent import mending
from cni.agent.backoff import Backoff
from cni.agent.facts import HostFacts, ShimSide, find_parent
from cni.agent.findings import ON_HOST, Findings, Repair
from cni.agent.mending import Mending, Step
from cni.attachment import Attachment, Facts, Key, Link, Parent, Route, SourceNat, View, Vlan, replan, vlan_view
from cni.diff import SetLink, SetRoute, SetSysctl
from cni.errors import CniError, KernelRefused
from cni.frozen import replace
from cni.kernel import Namespace
from cni.log import Log
from cni.node import Node, Pod
from cni.state import Nic

SOURCE_NAT = "rewrite table inet shimlan"


class Repairer:
    """Mends attachments in one pass; `now` is its time. `visit` is told of each pod that is entered."""

    def __init__(
        self,
        node: Node,
        log: Log,
        host: HostFacts,
        backoff: Backoff,
        now: float,
        found: Findings,
        visit: Callable[[Pod], object],
    ) -> None:
        self._node = node
        self._log = log
        self._host = host
        self._backoff = backoff
        self._now = now
        self._found = found
        self._visit = visit

    # --- looking, without a lock -------------------------------------------------------------------------------

    def is_whole_on_host(self, attachment: Attachment) -> bool:
        """Whether nothing can be done at the host's end."""
        if attachment.host.link is None:
            return True
        side = self._host.shim(attachment.host.link.name)
        steps: Sequence[Step] = mending.shim_steps(attachment.host, side.link)
        if not steps:
            work = self._entry_mending(attachment, side)
            self._found.wait(attachment.key, *work.waiting)
            steps = work.steps
        return not steps or bool(side.refusal) or self._is_backed_off(attachment.key, ON_HOST, steps)

    def is_whole_within(self, attachment: Attachment, parent: Parent | None) -> bool:
        """Whether nothing can be done at the pod's end; `parent` is None where that is in the pod, too."""
        with self._pod(attachment) as pod:
            if pod is None:
                return True
            parent = parent or self._parent_within(attachment, pod)
            if parent is None:
                return True
            work = self._pod_mending(attachment, pod, _observed(attachment, pod), parent)
            self._found.wait(attachment.key, *work.waiting)
            return not work.steps or self._is_backed_off(attachment.key, str(attachment.key), work.steps)

    # --- mending, under the lock -------------------------------------------------------------------------------

    def revise(self, attachment: Attachment, wanted: Attachment) -> bool:
        """Record what is wanted from now on, and remove entries from a shim of another name; whether it could be."""
        before, after = attachment.host.link, wanted.host.link
        with self._locked(attachment) as locked:
            if locked:
                self._record(attachment, wanted)
                if before and after and before.name != after.name:
                    self._node.host.remove_entries(attachment.host)
        return locked

    def mend(self, attachment: Attachment, parent: Parent | None) -> None:
        """Do what can be done about an attachment, unless a command works on it."""
        with self._locked(attachment) as locked:
            if locked and self._mend_pod(attachment, parent) and attachment.host.link:
                self._mend_host(attachment)

    @contextmanager
    def _locked(self, attachment: Attachment) -> Iterator[bool]:
        """The lock of an attachment; False when a command has it, or has changed the record since it was read."""
        key = attachment.key
        with self._node.locks.attachment_if_free(key) as free:
            unchanged = free and self._node.records.find(key) == attachment
            if not unchanged:
                self._found.busy = True
                self._found.unfinished.add(key)
            yield unchanged

    def _record(self, attachment: Attachment, wanted: Attachment) -> None:
        self._log.debug(f"{attachment.key}: planned anew, for {wanted.parent} and the host as they are now")
        self._node.records.revise(wanted)

    def _is_backed_off(self, key: Key, where: str, steps: Iterable[Step]) -> bool:
        """Whether steps have to wait, because they had to be taken again and again; they wait for each other, too."""
        waits = {f"{where}: {step}": self._backoff.wait(_subject(where, step), self._now) for step in steps}
        longest = max(waits.values(), default=0.0)
        if not longest:
            return False
        self._found.unfinished.add(key)
        self._found.backed_off.update({what: longest for what, wait in waits.items() if wait})
        return True

    # --- the pod's end -----------------------------------------------------------------------------------------

    def _mend_pod(self, attachment: Attachment, parent: Parent | None) -> bool:
        """Mend the pod's end; whether its link is up and receives what the host sends."""
        with self._pod(attachment) as pod:
            if pod is None:
                return self._is_alive(attachment)
            if parent is None:
                attachment, parent = self._planned_within(attachment, pod)
            return parent is not None and self._mend_within(attachment, pod, parent)

    def _mend_within(self, attachment: Attachment, pod: Pod, parent: Parent) -> bool:
        key, observed = attachment.key, _observed(attachment, pod)
        work = self._pod_mending(attachment, pod, observed, parent)
        self._found.wait(key, *work.waiting)
        if not work.steps or self._is_backed_off(key, str(key), work.steps):
            return observed.link is not None and observed.link.up
        parents = pod.namespace if attachment.parent_in_pod else self._node.host
        self._take(str(key), work.steps, pod.namespace, observed.link, parents)
        if observed.link is None:
            self._log.warning(f"{key}: {MADE_ANEW}")
        return True

    def _is_alive(self, attachment: Attachment) -> bool:
        """Whether a pod that cannot be entered from here has its link up all the same."""
        alive = self._host.receives(attachment.parent_index, attachment.mac)
        if not alive:
            self._found.wait(attachment.key, "its namespace cannot be entered, and no link of it is up")
        return alive

    def _parent_within(self, attachment: Attachment, pod: Pod) -> Parent | None:
        parent = find_parent(pod.namespace, attachment.parent_index, attachment.parent, {attachment.mac})
        if parent is None:
            self._found.wait(attachment.key, f"there is no {attachment.parent} in the pod")
        return parent

    def _planned_within(self, attachment: Attachment, pod: Pod) -> tuple[Attachment, Parent | None]:
        """An attachment with its parent in the pod, planned anew if that is another link by now."""
        parent = self._parent_within(attachment, pod)
        wanted = replan(attachment, Facts(parent)) if parent else attachment
        if wanted != attachment:
            self._record(attachment, wanted)
        return wanted, parent

    def _pod_mending(self, attachment: Attachment, pod: Pod, observed: View, parent: Parent) -> Mending:
        if observed.link is None and not parent.up:
            return Mending(waiting=(f"{parent.name} is down, and the link is to be made on it",))
        steps = mending.pod_steps(attachment.sandbox, observed, parent.mtu)
        asked = any(isinstance(step, SetRoute) and mending.is_asked(step.route) for step in steps)
        return mending.for_pod(steps, _other_routes(pod.namespace, observed.link) if asked else ())

    @contextmanager
    def _pod(self, attachment: Attachment) -> Iterator[Pod | None]:
        with self._node.pod_of(attachment) as pod:
            if pod:
                self._visit(pod)
            yield pod

    # --- the host's end ----------------------------------------------------------------------------------------

    def _mend_host(self, attachment: Attachment) -> None:
        assert attachment.host.link is not None
        side = self._host.shim(attachment.host.link.name)
        if not self._has_shim(attachment, side):
            self._found.unfinished.add(attachment.key)
            return
        work = self._entry_mending(attachment, side)
        self._found.wait(attachment.key, *work.waiting)
        if work.steps and not self._is_backed_off(attachment.key, ON_HOST, work.steps):
            self._take(ON_HOST, work.steps, self._node.host, side.link, self._node.host)

    def _entry_mending(self, attachment: Attachment, side: ShimSide) -> Mending:
        steps = mending.entry_steps(attachment.host, side.entries(attachment.ips))
        return mending.for_host(steps, self._host.sources)

    def _has_shim(self, attachment: Attachment, side: ShimSide) -> bool:
        """Whether the shim is what it shall be, by now; all who need it share its troubles, which are told once."""
        if not mending.shim_steps(attachment.host, side.link):
            return True
        if side.refusal:
            return False
        try:
            return self._mend_shim(attachment, side)
        except CniError as error:
            side.refusal = error.msg
            self._found.errors[f"{ON_HOST}: {error.msg}"] = None
            return False

    def _mend_shim(self, attachment: Attachment, side: ShimSide) -> bool:
        wanted = attachment.host
        with self._node.locks.shim(attachment.parent_index):
            side.look_again()
            present = _ours(side.link, wanted.link)
            steps = mending.shim_steps(wanted, present)
            beyond_repair = present and any(isinstance(s, SetLink) and s.option not in mending.SETTABLE for s in steps)
            if beyond_repair:
                steps = mending.shim_steps(wanted, None)
            if self._is_backed_off(attachment.key, ON_HOST, steps):
                return False
            if present and beyond_repair:
                self._node.host.delete_link(present.index)
                present = None
            if steps:
                self._take(ON_HOST, steps, self._node.host, present, self._node.host)
                side.look_again()
        return True

    def mend_vlan(self, attachment: Attachment) -> None:
        """Make the VLAN device below an attachment anew, or right, if it is ours."""
        device = attachment.vlan
        assert device is not None
        work = self._vlan_mending(device, self._node.host.link(device.name))
        self._found.wait(attachment.key, *work.waiting)
        if not work.steps or self._is_backed_off(attachment.key, ON_HOST, work.steps):
            return
        with self._node.locks.vlan(device.name):
            present = self._node.host.link(device.name)
            work = self._vlan_mending(device, present)
            # Its last user may have removed it meanwhile.
            if work.steps and self._node.records.in_vlan(device.name):
                self._take(ON_HOST, work.steps, self._node.host, present, self._node.host)

    def _vlan_mending(self, device: Vlan, present: Link | None) -> Mending:
        """What to do about a VLAN device; what others have put in its place is theirs."""
        if present and not vlan.is_ours(present):
            return Mending()
        link = self._node.host.link_at(present.parent_index) if present else None
        master = self._node.host.parent(link.name if link else device.master)
        if master is None or not master.up:
            return Mending(waiting=(f"{device.master} is {'down' if master else 'not there'}",))
        mtu = min(device.mtu, vlan.mtu_on(master))
        wanted = replace(device, master=master.name, master_index=master.index, mtu=mtu)
        return Mending(mending.shim_steps(vlan_view(wanted), present))

    def translate_sources(self, rules: Sequence[SourceNat]) -> None:
        """Have the table of the source NAT hold these rules, which are all that is recorded. Raises KernelRefused."""
        with nftables.connect() as socket:
            # What commands have recorded meanwhile counts as well.
            if nftables.in_place(socket, rules) or shim.source_nat_in_place(self._node):
                return
        self._repair_host("nat", SOURCE_NAT, lambda: shim.sync_source_nat(self._node))

    def forward_in_hardware(self, nic: Nic, name: str) -> None:
        """Have a NIC, called so by now, forward in hardware again if something has switched that off.

        Children that have lost their slot get none before they come up anew. Raises KernelRefused.
        """
        feature = offload.feature_of(nic.index)
        if feature.active:
            return
        if obstacle := offload.obstacle_in(feature, self._node.host.runs_xdp(nic.index)):
            self._found.waiting[f"{name} does not forward in hardware any more: {obstacle}"] = None
            return
        how = offload.command(name, on=True)
        self._repair_host("offload", how, lambda: offload.switch_on(name, nic.index))

    def _repair_host(self, kind: str, how: str, action: Callable[[], object]) -> None:
        """Repair something of the host that is no entry of an attachment, if it need not wait."""
        subject = f"{ON_HOST}: {how}"
        if wait := self._backoff.wait(subject, self._now):
            self._found.backed_off[subject] = wait
            self._found.host_unfinished = True
            return
        fights = [subject] if self._backoff.note(subject, self._now) else []
        action()
        self._found.fights += fights
        self._found.repairs.append(Repair(kind, ON_HOST, how))

    # --- both --------------------------------------------------------------------------------------------------

    def _take(
        self, where: str, steps: Sequence[Step], namespace: Namespace, link: Link | None, parents: Namespace
    ) -> None:
        """Take the steps for a link, which is there or is made by them. Raises what the kernel refuses."""
        subjects = [_subject(where, step) for step in steps]
        fights = [subject for subject in subjects if self._backoff.note(subject, self._now)]
        if link:
            obsolete = mending.removed(steps, link)
            if obsolete.routes or obsolete.neighbours:
                namespace.remove_entries(obsolete)
        self._node.apply(namespace, mending.changed(steps), parents, link.index if link else 0)
        self._found.fights += fights
        # Sysctls come with the link that they are set for.
        told = (step for step in steps if not isinstance(step, SetSysctl))
        self._found.repairs += [Repair(mending.kind(step), where, str(step)) for step in told]


MADE_ANEW = (
    "its link was made anew; what other plugins of a chain had set on it (tuning, bandwidth, sbr ...) is not recorded "
    "here: make the pod anew if it needs that"
)


def _subject(where: str, step: Step) -> str:
    return f"{where}: {mending.subject(step)}"


def _observed(attachment: Attachment, pod: Pod) -> View:
    assert attachment.sandbox.link is not None
    namespace, link = pod.namespace, pod.namespace.child(attachment.sandbox.link)
    if link is None:
        return View()
    return View(
        link=link,
        addresses=tuple(address for _, address in namespace.addresses(link.index)),
        routes=tuple(namespace.routes(link.index)),
        neighbours=tuple(namespace.neighbours(link.index)),
    )


def _other_routes(namespace: Namespace, link: Link | None) -> list[Route]:
    """The routes of a pod that do not lead through our link."""
    others = (other for other in namespace.links() if link is None or other.index != link.index)
    return [route for other in others for route in namespace.routes(other.index)]


def _ours(present: Link | None, wanted: Link | None) -> Link | None:
    """The link that stands where the shim shall be, if it is ours, by its alias or else by its MAC.

    Raises KernelRefused when it is not.
    """
    assert wanted is not None
    if present and not shim.is_shim(present) and (present.kind, present.mac) != (wanted.kind, wanted.mac):
        raise KernelRefused(f"{present.name} exists and is not ours: rename it, shimlan needs the name for its shim")
    return present
