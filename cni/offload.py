"""Offload: having the NIC forward for pods in hardware, where it can, and telling whether it does.

The kernel offers a child to the driver when it comes *up*, and a driver that declines leaves it in software without a
word. So the feature is switched on before, once per NIC, and afterwards the child is looked for where those in software
are. What the NIC had before is remembered, to be put back when shimlan goes. docs/offload.md tells the whole story.
"""

from __future__ import annotations

import errno
from contextlib import contextmanager

from cni import ethtool, shim
from cni.errors import KernelRefused, ParentUnusable
from cni.frozen import frozen
from cni.netlink import NetlinkError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from cni.attachment import Attachment, Key, Parent
    from cni.ethtool import Forwarding
    from cni.kernel import Namespace
    from cni.node import Node
    from cni.state import Nic

WITHOUT = "it has no l2-fwd-offload that could be switched on"
UNDER_XDP = "an XDP program runs on it, which would not see their frames"
IDLE = "its driver acknowledges that l2-fwd-offload is to be on, and leaves it off"
ADVICE = 'choose another NIC, or "offload": "auto"'


@frozen
class Use:
    """A NIC that can forward for pods, and how many children it does that for.

    `refused` counts the children that came up in software although the feature was on, since the machine started: all
    slots of the NIC were taken, as a rule.
    """

    parent: str
    active: bool
    was_on: bool
    hardware: int
    software: int
    refused: int


@contextmanager
def offloading(node: Node, attachment: Attachment, parent: Parent, required: bool) -> Iterator[None]:
    """Have the NIC forward for the child that comes up in the `with` block, if it can.

    Raises ParentUnusable when it cannot and that is required.
    """
    obstacle = _prepare(node, attachment, parent)
    if obstacle and required:
        raise _impossible(parent, obstacle)
    yield
    if obstacle:
        node.log.debug(f"{parent.name} does not forward in hardware: {obstacle}")
    else:
        _tell(node, attachment)


def check_required(node: Node, parent: Parent) -> None:
    """Raise ParentUnusable when a NIC could not do what `"offload": "on"` asks."""
    if obstacle := _obstacle(node, parent, feature_of(parent.index)):
        raise _impossible(parent, obstacle)


def obstacle_in(feature: Forwarding, under_xdp: bool) -> str:
    """Why a NIC cannot forward in hardware, "" if it can.

    ixgbe declines children while XDP runs in its driver, and elsewhere frames would go past the program.
    """
    if not (feature.active or feature.switchable):
        return WITHOUT
    return UNDER_XDP if under_xdp and not feature.active else ""


def feature_of(index: int) -> Forwarding:
    """The feature of a link of the host. Raises KernelRefused; a link that is gone has none."""
    try:
        return ethtool.forwarding(index)
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return ethtool.Forwarding()
        raise KernelRefused(f"cannot read the features of a NIC: {error.strerror}") from error


def switch(parent: str, index: int, on: bool) -> bool:
    """Switch the feature of a NIC; whether that had the effect. Raises KernelRefused."""
    try:
        ethtool.switch(index, on)
    except NetlinkError as error:
        raise KernelRefused(f"{command(parent, on)}: {error.strerror}") from error
    return feature_of(index).active is on


def switch_on(parent: str, index: int) -> None:
    """Switch the feature on. Raises KernelRefused also when that had no effect."""
    if not switch(parent, index, on=True):
        raise KernelRefused(f"{command(parent, on=True)}: {IDLE}")


def command(parent: str, on: bool) -> str:
    """What `switch` does, as the administrator would."""
    return f"ethtool -K {parent} {ethtool.FEATURE} {'on' if on else 'off'}"


def _impossible(parent: Parent, obstacle: str) -> ParentUnusable:
    return ParentUnusable(f"offload: {parent.name} cannot forward for pods in hardware: {obstacle}; {ADVICE}")


# --- before the child comes up -----------------------------------------------------------------------------------


def _prepare(node: Node, attachment: Attachment, parent: Parent) -> str:
    """Have the feature on, with the shim outside of the hardware; why that is not possible, else "".

    The shim comes first: what is up before the feature is on takes no slot, whatever the driver. Who only wishes for
    offload is served without when the kernel refuses something.
    """
    try:
        feature = feature_of(parent.index)
        if obstacle := _obstacle(node, parent, feature):
            return obstacle
        has_shim = shim.ensure(node, attachment) or not attachment.host.link
        node.nics.note_switchable(parent.index, parent.name, was_on=feature.active)
        if feature.active and has_shim:
            return ""
        with node.locks.shim(parent.index):
            return _switch_on(node, attachment, parent)
    except KernelRefused as error:
        return error.msg


