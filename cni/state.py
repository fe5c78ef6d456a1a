"""Durable records of attachments: written before the kernel is touched, forgotten when nothing is left of them.

A record holds the whole wanted state, so that DEL, CHECK and the clean-up after a crash need neither the configuration
nor the runtime's memory. Its JSON is pinned by a golden test: fields are only ever added.
"""

from __future__ import annotations

import time

from cni import quickjson
from cni.attachment import (
    Attachment,
    Delegation,
    InterfaceAddress,
    Key,
    Leasing,
    Link,
    Neighbour,
    Reach,
    Route,
    SourceNat,
    View,
)
from cni.errors import IOFailure
from cni.inet import address, network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from cni.database import Access, Database

    T = TypeVar("T")

FORMAT = 1  # higher where an older version would misunderstand; for what it may ignore, a new field is enough


OF_KEY = "network = ? AND container_id = ? AND ifname = ?"


class Records:
    """The attachments of one data directory, of the current boot."""

    def __init__(self, database: Database, boot_id: str) -> None:
        self._database = database
        self._boot_id = boot_id

    def put(self, attachment: Attachment) -> None:
        """Record what is wanted, in place of what was wanted before for the same key."""
        key, shim = attachment.key, attachment.host.link
        self._execute(
            "INSERT OR REPLACE INTO attachments (network, container_id, ifname, boot_id, recorded_at, shim, record) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                key.network,
                key.container_id,
                key.ifname,
                self._boot_id,
                time.clock_gettime(time.CLOCK_BOOTTIME),
                shim.name if shim else "",
                encode(attachment),
            ),
        )

    def revise(self, attachment: Attachment) -> None:
        """Record what is wanted from now on of an attachment that is recorded; it gets no newer by that."""
        key, shim = attachment.key, attachment.host.link
        self._execute(
            f"UPDATE attachments SET shim = ?, record = ? WHERE {OF_KEY}",
            (shim.name if shim else "", encode(attachment), key.network, key.container_id, key.ifname),
        )

    def find(self, key: Key) -> Attachment | None:
        """The attachment of that key, if it was made since the machine started."""
        return self._find(key, self._database.reading())

    def find_to_remove(self, key: Key) -> Attachment | None:
        """The same, once the store can be written: nothing shall be removed that cannot be forgotten."""
        return self._find(key, self._database.transaction())

    def _find(self, key: Key, access: Access) -> Attachment | None:
        statement = f"SELECT record FROM attachments WHERE boot_id = ? AND {OF_KEY}"
        with access as connection:
            row = connection.execute(statement, (self._boot_id, key.network, key.container_id, key.ifname)).fetchone()
        return decode(row[0]) if row else None

    def of_network(self, network: str) -> list[Attachment]:
        """The attachments of one network."""
        return self._select("network = ?", network)

    def all(self) -> list[Attachment]:
        """The attachments of all networks, the newest last."""
        return self._select("1")

    def counts(self) -> dict[str, int]:
        """How many attachments each network has."""
        statement = "SELECT network, count(*) FROM attachments WHERE boot_id = ? GROUP BY network"
        with self._database.reading() as connection:
            return dict(connection.execute(statement, (self._boot_id,)).fetchall())

    def texts(self) -> list[str]:
        """The same as they are stored, for those who remember what they decoded."""
        return self._texts("1")

    def of_earlier_boots(self) -> list[Attachment]:
        """Records from before the machine started anew: nothing of that exists but what delegates have kept."""
        rows = self._execute("SELECT record FROM attachments WHERE boot_id <> ?", (self._boot_id,))
        return [decode(record) for (record,) in rows]

    def behind(self, shim: str) -> list[Attachment]:
        """The attachments that use a shim."""
        return self._select("shim = ?", shim)

    def is_needed(self, shim: str, but: Key | None = None) -> bool:
        """Whether any attachment uses a shim, one of them aside."""
        others = f"AND NOT ({OF_KEY})" if but else ""
        names = (but.network, but.container_id, but.ifname) if but else ()
        statement = f"SELECT 1 FROM attachments WHERE boot_id = ? AND shim = ? {others} LIMIT 1"
        with self._database.reading() as connection:
            return connection.execute(statement, (self._boot_id, shim, *names)).fetchone() is not None

    def forget(self, key: Key) -> None:
        """Remove the record, of whatever boot."""
        self._execute(f"DELETE FROM attachments WHERE {OF_KEY}", (key.network, key.container_id, key.ifname))

    def _select(self, condition: str, *values: str) -> list[Attachment]:
        return [decode(text) for text in self._texts(condition, *values)]

    def _texts(self, condition: str, *values: str) -> list[str]:
        # Namespaces do not outlive a boot, so a record of an earlier one describes nothing that exists.
        statement = f"SELECT record FROM attachments WHERE boot_id = ? AND {condition} ORDER BY recorded_at"
        with self._database.reading() as connection:
            return [text for (text,) in connection.execute(statement, (self._boot_id, *values))]

    def _execute(self, statement: str, values: tuple[str | float, ...]) -> list[tuple[str]]:
        with self._database.transaction() as connection:
            return connection.execute(statement, values).fetchall()


