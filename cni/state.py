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
    Vlan,
)
from cni.errors import IOFailure
from cni.frozen import frozen
from cni.inet import address, network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any, TypeVar

    from cni.database import Access, Database

    T = TypeVar("T")

FORMAT = 1  # higher where an older version would misunderstand; for what it may ignore, a new field is enough


OF_KEY = "network = ? AND container_id = ? AND ifname = ?"


class Records:
    """The attachments of one data directory, of the current boot."""

    def __init__(self, database: Database, boot_id: str, decoded: dict[str, Attachment] | None = None) -> None:
        """`decoded` remembers attachments by the text of their record, for those who will meet it again.

        Decoding one takes an eighth of a DEL. Whoever hands it in sees to it that it does not grow for ever.
        """
        self._database = database
        self._boot_id = boot_id
        self._decoded = decoded

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
                self._encode(attachment),
            ),
        )

    def revise(self, attachment: Attachment) -> None:
        """Record what is wanted from now on of an attachment that is recorded; it gets no newer by that."""
        key, shim = attachment.key, attachment.host.link
        self._execute(
            f"UPDATE attachments SET shim = ?, record = ? WHERE {OF_KEY}",
            (shim.name if shim else "", self._encode(attachment), key.network, key.container_id, key.ifname),
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
        return self.decode(row[0]) if row else None

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

    def in_vlan(self, device: str, but: Key | None = None) -> list[Attachment]:
        """The attachments that have a VLAN device as their parent, one of them aside."""
        # As `encode` writes it; within the texts of a record quotation marks have backslashes.
        attachments = self._select("instr(record, ?)", f'"vlan":{{"name":{quickjson.dumps(device)},')
        return [attachment for attachment in attachments if attachment.key != but]

    def forget(self, key: Key) -> None:
        """Remove the record, of whatever boot."""
        self._execute(f"DELETE FROM attachments WHERE {OF_KEY}", (key.network, key.container_id, key.ifname))

    def _select(self, condition: str, *values: str) -> list[Attachment]:
        return [self.decode(text) for text in self._texts(condition, *values)]

    def decode(self, text: str) -> Attachment:
        """What a record says; raises IOFailure when only a newer version can read it."""
        if self._decoded is None:
            return decode(text)
        known = self._decoded.get(text)
        if known is None:
            known = self._decoded[text] = decode(text)
        return known

    def _encode(self, attachment: Attachment) -> str:
        text = encode(attachment)
        if self._decoded is not None:
            self._decoded[text] = attachment
        return text

    def remember_only(self, texts: Collection[str]) -> None:
        """Forget what other records said."""
        if self._decoded is not None:
            for text in self._decoded.keys() - texts:
                self._decoded.pop(text, None)

    def _texts(self, condition: str, *values: str) -> list[str]:
        # Namespaces do not outlive a boot, so a record of an earlier one describes nothing that exists.
        statement = f"SELECT record FROM attachments WHERE boot_id = ? AND {condition} ORDER BY recorded_at"
        with self._database.reading() as connection:
            return [text for (text,) in connection.execute(statement, (self._boot_id, *values))]

    def _execute(self, statement: str, values: tuple[str | float, ...]) -> list[tuple[str]]:
        with self._database.transaction() as connection:
            return connection.execute(statement, values).fetchall()


@frozen
class Nic:
    """A parent that was asked to forward in hardware, or did so before: its name, and what became of that."""

    index: int
    name: str
    was_on: bool  # before we came
    refused: int  # children that it did not take, although it forwards in hardware


class Nics:
    """What is known of parents as to offload, since the machine started."""

    def __init__(self, database: Database, boot_id: str) -> None:
        self._database = database
        self._boot_id = boot_id
        self._fixed: set[tuple[int, str]] = set()

    def is_fixed(self, index: int, name: str) -> bool:
        """Whether a parent is known never to forward in hardware. Who stays asks the store once."""
        if (index, name) in self._fixed:
            return True
        statement = "SELECT 1 FROM nics WHERE parent_index = ? AND parent = ? AND boot_id = ? AND NOT switchable"
        with self._database.reading() as connection:
            found = connection.execute(statement, (index, name, self._boot_id)).fetchone() is not None
        if found:
            self._fixed.add((index, name))
        return found

    def note_fixed(self, index: int, name: str) -> None:
        """A parent will never forward in hardware."""
        self._put(index, name, switchable=False, was_on=False)
        self._fixed.add((index, name))

    def note_switchable(self, index: int, name: str, was_on: bool) -> None:
        """A parent is about to be asked, or did it before; what is known from the first time stays."""
        if not any((nic.index, nic.name) == (index, name) for nic in self.switchable()):
            self._put(index, name, switchable=True, was_on=was_on)

    def _put(self, index: int, name: str, switchable: bool, was_on: bool) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO nics VALUES (?, ?, ?, ?, ?, 0)",
                (index, name, self._boot_id, switchable, was_on),
            )

    def switchable(self) -> list[Nic]:
        """The parents of which there is more to tell."""
        statement = "SELECT parent_index, parent, was_on, refused FROM nics WHERE boot_id = ? AND switchable"
        with self._database.reading() as connection:
            rows = connection.execute(statement, (self._boot_id,)).fetchall()
        return [Nic(index, name, bool(was_on), refused) for index, name, was_on, refused in rows]

    def count_refused(self, index: int) -> None:
        """A parent did not take a child."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE nics SET refused = refused + 1 WHERE parent_index = ?", (index,))

    def forget(self, index: int) -> None:
        """Nothing is known of a parent any more."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM nics WHERE parent_index = ?", (index,))