def _obstacle(node: Node, parent: Parent, feature: Forwarding) -> str:
    """What stands in the way of a feature; a NIC that never will is not to be asked again."""
    obstacle = obstacle_in(feature, not feature.active and feature.switchable and node.host.runs_xdp(parent.index))
    if obstacle == WITHOUT:
        node.nics.note_fixed(parent.index, parent.name)
    return obstacle


def _switch_on(node: Node, attachment: Attachment, parent: Parent) -> str:
    """Switch the feature on; or, where it was on when the shim came, see to that. The lock of the shim is held."""
    if not feature_of(parent.index).active:
        node.log.debug(command(parent.name, on=True))
        if switch(parent.name, parent.index, on=True):
            return ""
        node.nics.forget(parent.index)
        return IDLE
    if attachment.host.link and _is_alone(node, attachment):
        _keep_shim_out(node, attachment, parent)
    return ""


def _keep_shim_out(node: Node, attachment: Attachment, parent: Parent) -> None:
    """Free the slot of a shim that a driver has taken in spite of its two queues.

    Drivers that do that (fm10k) leave the children that they have alone when the feature is switched; the lock of the
    shim is held.
    """
    link = attachment.host.link
    assert link is not None
    if link.mac in node.host.received_macs(parent.index):
        return
    node.log.debug(f"{parent.name} has given {link.name} a slot: making it anew, with the feature off meanwhile")
    switch(parent.name, parent.index, on=False)
    shim.make_anew(node, attachment.host)
    switch(parent.name, parent.index, on=True)


def _is_alone(node: Node, attachment: Attachment) -> bool:
    """Whether no other attachment hangs on the same parent."""
    others = (each for each in node.records.all() if each.key != attachment.key)
    return not any(is_child(each, attachment.parent_index) for each in others)


# --- afterwards --------------------------------------------------------------------------------------------------


def _tell(node: Node, attachment: Attachment) -> None:
    """Log whether a child that has come up is in the hands of the NIC, and count it if not."""
    parent, ifname = attachment.parent, attachment.key.ifname
    if in_hardware(node.host.received_macs(attachment.parent_index), attachment):
        node.log.debug(f"{parent} forwards for {ifname} in hardware")
        return
    node.nics.count_refused(attachment.parent_index)
    node.log.warning(
        f"{parent} declines to forward for {ifname} in hardware, as when all its slots are taken: software"
    )


def in_hardware(received: Collection[str], attachment: Attachment) -> bool:
    """Whether the NIC has a child that is up in its own hands; `received` are the MACs that others have it receive."""
    return attachment.mac not in received


def is_child(attachment: Attachment, parent_index: int) -> bool:
    """Whether an attachment hangs on that link of the host."""
    return (
        attachment.parent_index == parent_index and not attachment.parent_in_pod and attachment.sandbox.link is not None
    )


def has_child(node: Node, parent_index: int, mac: str) -> bool:
    """Whether a NIC has a child with that MAC in its own hands: it is on no list. Raises KernelRefused."""
    return feature_of(parent_index).active and node.host.is_taken(parent_index, mac)


def children(namespace: Namespace, nics: Iterable[Nic], recorded: Iterable[Attachment]) -> dict[Key, bool]:
    """The attachments on NICs that can forward in hardware, and whether they do; one that is down counts as such."""
    received = {nic.index: namespace.received_macs(nic.index) for nic in nics}
    return {
        each.key: in_hardware(received[each.parent_index], each)
        for each in recorded
        if each.parent_index in received and is_child(each, each.parent_index)
    }


def usage(namespace: Namespace, nics: Iterable[Nic], recorded: Iterable[Attachment]) -> Iterator[Use]:
    """How each NIC that can forward in hardware is used. Raises KernelRefused."""
    nics, recorded = list(nics), list(recorded)
    where = children(namespace, nics, recorded)
    for nic in nics:
        there = [where[each.key] for each in recorded if is_child(each, nic.index)]
        hardware = sum(there)
        active = feature_of(nic.index).active
        yield Use(nic.name, active, nic.was_on, hardware, len(there) - hardware, nic.refused)


def restore(node: Node) -> tuple[str, ...]:
    """Give NICs back the setting that they had before shimlan; what was done, as commands.

    For the end of all: when shimlan is uninstalled. A NIC that still carries attachments is left as it is, as some
    drivers cut off the children that they have in their hands. Raises KernelRefused; to be repeated then.
    """
    done = []
    for nic in node.nics.switchable():
        with node.locks.shim(nic.index):
            if any(is_child(each, nic.index) for each in node.records.all()):
                continue
            if not nic.was_on and feature_of(nic.index).active:
                switch(nic.name, nic.index, on=False)
                done.append(command(nic.name, on=False))
            node.nics.forget(nic.index)
    return tuple(done)
