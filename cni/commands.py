"""The verbs of the spec, a short story each: ADD, DEL, CHECK, STATUS, GC.

They know the order of things and nothing of how these are done. VERSION needs no story; `cni.plugin` answers it.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext

from cni import delegate, kernel, shim, teardown
from cni.attachment import Key, View, check_parent, limited, may_offload, plan, plan_nothing, report
from cni.diff import SetSysctl, diff
from cni.errors import CniError, Differs, InvalidConfig, NotAvailable, TryAgainLater, attempt, summary
from cni.frozen import frozen, replace
from cni.protocol import Result, merge, parse_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from cni.attachment import Attachment, Delegation, Facts, Vlan
    from cni.config import NetConf
    from cni.node import Node, Pod
    from cni.protocol import Call


@frozen
class Request:
    """One ADD: who asks for what, and what was found."""

    call: Call
    conf: NetConf
    key: Key
    pod: Pod
    facts: Facts


def add(node: Node, call: Call, conf: NetConf) -> Result:
    """Attach a container; the result is merged with prevResult. Any failure leaves nothing behind."""
    key = Key(conf.name, call.container_id, call.ifname)
    previous = parse_result(conf.prev_result or {})
    with node.pod(call.netns, call.own_netns) as pod, node.locks.attachment(key), ExitStack() as undo:
        _clear(node, key, "clearing what an earlier ADD of this container left behind")
        vlan = _vlan(node, key, conf, pod, undo) if conf.vlan else None
        facts = node.parents(conf, pod).facts(conf, vlan)
        check_parent(conf, facts.parent)
        request = Request(call, conf, key, pod, facts)
        if conf.delegate:
            attachment, ipam = _add_delegated(node, request, undo)
        else:
            attachment, ipam = _add_leased(node, request, undo)
        tap = _tap(pod, call.ifname) if conf.link_type == "macvtap" else 0
        undo.pop_all()
    return merge(previous, report(attachment, ipam, conf.dns, tap))


def _clear(node: Node, key: Key, why: str) -> None:
    """Take back what is recorded of a key: by an ADD that was killed or has failed, or whose result got lost."""
    remains = node.records.find(key)
    if remains:
        node.log.info(why)
        teardown.take_back(node, remains)


def _vlan(node: Node, key: Key, conf: NetConf, pod: Pod, undo: ExitStack) -> Vlan:
    """The VLAN device that is the parent, made if need be; who is going to use it is recorded from now on."""
    from cni import vlan

    undo.callback(teardown.quietly, node.log, lambda: _clear(node, key, "undoing a failed ADD"))
    return vlan.use(node, conf, plan_nothing(key, conf, pod.netns))


def _tap(pod: Pod, ifname: str) -> int:
    """The number of a macvtap's character device: the index of the link (macvtap_device_event in macvtap.c)."""
    link = pod.namespace.link(ifname)
    return link.index if link else 0


def _add_leased(node: Node, request: Request, undo: ExitStack) -> tuple[Attachment, Result]:
    from cni import leasing, mac  # here and below: what DEL can do without

    conf = request.conf
    # Lease and record are written both or neither; not while the LAN is asked, which would have others wait.
    with nullcontext() if conf.detect_conflicts else node.database.transaction():
        ipam = leasing.lease(node, request, conf.ipam, undo) if conf.ipam else Result()
        address = mac.choose(conf, request.key, [ip.address for ip in ipam.ips])
        attachment = _recorded(node, request, _planned(request, address, ipam), undo)
    with _offloading(node, request, attachment):
        _apply(node, request, attachment.sandbox, View())
        shim.attach(node, attachment)
    return attachment, ipam


