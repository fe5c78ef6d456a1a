"""What the commands work on: this machine's kernel, store, locks and log, opened when first needed.

One `Node` serves one data directory. The one-shot plugin makes one per call; a resident process keeps it.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, suppress

from cni import deletion, directories, netns
from cni.database import Database, boot_id
from cni.errors import InvalidEnvironment, NetnsUnclear, NetnsUnusable
from cni.frozen import frozen
from cni.kernel import Namespace
from cni.locks import Locks
from cni.state import Nics, Records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from cni.attachment import Attachment
    from cni.config import NetConf
    from cni.deletion import Background
    from cni.diff import Change
    from cni.log import Log
    from ipam.store import LeaseStore


@frozen
class Handed:
    """A namespace that the caller has opened for us, or why it could not: we may see another file system than he."""

    path: str
    fd: int | None
    errno: int = 0


@frozen
class Pod:
    """A pod's namespace, opened."""

    path: str
    id: str
    namespace: Namespace

    @property
    def netns(self) -> tuple[str, str, int]:
        """What is recorded of it: path, identity and cookie."""
        return self.path, self.id, self.namespace.cookie()


class Node:
    """The shell around the commands: one door each to kernel, records, leases and locks."""

    def __init__(
        self,
        data_dir: str,
        log: Log,
        background: Background = deletion.in_child,
        decoded: dict[str, Attachment] | None = None,
    ) -> None:
        """Make the data directory; if that is impossible, whoever needs it first says so, STATUS in its own words.

        `decoded` is what `Records` remembers.
        """
        self.data_dir = data_dir
        self.log = log
        with suppress(OSError):
            os.makedirs(data_dir, mode=0o700, exist_ok=True)
        self.database = Database(data_dir)
        self._databases = {data_dir: self.database}  # kept open: closing one costs more than using it
        self._boot_id = boot_id()
        self.records = Records(self.database, self._boot_id, decoded)
        self.nics = Nics(self.database, self._boot_id)
        self.locks = Locks(data_dir)
        self.background = background
        self.host = Namespace(background=background)
        self._own_id = netns.own_identity()
        self._handed = Handed("", None)

    def serving(self, log: Log, host: Namespace, handed: Handed) -> Node:
        """The same node for one call: with a log and a socket of its own, and the namespace that came with it."""
        node = Node.__new__(Node)
        node.__dict__.update(self.__dict__, log=log, host=host, _handed=handed)
        return node

    def leases(self, data_dir: str) -> LeaseStore:
        """The leases of a data directory, which may be another than that of the attachments."""
        from ipam.store import LeaseStore  # networks with a delegate or without addresses need no allocator

        return LeaseStore(self._opened(data_dir), self._boot_id)

    def siblings(self) -> Iterator[Records]:
        """What other data directories of this host have recorded, as far as they are known here."""
        for data_dir in directories.others(self.data_dir):
            yield Records(self._opened(data_dir), self._boot_id)

    def _opened(self, data_dir: str) -> Database:
        return self._databases.get(data_dir) or self._databases.setdefault(data_dir, Database(data_dir))

    def parents(self, conf: NetConf, pod: Pod) -> Namespace:
        """Where the parent lives."""
        return pod.namespace if conf.link_in_container else self.host

    def apply(self, namespace: Namespace, changes: Sequence[Change], parents: Namespace, index: int = 0) -> None:
        """Apply changes of one link (see `Namespace.apply`), each of which is told to the log."""
        if self.log.is_detailed:
            for change in changes:
                self.log.debug(str(change))
        namespace.apply(changes, parents, index)

    @contextmanager
    def pod(self, path: str, own_allowed: bool) -> Iterator[Pod]:
        """The pod's namespace; raises NetnsUnusable, or InvalidEnvironment when it is the plugin's own."""
        fd = self._open(path)
        try:
            identity = netns.identity(fd)
            if not own_allowed and identity == self._own_id:
                raise InvalidEnvironment(
                    f"CNI_NETNS: {path} is the plugin's own network namespace; CNI_NETNS_OVERRIDE=1 if that is meant"
                )
            namespace = Namespace(fd, self.background)
            try:
                yield Pod(path, identity, namespace)
            finally:
                namespace.close()
        finally:
            os.close(fd)

    def _open(self, path: str) -> int:
        handed = self._handed
        if path != handed.path or not path:
            return netns.open_netns(path)
        if handed.fd is None:
            raise netns.not_to_be_opened(path, handed.errno)
        try:
            return os.dup(handed.fd)
        except OSError as error:
            raise netns.not_to_be_opened(path, error.errno or 0) from error

    @contextmanager
    def pod_if_there(self, path: str, own_allowed: bool, id: str = "", cookie: int = 0) -> Iterator[Pod | None]:
        """The pod's namespace if it still exists, and is the one with that identity and cookie where they are given.

        Raises NetnsUnclear when that cannot be told: what is taken for gone is forgotten, and its addresses given away.
        """
        with ExitStack() as stack:
            pod = None
            try:
                pod = stack.enter_context(self.pod(path, own_allowed))
            except NetnsUnclear:
                raise
            except (NetnsUnusable, InvalidEnvironment):
                pass
            yield pod if pod and id in ("", pod.id) and cookie in (0, pod.namespace.cookie()) else None

    def pod_of(self, attachment: Attachment) -> AbstractContextManager[Pod | None]:
        """The namespace that an attachment was made in, if it still exists."""
        return self.pod_if_there(attachment.netns, True, attachment.netns_id, attachment.netns_cookie)
