"""What the commands work on: this machine's kernel, store, locks and log, opened when first needed.

One `Node` serves one data directory. The one-shot plugin makes one per call; a resident process keeps it.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, suppress

from cni import netns
from cni.database import Database, boot_id
from cni.errors import InvalidEnvironment, NetnsUnusable
from cni.frozen import frozen
from cni.kernel import Namespace
from cni.locks import Locks
from cni.state import Records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cni.config import NetConf
    from cni.diff import Change
    from cni.log import Log
    from ipam.store import LeaseStore


@frozen
class Pod:
    """A pod's namespace, opened."""

    path: str
    id: str
    namespace: Namespace


class Node:
    """The shell around the commands: one door each to kernel, records, leases and locks."""

    def __init__(self, data_dir: str, log: Log) -> None:
        """Make the data directory; if that is impossible, whoever needs it first says so, STATUS in its own words."""
        self.data_dir = data_dir
        self.log = log
        with suppress(OSError):
            os.makedirs(data_dir, mode=0o700, exist_ok=True)
        self.database = Database(data_dir)
        self._databases = {data_dir: self.database}  # kept open: closing one costs more than using it
        self.records = Records(self.database, boot_id())
        self.locks = Locks(data_dir)
        self.host = Namespace()

    def leases(self, data_dir: str) -> LeaseStore:
        """The leases of a data directory, which may be another than that of the attachments."""
        from ipam.store import LeaseStore  # networks with a delegate or without addresses need no allocator

        return LeaseStore(self._databases.setdefault(data_dir, Database(data_dir)))

    def parents(self, conf: NetConf, pod: Pod) -> Namespace:
        """Where the parent lives."""
        return pod.namespace if conf.link_in_container else self.host

    def apply(self, namespace: Namespace, changes: Sequence[Change], parents: Namespace) -> None:
        """Apply changes of one link (see `Namespace.apply`), each of which is told to the log."""
        for change in changes:
            self.log.debug(str(change))
        namespace.apply(changes, parents)

    @contextmanager
    def pod(self, path: str, own_allowed: bool) -> Iterator[Pod]:
        """The pod's namespace; raises NetnsUnusable, or InvalidEnvironment when it is the plugin's own."""
        fd = netns.open_netns(path)
        try:
            if not own_allowed and netns.is_own(fd):
                raise InvalidEnvironment(
                    f"CNI_NETNS: {path} is the plugin's own network namespace; CNI_NETNS_OVERRIDE=1 if that is meant"
                )
            namespace = Namespace(fd)
            try:
                yield Pod(path, netns.identity(fd), namespace)
            finally:
                namespace.close()
        finally:
            os.close(fd)

    @contextmanager
    def pod_if_there(self, path: str, own_allowed: bool, id: str = "") -> Iterator[Pod | None]:
        """The pod's namespace if it still exists, and is the one with that identity where one is given."""
        with ExitStack() as stack:
            pod = None
            with suppress(NetnsUnusable, InvalidEnvironment):
                pod = stack.enter_context(self.pod(path, own_allowed))
            yield pod if pod and id in ("", pod.id) else None