def encode(attachment: Attachment) -> str:
    """An attachment as JSON."""
    return quickjson.dumps({"format": FORMAT, **_fields(attachment)}, compact=True, default=_plain)


def _fields(value: object) -> dict[str, Any]:
    names: tuple[str, ...] = value.__match_args__  # type: ignore[attr-defined]  # of every @frozen class
    fields = value.__dict__
    return {name: fields[name] for name in names}


def _plain(value: object) -> object:
    """What JSON knows instead of a value of ours, or of an address."""
    return _fields(value) if hasattr(value, "__match_args__") else str(value)


def decode(text: str) -> Attachment:
    """An attachment from its JSON; raises IOFailure when only a newer version can read it."""
    record = quickjson.loads(text)
    if record["format"] > FORMAT:
        raise IOFailure(f"a record of format {record['format']} (we know {FORMAT}): a newer shimlan wrote it, upgrade")
    leasing, delegate = record["leasing"], record["delegate"]
    parts = {
        "key": _known(Key, record["key"]),
        "sandbox": _view(record["sandbox"]),
        "host": _view(record["host"]),
        "source_nat": tuple(SourceNat(r["shim"], address(r["address"])) for r in record["source_nat"]),
        "leasing": _known(Leasing, leasing) if leasing else None,
        "delegate": _known(Delegation, delegate) if delegate else None,
        "reach": _reach(record.get("reach")),
    }
    return _known(Attachment, record | parts)


def _known(kind: type[T], fields: dict[str, Any]) -> T:
    """A value of its fields; those that a newer version has added mean nothing to this one."""
    names: tuple[str, ...] = kind.__match_args__  # type: ignore[attr-defined]  # of every @frozen class
    return kind(**{name: value for name, value in fields.items() if name in names})


def _view(record: dict[str, Any]) -> View:
    return View(
        link=_known(Link, record["link"]) if record["link"] else None,
        addresses=tuple(InterfaceAddress(address(r["ip"]), r["prefixlen"]) for r in record["addresses"]),
        routes=tuple(_route(r) for r in record["routes"]),
        neighbours=tuple(Neighbour(address(r["ip"]), r["mac"]) for r in record["neighbours"]),
        sysctls=tuple((name, value) for name, value in record["sysctls"]),
    )


def _reach(record: dict[str, Any] | None) -> Reach | None:
    if record is None:  # also that of a version that did not note it
        return None
    by_hand = tuple(map(address, record["by_hand"]))
    return _known(Reach, record | {"by_hand": by_hand, "routes": tuple(map(network, record["routes"]))})


def _route(record: dict[str, Any]) -> Route:
    addresses = {name: address(record[name]) if record[name] else None for name in ("via", "src")}
    return _known(Route, record | addresses | {"dst": network(record["dst"])})
