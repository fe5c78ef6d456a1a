"""What doctor finds out about records, leases, the agent and the plugins. It changes none of them.

The store is read in a copy in memory: whatever is done with that, and it is a lot when the store is old or of an
earlier boot, nobody else notices.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING
from urllib.parse import quote

from cni.config import NetConf
from cni.ctl import asking
from cni.ctl.doctor.facts import Agent, Executables, Store
from cni.database import (
    ADVICE,
    FILE,
    FULL,
    MIGRATIONS,
    READONLY,
    SCHEMA_VERSION,
    TABLES,
    CorruptStore,
    boot_id,
    explained,
)
from cni.errors import CniError, IOFailure, TryAgainLater
from ipam import service
from ipam.config import IpamConf
from ipam.ledger import Ledger, read_leases, renew
from ipam.pools import pools_of, span_of
from ipam.store import boot_time

if TYPE_CHECKING:
    from ipam.allocate import Usage

Address = IPv4Address | IPv6Address

BUSY_SECONDS = 2.0
PLUGIN, FALLBACK = "shimlan", "shimlan-inprocess"
ELF = b"\x7fELF"


# --- store -------------------------------------------------------------------------------------------------------


def store(directory: str, conf: IpamConf | None, own: Iterable[Address] = ()) -> Store:
    """The store of a data directory, and how it fills the pools of a network; `own` are addresses of the host."""
    path = f"{directory}/{FILE}"
    unusable, exists = _unusable(directory, path), os.path.exists(path)
    found = Store(path, exists, unusable, known_schema=SCHEMA_VERSION)
    try:
        return _read(found, conf, own) if exists else found
    except (CniError, sqlite3.Error) as error:
        return _in_trouble(found, explained(error, path) or error)


def _in_trouble(found: Store, error: Exception) -> Store:
    """The store with the reason why it cannot be read."""
    if isinstance(error, TryAgainLater):
        return replace(found, busy=error.msg)
    if isinstance(error, CniError) and not isinstance(error, CorruptStore):
        return replace(found, unusable=found.unusable or error.msg)
    return replace(found, damage=str(error))


def _read(store: Store, conf: IpamConf | None, own: Iterable[Address]) -> Store:
    with closing(_copy(store.path)) as copy:
        (schema,) = copy.execute("PRAGMA user_version").fetchone()
        if schema > SCHEMA_VERSION:
            return replace(store, schema=schema)
        _check(copy, store.path, schema)
        for migration in MIGRATIONS[schema:]:
            copy.executescript(migration)
        now = boot_time()
        renew(copy, boot_id(), now)
        held = (lease.address for lease in read_leases(copy, "", now) if lease.state == "held")
        usages = _usages(copy, conf, own, now) if conf else ()
        return replace(store, schema=schema, held=frozenset(held), usages=usages)


def _copy(path: str) -> sqlite3.Connection:
    """A database as it is now, in memory."""
    copy = sqlite3.connect(":memory:", isolation_level=None)
    with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as original:
        original.backup(copy)
    return copy


def _check(copy: sqlite3.Connection, path: str, schema: int) -> None:
    """Raise CorruptStore, or sqlite3.Error, for what an ADD would take for damage."""
    if schema == 0:
        raise CorruptStore(f"{path}: the store is damaged (it is empty)")
    (answer,) = copy.execute("PRAGMA integrity_check(1)").fetchone()
    if answer != "ok":
        raise CorruptStore(f"{path}: the store is damaged ({answer})")
    if schema == SCHEMA_VERSION:
        for table in TABLES:
            copy.execute(f"SELECT * FROM {table} LIMIT 0")


def _usages(
    copy: sqlite3.Connection, conf: IpamConf, own: Iterable[Address], now: float
) -> tuple[tuple[Usage, ...], ...]:
    ledger, pools = Ledger(copy, conf.network, now), pools_of(conf, pod="", mac="", avoid=own)
    return tuple(tuple(ledger.usage(entry, span_of(entry), pool.barred) for entry in pool.ranges) for pool in pools)


def _unusable(directory: str, path: str) -> str:
    """Why nothing can be recorded; "" when it can. A directory that is missing is made by the first ADD."""
    if os.path.exists(directory) and not os.path.isdir(directory):
        return f"{directory} is no directory: set dataDir to one"
    there = directory
    while not os.path.exists(there):
        there = os.path.dirname(there) or "/"
    if not all(os.access(each, os.W_OK) for each in (there, path) if os.path.exists(each)):
        return f"{there}: {ADVICE[READONLY]}"
    return f"{there}: {ADVICE[FULL]}" if os.statvfs(there).f_bfree == 0 else ""


# --- ipam.resolvConf ---------------------------------------------------------------------------------------------


def resolver(conf: IpamConf) -> str:
    """Why the file of `resolvConf` cannot be read, in the words of ADD; "" when it can."""
    try:
        service.dns_of(conf.resolv_conf)
    except IOFailure as error:
        return error.msg
    return ""


# --- agent -------------------------------------------------------------------------------------------------------


def agent(path: str) -> Agent:
    """Whether somebody answers at the agent's socket."""
    exists = os.path.lexists(path)
    return Agent(path, exists=exists, trouble=asking.trouble(path) if exists else "")


# --- executables -------------------------------------------------------------------------------------------------


def executables(directories: Sequence[str], conf: NetConf, types: Iterable[str]) -> Executables:
    """The plugins that a network needs, as a runtime looks for them."""
    plugin = _executable(directories, PLUGIN)
    is_client = bool(plugin) and _begins_with(plugin, ELF)
    beside = f"{os.path.dirname(plugin)}/{FALLBACK}"
    needed = dict.fromkeys((*types, *((conf.delegate,) if conf.delegate else ())))
    return Executables(
        directories=tuple(directories),
        plugin=plugin,
        is_client=is_client,
        fallback=beside if is_client and os.access(beside, os.X_OK) else "",
        missing=tuple(name for name in needed if name != PLUGIN and not _executable(directories, name)),
    )


def _executable(directories: Sequence[str], name: str) -> str:
    return shutil.which(name, path=":".join(directories)) or ""


def _begins_with(path: str, magic: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False
