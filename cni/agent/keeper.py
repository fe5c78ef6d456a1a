"""The thread that keeps the host as wanted: it waits for the kernel, or for time to pass, and has passes made.

What a pass does is the business of `cni.agent.reconcile`, what calls for one that of `cni.agent.watch`.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress

from cni import netns
from cni.agent.background import Background
from cni.agent.directories import Directories
from cni.agent.events import CLEAN, Dirty
from cni.agent.journal import Journal
from cni.agent.metrics import Metrics
from cni.agent.reconcile import Pass, Reconciler
from cni.agent.watch import Watch
from cni.attachment import Attachment, Key
from cni.node import Node, Pod

Decoded = defaultdict[str, dict[str, Attachment]]  # by data directory, what `Records` remembers

EVERYTHING = Dirty(everything=True)
# Commands cause most of the events, and go first: passes rest in between, longer the longer they take, and wait while
# requests are being served. All of it together stays below 2 s, in which things are to be mended.
REST_SECONDS, LONGEST_REST_SECONDS, REST_PER_PASS = 0.2, 0.6, 10
COURTESY_SECONDS, LOOK_SECONDS = 0.6, 0.02
TROUBLE_SECONDS = 1.0  # before another try when the kernel cannot be heard
LATE_SECONDS = 120.0  # a pass that takes longer is stuck


class Keeper:
    """Keeps what the records of some data directories tell; any thread may call its functions."""

    def __init__(
        self,
        directories: Directories,
        journal: Journal,
        metrics: Metrics,
        decoded: Decoded,
        *,
        resync_seconds: float,
        grace_seconds: float,
    ) -> None:
        """Raises OSError when the kernel's events cannot be heard."""
        self._decoded = decoded
        self._journal = journal
        self._metrics = metrics
        self._resync_seconds = resync_seconds
        self._grace_seconds = grace_seconds
        self._background = Background()
        self._reconcilers: dict[str, Reconciler] = {}
        self._directories = directories
        self._requests: Callable[[], int] = lambda: 0
        self._attached: defaultdict[str, set[Key]] = defaultdict(set)  # by namespace, since we are here
        self._attaching = threading.Lock()
        self._watch = Watch()
        self._stopping = False
        self._last: dict[str, Pass] = {}
        self._passed = time.monotonic()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)

    def start(self, requests: Callable[[], int]) -> None:
        """Begin, with a pass over everything; `requests` tells how many are being served."""
        self._requests = requests
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End after the pass under way."""
        self._stopping = True
        self._watch.wake()
        self._thread.join(timeout)

    def follow(self, fd: int, key: Key) -> None:
        """Hear what happens in the namespace of a pod that was just attached; the descriptor stays the caller's.

        At once, while nobody else knows of the attachment yet, so nothing is missed; and no descriptor is kept for
        later, which would keep a namespace alive that is going away.
        """
        identity = netns.identity(fd)
        with self._attaching:
            self._attached[identity].add(key)
            with suppress(OSError):  # the kernel is short of something: the next pass over everything follows
                self._watch.follow(identity, fd)

    def forget(self, fd: int, key: Key) -> None:
        """Hear nothing more of the namespace of a pod that was detached, unless it has another interface of ours."""
        identity = netns.identity(fd)
        with self._attaching:
            if identity not in self._attached:  # attached before we were here, and perhaps others with it
                return
            self._attached[identity].discard(key)
            if not self._attached[identity]:
                del self._attached[identity]
                self._watch.forget(identity)

    def look_after(self, data_dir: str) -> None:
        """Keep what the records of another data directory tell as well."""
        if self._directories.add(data_dir):
            self._watch.wake(EVERYTHING)

    # --- what others may want to know --------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether the first pass is done."""
        return self._ready.is_set()

    @property
    def is_alive(self) -> bool:
        """Whether passes are made when they should be."""
        late = time.monotonic() - self._passed > self._resync_seconds + LATE_SECONDS
        return self._thread.is_alive() and not late

    @property
    def backed_off(self) -> int:
        """How many things are left as they are for a while, because somebody keeps undoing their repair."""
        return sum(len(last.backed_off) for last in self._last.values())

    # --- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        if not self._watch.hears_pods:
            self._journal.warning(
                f"no events of pods: their repair takes up to {self._resync_seconds:g} s; grant CAP_NET_BROADCAST"
            )
        dirty = EVERYTHING
        while not self._stopping:
            try:
                seconds = self._make_passes(dirty)
                self._ready.set()
                dirty = self._wait(seconds)
                self._let_requests_go_first()
            except OSError as error:
                self._journal.error(f"cannot hear the kernel: {error}; trying again, and looking at everything")
                dirty = self._open_ears()
            except Exception:  # noqa: BLE001  (a bug in a pass must not end all passes)
                self._journal.error(f"a pass failed; please report this:\n{traceback.format_exc()}")
                time.sleep(TROUBLE_SECONDS)
                dirty = EVERYTHING
        self._watch.close()

    def _wait(self, seconds: float) -> Dirty:
        """What the next pass is to look at; everything when it is time for that, nothing when a pass asked for it."""
        due = self._passed + self._resync_seconds
        until = min(due, time.monotonic() + seconds)
        dirty = CLEAN
        while not (dirty or self._stopping) and (left := until - time.monotonic()) > 0:
            dirty = self._watch.wait(left)
            self._lose(dirty.gone)
        return EVERYTHING if time.monotonic() >= due else dirty

    def _let_requests_go_first(self) -> None:
        until = time.monotonic() + COURTESY_SECONDS
        while self._requests() and time.monotonic() < until and not self._stopping:
            time.sleep(LOOK_SECONDS)

    def _lose(self, gone: Iterable[str]) -> None:
        with self._attaching:
            for identity in gone:
                self._attached.pop(identity, None)

    def _make_passes(self, dirty: Dirty) -> float:
        """A pass over each data directory; after how many seconds another one is worth while."""
        began = time.monotonic()
        for data_dir in self._directories():
            started = time.monotonic()
            last = self._reconciler(data_dir).run(dirty)
            self._last[data_dir] = last
            self._count(last, time.monotonic() - started)
        now = time.monotonic()
        if dirty.everything:
            self._passed = now
        time.sleep(min(max(REST_SECONDS, REST_PER_PASS * (now - began)), LONGEST_REST_SECONDS))
        return min(last.next_seconds for last in self._last.values())

    def _count(self, last: Pass, seconds: float) -> None:
        self._metrics.reconciled(seconds, len(last.errors))
        for repair in last.repairs:
            self._metrics.repaired(repair.kind)
        for finding in last.cleared:
            if finding.key is not None:
                self._metrics.stale_cleared()

    def _reconciler(self, data_dir: str) -> Reconciler:
        if data_dir not in self._reconcilers:
            self._reconcilers[data_dir] = Reconciler(
                Node(data_dir, self._journal, self._background, self._decoded[data_dir]),
                self._journal,
                grace_seconds=self._grace_seconds,
                visit=self._visit,
            )
        return self._reconcilers[data_dir]

    def _visit(self, pod: Pod) -> None:
        assert pod.namespace.fd is not None
        self._watch.follow(pod.id, pod.namespace.fd)

    def _open_ears(self) -> Dirty:
        while not self._stopping:
            time.sleep(TROUBLE_SECONDS)
            with suppress(OSError):
                heard = Watch()
                self._watch.close()
                self._watch = heard
                break
        return EVERYTHING