def _add_delegated(node: Node, request: Request, undo: ExitStack) -> tuple[Attachment, Result]:
    """A delegate may want to use the link (dhcp): it finds it there, and the addresses follow."""
    from cni import mac

    conf, call, namespace = request.conf, request.call, request.pod.namespace
    delegation = delegate.delegation(conf.delegate, conf.raw, call)
    delegate.require(delegation)  # what cannot be added could not be undone either
    address = mac.choose(conf, request.key, ())
    bare = _recorded(node, request, _planned(request, address, Result(), delegation), undo)
    assert bare.sandbox.link is not None
    _apply(node, request, View(link=replace(bare.sandbox.link, up=False)), View())
    ipam = delegate.add(delegation, call)
    attachment = _recorded(node, request, _planned(request, address, ipam, delegation), undo)
    with _offloading(node, request, attachment):
        _apply(node, request, attachment.sandbox, namespace.view(call.ifname))
        shim.attach(node, attachment)
    return attachment, ipam


def _offloading(node: Node, request: Request, attachment: Attachment) -> AbstractContextManager[None]:
    """The child that comes up meanwhile is the NIC's to forward for, where that is wanted and can be."""
    conf, parent = request.conf, request.facts.parent
    required = conf.offload == "on"
    if not may_offload(conf, parent) or (not required and node.nics.is_fixed(parent.index, parent.name)):
        return nullcontext()
    from cni import offload  # most NICs cannot, and are asked once

    return offload.offloading(node, attachment, parent, required)


def _planned(request: Request, address: str, ipam: Result, delegation: Delegation | None = None) -> Attachment:
    return plan(request.key, request.conf, request.facts, address, ipam, request.pod.netns, delegation)


def _recorded(node: Node, request: Request, attachment: Attachment, undo: ExitStack) -> Attachment:
    """Write down what is wanted before the kernel is touched, so that whoever comes next can clear it.

    From then on the record is what gets undone, in one piece: no lease is released of a link that cannot be removed.
    """
    node.records.put(attachment)
    undo.pop_all()
    undo.callback(teardown.quietly, node.log, lambda: teardown.take_back(node, attachment))
    return attachment


def _apply(node: Node, request: Request, wanted: View, observed: View) -> None:
    node.apply(request.pod.namespace, diff(wanted, observed), node.parents(request.conf, request.pod))


def delete(node: Node, call: Call, conf: NetConf) -> None:
    """Detach a container; as often as the runtime likes, from our own records where there are any."""
    key = Key(conf.name, call.container_id, call.ifname)
    with node.locks.attachment(key):
        attachment = node.records.find_to_remove(key)
        if attachment and attachment.rebuilt and conf.delegate:
            attachment = replace(attachment, delegate=delegate.delegation(conf.delegate, conf.raw, call))
        if attachment:
            teardown.take_back(node, attachment)
        else:
            teardown.take_back_unknown(node, key, conf, call, _addresses_of(conf))


def _addresses_of(conf: NetConf) -> list[teardown.Address]:
    try:
        return [ip.address for ip in parse_result(conf.prev_result or {}).ips]
    except CniError:  # a prevResult that nobody can read must not keep a container from going away
        return []


def check(node: Node, call: Call, conf: NetConf) -> None:
    """Compare the kernel with what was recorded at ADD; raises Differs with each difference in the details."""
    if conf.prev_result is None:
        raise InvalidConfig("prevResult: missing; CHECK needs the result of ADD")
    key = Key(conf.name, call.container_id, call.ifname)
    attachment = node.records.find(key)
    if attachment is None:
        raise Differs(f"{call.container_id} has no {call.ifname} in network {conf.name}: nothing is recorded of it")
    with node.pod(call.netns, call.own_netns) as pod:
        found = [*differences(node, attachment, pod), *_untold(attachment, parse_result(conf.prev_result))]
    if found:
        raise Differs(f"{call.ifname}: {len(found)} difference(s): {found[0]}", "\n".join(found))
    if attachment.delegate:
        delegate.check(delegate.delegation(conf.delegate, conf.raw, call), call)