def encode(attachment: Attachment) -> str:
    """An attachment as JSON."""
    return quickjson.dumps({"format": FORMAT, **_fields(attachment)}, compact=True, default=_plain)


def _fields(value: object) -> dict[str, Any]:
    """The fields of a @frozen object in the order of its class, whatever the order in which they were given."""
    names: tuple[str, ...] = value.__match_args__  # type: ignore[attr-defined]  # of every @frozen class
    return dict(zip(names, map(value.__dict__.__getitem__, names), strict=True))


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
        "vlan": _known(Vlan, record["vlan"]) if record.get("vlan") else None,
    }
    return _known(Attachment, record | parts)


def _known(kind: type[T], fields: dict[str, Any]) -> T:
    """A value of its fields; those that a newer version has added mean nothing to this one."""
    names: tuple[str, ...] = kind.__match_args__  # type: ignore[attr-defined]  # of every @frozen class
    return kind(**{name: value for name, value in fields.items() if name in names})


def _view(record: dict[str, Any]) -> View:
    return View(
        link=_link(record["link"]) if record["link"] else None,
        addresses=tuple(InterfaceAddress(address(r["ip"]), r["prefixlen"]) for r in record["addresses"]),
        routes=tuple(_route(r) for r in record["routes"]),
        neighbours=tuple(Neighbour(address(r["ip"]), r["mac"]) for r in record["neighbours"]),
        sysctls=tuple((name, value) for name, value in record["sysctls"]),
    )


def _link(record: dict[str, Any]) -> Link:
    return _known(Link, record | {"source_macs": tuple(record.get("source_macs", ()))})


def _reach(record: dict[str, Any] | None) -> Reach | None:
    if record is None:  # also that of a version that did not note it
        return None
    by_hand = tuple(map(address, record["by_hand"]))
    return _known(Reach, record | {"by_hand": by_hand, "routes": tuple(map(network, record["routes"]))})


def _route(record: dict[str, Any]) -> Route:
    addresses = {name: address(record[name]) if record[name] else None for name in ("via", "src")}
    return _known(Route, record | addresses | {"dst": network(record["dst"])})
