"""Keeps hosts and pods as they are recorded to be: one pass is facts + records -> wanted -> diff -> apply.

Level-triggered: a pass asks what is there and not what has happened, so it is the same at start, after an event and
once in a while. It works beside commands, of this process and of others: it takes the lock of an attachment only to
mend that one, never waits for it, and leaves to the next pass what a command is busy with. What it must not repair
again and again, as somebody keeps undoing it, it leaves for a while (`cni.agent.backoff`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cni import offload, shim, survey
from cni.agent.backoff import Backoff
from cni.agent.events import Dirty
from cni.agent.facts import HostFacts
from cni.agent.findings import Findings, Repair
from cni.agent.repair import Repairer
from cni.attachment import Attachment, Facts, Key, Link, Parent, replan
from cni.errors import CniError, IOFailure, KernelRefused, TryAgainLater
from cni.frozen import frozen
from cni.log import Log
from cni.node import Node, Pod
from cni.sweep import Finding, Grace, gone, sweep

GRACE_SECONDS = 60.0
SWEEP_SECONDS = 600.0  # between two looks at all namespaces, if nothing calls for one before
BUSY_SECONDS = 0.5  # until the next pass is worth while, after one that met a command
TROUBLE_SECONDS = 5.0  # ... after one with errors
TOLD = 20  # repairs of one pass that get a line each in the log


@frozen
class Pass:
    """What one pass did, and what it left."""

    repairs: tuple[Repair, ...] = ()
    cleared: tuple[Finding, ...] = ()  # what was stale
    waiting: tuple[str, ...] = ()  # for an address, a parent, the end of a grace time ...
    backed_off: tuple[str, ...] = ()  # what somebody keeps undoing, and is left as it is for a while
    errors: tuple[str, ...] = ()
    next_seconds: float = 0.0  # until another pass is worth while even without an event


@frozen
class _Task:
    """An attachment as recorded and as wanted, the facts behind that, and where to look: on the host, in the pod."""

    attachment: Attachment
    wanted: Attachment
    facts: Facts | None  # None: its parent is gone, or in the pod
    on_host: bool
    within: bool

    @property
    def parent(self) -> Parent | None:
        """The link that carries it, where that is on the host."""
        return self.facts.parent if self.facts else None

    @property
    def is_changing(self) -> bool:
        """Whether something else is wanted than is recorded."""
        return self.wanted is not self.attachment


class Reconciler:
    """Makes passes, one at a time, in the network namespace of the thread that calls it; its `Node` is its own."""

    def __init__(
        self,
        node: Node,
        log: Log,
        clock: Callable[[], float] = time.monotonic,
        grace_seconds: float = GRACE_SECONDS,
        sweep_seconds: float = SWEEP_SECONDS,
        visit: Callable[[Pod], object] = lambda _: None,
    ) -> None:
        """`visit` is told of each pod that a pass enters, while it is open."""
        self._node = node
        self._log = log
        self._clock = clock
        self._visit = visit
        self._backoff = Backoff()
        self._is_first = True
        self._known: set[Key] = set()  # that were recorded at the last pass
        self._plans: dict[Key, tuple[Attachment, Facts | None, Attachment]] = {}
        self._unfinished: set[Key] = set()
        self._overdue = Dirty()
        self._grace = Grace(grace_seconds, clock)
        self._gone: set[Key] = set()
        self._sweep_seconds = sweep_seconds
        self._next_sweep = clock()
        self._last_errors: set[str] = set()

    def run(self, dirty: Dirty) -> Pass:
        """One pass over what is dirty and what the last pass did not finish; it never raises a CniError or OSError."""
        dirty |= self._overdue
        found = Findings()
        try:
            self._reconcile(dirty, found)
            self._overdue, self._unfinished = Dirty(host=found.host_unfinished), found.unfinished
        except (CniError, OSError) as error:  # of the store or of the host as a whole
            self._overdue, self._unfinished = dirty, self._unfinished | found.unfinished
            found.errors[f"this pass could not be finished: {error}"] = None
        self._tell(found)
        return self._pass(found)

    def _reconcile(self, dirty: Dirty, found: Findings) -> None:
        now = self._clock()
        self._backoff.forget_old(now)
        recorded = self._recorded(found)
        known, self._known = self._known, {attachment.key for attachment in recorded}
        if not (dirty.everything or self._is_first):
            recorded = self._settled(recorded, known, dirty, found)
        self._is_first = False
        host = HostFacts(self._node.host, recorded)
        repairer = Repairer(self._node, self._log, host, self._backoff, now, found, self._visit)
        self._mend_vlans(recorded, repairer, found)
        tasks = [self._task(attachment, host.facts(attachment), dirty, found) for attachment in recorded]
        self._plans = {task.attachment.key: (task.attachment, task.facts, task.wanted) for task in tasks}
        changing = [task for task in tasks if task.is_changing]
        stuck = self._revise(changing, repairer, found)
        self._mend([task for task in tasks if task not in stuck], repairer, found)
        if (dirty.everything or dirty.host or changing) and any(task.wanted.source_nat for task in tasks):
            self._translate_sources(self._recorded(found) if changing else recorded, repairer, found)
        if dirty.everything or dirty.host:
            self._forward_in_hardware(recorded, repairer, found)
        self._clear_stale(recorded, found)

    # --- what is wanted ----------------------------------------------------------------------------------------

    def _recorded(self, found: Findings) -> list[Attachment]:
        """The attachments on record, of which each was decoded once."""
        recorded = []
        records, texts = self._node.records, self._node.records.texts()
        for text in texts:
            try:
                recorded.append(records.decode(text))
            except CniError as error:
                found.errors[str(error)] = None
        records.remember_only(texts)
        return recorded

    def _settled(self, recorded: list[Attachment], known: set[Key], dirty: Dirty, found: Findings) -> list[Attachment]:
        """Without those recorded since the last pass: a command may just be making what they tell."""
        fresh = {attachment.key for attachment in recorded} - known
        found.unfinished |= fresh
        found.busy = found.busy or bool(fresh)
        found.host_unfinished = bool(fresh) and dirty.host
        return [attachment for attachment in recorded if attachment.key not in fresh]

    def _task(self, attachment: Attachment, facts: Facts | None, dirty: Dirty, found: Findings) -> _Task:
        key = attachment.key
        if attachment.leaving:
            return _Task(attachment, attachment, None, on_host=False, within=False)
        if attachment.parent_in_pod:
            facts, wanted, moved = None, attachment, False
        elif facts is None:
            found.waiting[f"{attachment.parent} is not there: its pods wait for it"] = None
            return _Task(attachment, attachment, None, on_host=False, within=False)
        else:
            wanted, moved = self._planned(attachment, facts)
        again = moved or dirty.everything or key in self._unfinished
        return _Task(
            attachment, wanted, facts, on_host=again or dirty.host, within=again or attachment.netns_id in dirty.pods
        )

    def _planned(self, attachment: Attachment, facts: Facts) -> tuple[Attachment, bool]:
        """What is wanted by these facts (itself if that is as recorded), and whether anything is new about it."""
        before = self._plans.get(attachment.key)
        if before and before[0] is attachment and before[1] == facts:
            return before[2], before[2] is not attachment
        wanted = replan(attachment, facts)
        if wanted == attachment:
            return attachment, before is not None and before[1] != facts
        return wanted, True

    # --- making it so ------------------------------------------------------------------------------------------

    def _revise(self, tasks: Sequence[_Task], repairer: Repairer, found: Findings) -> list[_Task]:
        """Let the records follow the facts; returns the tasks of which that was not possible.

        All records come before the first link, as a shim that nobody needs any more has to make room for its successor.
        """
        stuck = []
        abandoned: dict[Link, int] = {}
        for task in tasks:
            before, after = task.attachment.host.link, task.wanted.host.link
            done = False
            with _tolerant(task.attachment.key, found):
                done = repairer.revise(task.attachment, task.wanted)
            if not done:
                stuck.append(task)
            elif before and after and before.name != after.name:
                abandoned[before] = task.attachment.parent_index
        for link, parent_index in abandoned.items():
            shim.remove_unused(self._node, link, parent_index)
        if len(tasks) > len(stuck):
            self._log.info(f"{len(tasks) - len(stuck)} attachment(s) planned anew, for the host as it is now")
        return stuck

    def _mend_vlans(self, recorded: Sequence[Attachment], repairer: Repairer, found: Findings) -> None:
        """VLAN devices of ours come before what is on them."""
        ours = {each.vlan.name: each for each in recorded if each.vlan and each.vlan.ours and not each.leaving}
        for attachment in ours.values():
            with _tolerant(attachment.key, found):
                repairer.mend_vlan(attachment)

    def _mend(self, tasks: Sequence[_Task], repairer: Repairer, found: Findings) -> None:
        """Let the kernel follow the records. One that cannot be helped does not stop the others."""
        for task in tasks:
            with _tolerant(task.wanted.key, found):
                if task.is_changing or not _is_whole(task, repairer):
                    repairer.mend(task.wanted, task.parent)

    def _translate_sources(self, recorded: Sequence[Attachment], repairer: Repairer, found: Findings) -> None:
        """The source NAT of `shim.routes`; of several attachments behind one shim the newest decides."""
        rules = [rule for attachment in reversed(recorded) for rule in attachment.source_nat]
        try:
            repairer.translate_sources(rules)
        except KernelRefused as error:  # by a kernel without nftables, say
            found.host_unfinished = True
            found.errors[f"source NAT for shim.routes: {error}"] = None

    def _forward_in_hardware(self, recorded: Sequence[Attachment], repairer: Repairer, found: Findings) -> None:
        """The feature of NICs that shimlan has switched on, as long as they carry something."""
        for nic in self._node.nics.switchable():
            link = self._node.host.link_at(nic.index)
            if link and any(offload.is_child(each, nic.index) for each in recorded):
                try:
                    repairer.forward_in_hardware(nic, link.name)
                except KernelRefused as error:
                    found.host_unfinished = True
                    found.errors[str(error)] = None

    # --- what is stale -----------------------------------------------------------------------------------------

    def _clear_stale(self, recorded: Sequence[Attachment], found: Findings) -> None:
        """Look at all namespaces, which takes long, only if something has been stale for long, or once in a while."""
        now = self._clock()
        self._note_gone(recorded, found)
        if now < min(self._next_sweep, self._grace.next_end()):
            return
        outcome = sweep(self._node, grace=self._grace)
        self._grace.looked(now)
        self._next_sweep = now + self._sweep_seconds
        found.cleared += outcome.cleared
        found.waiting.update(dict.fromkeys(outcome.left))
        found.errors.update(dict.fromkeys(outcome.errors))

    def _note_gone(self, recorded: Sequence[Attachment], found: Findings) -> None:
        now_gone = {each.key for each in recorded if survey.standing(each).state == survey.GONE}
        for key in now_gone:
            if not self._grace.is_over(gone(key)):
                found.waiting[f"{gone(key)}: it is cleared when that has lasted {self._grace.seconds:g} s"] = None
        for key in self._gone - now_gone:
            self._grace.spare(gone(key))
        self._gone = now_gone

    # --- what is told ------------------------------------------------------------------------------------------

    def _tell(self, found: Findings) -> None:
        for repair in found.repairs[:TOLD]:
            self._log.info(f"repaired: {repair}")
        if len(found.repairs) > TOLD:
            self._log.info(f"repaired: {len(found.repairs) - TOLD} more")
        for finding in found.cleared:
            self._log.info(f"cleared: {finding.what}")
        if found.fights:
            self._log.warning(_of_fights(found.fights))
        for error in found.errors:
            if error not in self._last_errors:
                self._log.error(error)
        self._last_errors = set(found.errors)

    def _pass(self, found: Findings) -> Pass:
        now = self._clock()
        next_sweep = min(self._next_sweep, self._grace.next_end()) - now
        waits = [next_sweep if next_sweep > 0 else TROUBLE_SECONDS, *found.backed_off.values()]
        waits += [BUSY_SECONDS] if found.busy else []
        waits += [TROUBLE_SECONDS] if found.errors else []
        return Pass(
            repairs=tuple(found.repairs),
            cleared=tuple(found.cleared),
            waiting=tuple(found.waiting),
            backed_off=tuple(found.backed_off),
            errors=tuple(found.errors),
            next_seconds=min(waits),
        )


def _is_whole(task: _Task, repairer: Repairer) -> bool:
    on_host = not task.on_host or repairer.is_whole_on_host(task.wanted)
    return on_host and (not task.within or repairer.is_whole_within(task.wanted, task.parent))


@contextmanager
def _tolerant(key: Key, found: Findings) -> Iterator[None]:
    """An attachment that cannot be helped does not stop the others; a store or a lock that fails one fails them all."""
    try:
        yield
    except (IOFailure, TryAgainLater):
        raise
    except (CniError, OSError) as error:
        found.fail(key, error)


def _of_fights(fights: Sequence[str]) -> str:
    others = f" (and {len(fights) - 1} more)" if len(fights) > 1 else ""
    return (
        f"somebody keeps undoing `{fights[0]}`{others}: it is left as it is for a while each time from now on. If that "
        "is NetworkManager or systemd-networkd, have it leave shim* unmanaged (docs/host-shim.md); in a pod it is a "
        "program of the pod"
    )