def differences(node: Node, attachment: Attachment, pod: Pod) -> Iterator[str]:
    """How kernel and leases differ from what is recorded of an attachment."""
    if attachment.sandbox.link is None:
        yield "an ADD was killed before it had made anything of it: add it again, or delete it"
        return
    sandbox, host = _limited(node, attachment, pod)
    assert sandbox.link is not None
    if attachment.vlan:
        from cni import vlan

        yield from vlan.differences(node, attachment.vlan)
    for change in diff(sandbox, pod.namespace.view(sandbox.link.name)):
        if not isinstance(change, SetSysctl):
            yield f"pod: {change}"
    if host.link:
        for change in diff(host, node.host.view(host.link.name)):
            if not isinstance(change, SetSysctl):
                yield f"host: {change}"
    if attachment.source_nat and not shim.source_nat_in_place(node):
        yield "host: nft table inet shimlan lacks the source NAT of shim.routes"
    from cni import leasing

    yield from leasing.differences(node, attachment)


def _limited(node: Node, attachment: Attachment, pod: Pod) -> tuple[View, View]:
    """The pod's and the host's end as they can be: if the MTU of the parent was lowered, its children follow."""
    parents = pod.namespace if attachment.parent_in_pod else node.host
    parent = parents.link_at(attachment.parent_index)
    if parent is None:
        return attachment.sandbox, attachment.host
    return limited(attachment.sandbox, parent.mtu), limited(attachment.host, parent.mtu)


def _untold(attachment: Attachment, told: Result) -> Iterator[str]:
    """What we made and prevResult does not tell: then the runtime believes in another attachment than we do."""
    link = attachment.sandbox.link
    if link is None:
        return
    if not any(entry.name == link.name and entry.sandbox for entry in told.interfaces):
        yield f"prevResult: has no interface {link.name}"
    for address in attachment.sandbox.addresses:
        if not any(ip.address == address.ip for ip in told.ips):
            yield f"prevResult: has no address {address}"


def status(node: Node, call: Call, conf: NetConf) -> None:
    """Whether an ADD could be served, by local and cheap means; raises NotAvailable (50)."""
    try:
        node.database.check_writable()
        if conf.ipam:
            node.leases(conf.ipam.data_dir).check_writable()
        if not conf.link_in_container:
            _check_parent(node, conf)
        if conf.ipam and conf.status_reports_exhaustion:
            from ipam import service

            service.check_room(node.leases(conf.ipam.data_dir), conf.ipam)
    except TryAgainLater:  # a store that is busy now, in a burst, is no reason to call the node unfit
        raise
    except CniError as error:
        raise NotAvailable(error.msg, error.details) from error
    if conf.delegate:
        delegate.forward(delegate.delegation(conf.delegate, conf.raw, call), "STATUS", call)


def _check_parent(node: Node, conf: NetConf) -> None:
    if conf.vlan:
        from cni import vlan

        vlan.check(conf, node.host)
    else:
        parent = kernel.find_parent(conf, node.host)
        check_parent(conf, parent)
        if conf.offload == "on":
            from cni import offload

            offload.check_required(node, parent)


def collect(node: Node, call: Call, conf: NetConf) -> None:
    """GC: take back what is not among the valid attachments of this network; errors are reported at the end."""
    errors: list[CniError] = []
    if conf.valid_attachments is not None:
        valid = {Key(conf.name, container_id, ifname) for container_id, ifname in conf.valid_attachments}
        for key in _known(node, conf):
            if key not in valid:
                node.log.info(f"collecting {key}")
                errors += attempt(teardown.take_back_locked, node, key, conf.ipam)
    if conf.delegate:
        errors += attempt(delegate.forward, delegate.delegation(conf.delegate, conf.raw, call), "GC", call)
    if errors:
        raise summary(errors)


def _known(node: Node, conf: NetConf) -> list[Key]:
    """Whose attachments are recorded, and who holds leases without: shimlan-ipam gave them, or an ADD was killed."""
    keys = [attachment.key for attachment in node.records.of_network(conf.name)]
    if conf.ipam:
        leases = node.leases(conf.ipam.data_dir).leases(conf.name)
        keys += [Key(conf.name, held.container_id, held.ifname) for held in leases if held.state == "held"]
    return list(dict.fromkeys(keys))
