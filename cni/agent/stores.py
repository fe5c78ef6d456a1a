"""What the stores of all data directories tell when somebody asks for metrics."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

from cni import offload
from cni.database import FILE, Database, boot_id
from cni.kernel import Namespace
from cni.state import Nics, Records
from ipam.store import LeaseStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cni.offload import Use
    from ipam.ledger import RangeUse


class Stores:
    """The stores of the directories that a function names, opened when first asked; any of these may raise CniError."""

    def __init__(self, directories: Callable[[], Iterable[str]]) -> None:
        self._directories = directories
        self._boot = boot_id()
        self._opened: dict[str, Database] = {}

    def attachments(self) -> Counter[str]:
        """How many are recorded, by network."""
        counts: Counter[str] = Counter()
        for database in self._databases():
            counts.update(Records(database, self._boot).counts())
        return counts

    def pools(self) -> list[RangeUse]:
        """How ranges are used; of two directories that have the same range of the same network the first counts."""
        uses = (use for database in self._databases() for use in LeaseStore(database, self._boot).ranges())
        found: dict[tuple[object, ...], RangeUse] = {}
        for use in uses:
            found.setdefault((use.network, use.start, use.end), use)
        return [*found.values()]

    def nics(self) -> tuple[Use, ...]:
        """How NICs that can forward in hardware are used; most hosts have none."""
        databases = [*self._databases()]
        nics = {nic.index: nic for database in databases for nic in Nics(database, self._boot).switchable()}
        if not nics:
            return ()
        recorded = [each for database in databases for each in Records(database, self._boot).all()]
        with closing(Namespace()) as host:
            return tuple(offload.usage(host, nics.values(), recorded))

    def _databases(self) -> Iterator[Database]:
        """Those that there are: to look must not make one."""
        for directory in self._directories():
            if os.path.exists(f"{directory}/{FILE}"):
                yield self._opened.setdefault(directory, Database(directory))
