"""The one SQLite file of a data directory: opening, schema, transactions, and what its errors mean to a user.

It knows nothing of what the tables hold: attachments are the business of `cni.state`, leases that of `ipam.store`.
Both live in one file so that one-shot processes open one file, and so that there is one thing to put aside when it is
damaged.

Write-ahead log with synchronous=NORMAL: no fsync per commit, and a power cut costs the last commits but never the
file; losing them is harmless because network namespaces do not survive it either. A rollback journal opens 0.1 ms
faster but takes four times as long per transaction, and is only competitive with synchronous=OFF, which a power cut
may leave damaged.

One-shot processes leave without closing: closing the last connection checkpoints and syncs, which costs more than all
their transactions. The log that they leave is read by the next one that opens (2 to 3 us per page), which therefore
shortens it once it has grown beyond `MAX_WAL`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from _thread import RLock
from contextlib import contextmanager, suppress

from cni.errors import CniError, IOFailure, TryAgainLater

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator
else:
    import _sqlite3 as sqlite3  # the package around it imports datetime: 2 ms

FILE = "shimlan.db"
BUSY_SECONDS = 5.0
MAX_WAL = 512 << 10  # bytes
# Of pages that are kept in memory. A transaction touches some twenty, however many leases there are.
CACHE_KIBIBYTES = 256
COMPANIONS = ("", "-wal", "-shm")  # the database and the files that SQLite keeps beside it

# What leads from schema version n to n + 1 stands at index n; an entry is never changed once it was released.
MIGRATIONS = (
    """
    CREATE TABLE attachments(
        network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL,
        boot_id TEXT NOT NULL, recorded_at REAL NOT NULL, shim TEXT NOT NULL, record TEXT NOT NULL,
        PRIMARY KEY (network, container_id, ifname)
    ) WITHOUT ROWID;
    CREATE INDEX attachments_by_shim ON attachments(shim);

    -- The boot that the times and holders in the tables below belong to; one row.
    CREATE TABLE lease_boot(id TEXT NOT NULL);

    -- Which networks have been seen on which parent.
    CREATE TABLE lease_networks(
        parent TEXT NOT NULL, network TEXT NOT NULL,
        PRIMARY KEY (parent, network)
    ) WITHOUT ROWID;

    -- `reached` is the highest address handed out since the range was entered or rewound (at `rewound`).
    CREATE TABLE lease_ranges(
        id INTEGER PRIMARY KEY,
        network TEXT NOT NULL, first BLOB NOT NULL, last BLOB NOT NULL,
        reached BLOB, rewound REAL NOT NULL,
        UNIQUE (network, first, last)
    );

    -- Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d, so that they sort as numbers. `state` is held, released or
    -- conflict; `free_at` (seconds of CLOCK_BOOTTIME) tells when one of the latter two may be handed out again.
    CREATE TABLE leases(
        network TEXT NOT NULL, address BLOB NOT NULL, state TEXT NOT NULL, range_id INTEGER NOT NULL,
        container_id TEXT NOT NULL, ifname TEXT NOT NULL, pod TEXT NOT NULL, sticky INTEGER NOT NULL,
        parent TEXT NOT NULL, free_at REAL NOT NULL,
        PRIMARY KEY (network, address)
    ) WITHOUT ROWID;
    CREATE INDEX leases_by_holder ON leases(network, container_id, ifname) WHERE state = 'held';
    CREATE INDEX leases_released ON leases(range_id, sticky, free_at) WHERE state = 'released';
    CREATE INDEX leases_remembered ON leases(network, pod) WHERE state = 'released' AND sticky = 1;
    CREATE INDEX leases_in_conflict ON leases(range_id, free_at) WHERE state = 'conflict';
    """,
    """
    -- What is known of parents as to offload. `switchable` 0: not to be asked again. `was_on`: before we came.
    -- `refused`: how many children came up without, although it was on.
    CREATE TABLE nics(
        parent_index INTEGER PRIMARY KEY, parent TEXT NOT NULL, boot_id TEXT NOT NULL,
        switchable INTEGER NOT NULL, was_on INTEGER NOT NULL, refused INTEGER NOT NULL
    );
    """,
    """
    -- What of a range is not for everybody, as the last ADD had it: see `outline` in ipam.pools; NULL is unknown.
    ALTER TABLE lease_ranges ADD COLUMN barred TEXT;
    """,
)
SCHEMA_VERSION = len(MIGRATIONS)
TABLES = ("attachments", "lease_boot", "lease_networks", "lease_ranges", "leases", "nics")

# Primary result codes (sqlite3.h).
ERROR, BUSY, LOCKED, READONLY, IOERR, CORRUPT, FULL, CANTOPEN, NOTADB = 1, 5, 6, 8, 10, 11, 13, 14, 26
ADVICE = {
    READONLY: "the store is read-only: remount it, or set dataDir to a directory that can be written",
    IOERR: "the store cannot be read or written: check the disk and its free space",
    FULL: "the disk is full: free some space",
    CANTOPEN: "the store cannot be opened: check that dataDir can be read and written",
}


class CorruptStore(IOFailure):
    """The database is damaged; `put_aside` makes room for a new one."""


class Database:
    """The database of one data directory, opened at first use; threads may share it, one transaction at a time."""

    def __init__(self, data_dir: str) -> None:
        self.data_dir = data_dir
        self.path = f"{data_dir}/{FILE}"
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self.lock = RLock()
        self.boot = ""  # of which the leases are known to be, for as long as the connection lasts

    def transaction(self) -> Access:
        """A connection inside of BEGIN IMMEDIATE .. COMMIT, or ROLLBACK when the body raises.

        Inside of another one of the same thread it is a part of that. Raises TryAgainLater, IOFailure or CorruptStore
        for what SQLite reports.
        """
        return Access(self, "BEGIN IMMEDIATE")

    def reading(self) -> Access:
        """A connection for one SELECT, which needs no transaction; raises what `transaction` does."""
        return Access(self, "")

    def check_writable(self) -> None:
        """Raise what an ADD would raise about the store, without making or changing it."""
        # Who has the database open can begin a transaction even where nothing can be written any more.
        with storage_errors(self.path):
            _check_directory(self.data_dir)
        if os.path.exists(self.path):
            with self.transaction():
                pass

    def close(self) -> None:
        """Close the connection; for those who live on. One-shot processes leave it open, see above."""
        with self.lock:
            self.forget()

    def current(self) -> sqlite3.Connection:
        """The connection to the file that stands at the path now: others may have put ours aside; the lock is held."""
        connection = self._connection
        if connection is not None and not connection.in_transaction and self._inode != _inode(self.path):
            self.forget()
        if self._connection is None:
            self._connection = open_database(self.data_dir)
            self._inode = _inode(self.path)
        return self._connection

    def forget(self) -> None:
        """Let go of the connection; the lock is held."""
        self.boot = ""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Access:
    """A database's connection for the time of a `with` block; a class because this is where an ADD spends its time."""

    __slots__ = ("_begin", "_connection", "_database")

    def __init__(self, database: Database, begin: str) -> None:
        self._database = database
        self._begin = begin

    def __enter__(self) -> sqlite3.Connection:
        self._database.lock.acquire()
        try:
            self._connection = self._database.current()
            if self._connection.in_transaction:
                self._begin = ""
            if self._begin:
                self._connection.execute(self._begin)
            return self._connection
        except BaseException as error:
            self._end(error)
            raise

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if self._begin:
            try:
                if error is None:
                    self._connection.execute("COMMIT")
            except BaseException as failure:
                self._roll_back()
                self._end(failure)
                raise
            if error is not None:
                self._roll_back()
        self._end(error)

    def _roll_back(self) -> None:
        # SQLite has rolled back by itself after some errors, a full disk among them.
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._database.forget()  # closing rolls back as well

    def _end(self, error: BaseException | None) -> None:
        """Leave, with what SQLite reported in words of ours."""
        if isinstance(error, sqlite3.Error):
            self._database.forget()
        self._database.lock.release()
        if error is not None and (told := explained(error, self._database.path)):
            raise told from error


def open_database(data_dir: str) -> sqlite3.Connection:
    """A connection to the database of `data_dir`, which is created or brought to our schema version when need be.

    Raises IOFailure (also when a newer shimlan wrote it), CorruptStore, TryAgainLater.
    """
    path = f"{data_dir}/{FILE}"
    with storage_errors(path):
        with _directory_lock(data_dir, fcntl.LOCK_SH):
            connection = _existing(path) if os.path.exists(path) else None
        if connection is None:
            connection = _create(data_dir, path)
        if (found := _schema_version(connection)) > SCHEMA_VERSION:
            connection.close()
            raise IOFailure(
                f"{path}: written by a newer shimlan (schema {found}, this one knows {SCHEMA_VERSION}): upgrade shimlan"
            )
        _shorten_wal(connection, path)
        return connection


@contextmanager
def storage_errors(path: str) -> Iterator[None]:
    """Turn what SQLite and the file system report about the store at `path` into errors of ours."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        if told := explained(error, path):
            raise told from error
        raise


def explained(error: BaseException, path: str) -> CniError | None:
    """What SQLite or the file system reports about the store at `path`, as an error of ours; None for anything else."""
    if isinstance(error, OSError):
        return IOFailure(f"{error.filename or path}: {error.strerror}")
    if not isinstance(error, sqlite3.Error):
        return None
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (BUSY, LOCKED):
        return TryAgainLater(f"{path}: the store has been locked by another process for {BUSY_SECONDS:g} s")
    if code in (CORRUPT, NOTADB) or "no such table" in str(error):
        return CorruptStore(f"{path}: the store is damaged ({error})")
    if code == ERROR:  # of the statement, which is ours
        return None
    return IOFailure(f"{path}: {ADVICE.get(code, 'the store does not work')} ({error})")


def put_aside(data_dir: str, successor: Callable[[], str] | None = None) -> str:
    """Rename a damaged database and its companions; returns the new path.

    Of many processes that found the damage at once only the first renames: the others find a sound (or no) database
    under the lock, and get "". Connections that are open notice at their next `Database.transaction`.

    `successor` makes a database elsewhere in the same file system and returns its path: it takes the place of the
    damaged one before anybody can open an empty one. When it raises, all stays as it was.
    """
    path = f"{data_dir}/{FILE}"
    with storage_errors(path), _directory_lock(data_dir, fcntl.LOCK_EX):
        if _is_sound(path):
            return ""
        replacement = successor() if successor else ""
        target = f"{path}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
        for suffix in COMPANIONS:
            with suppress(FileNotFoundError):
                os.rename(path + suffix, target + suffix)
        if replacement:
            os.rename(replacement, path)
        return target


def _check_directory(data_dir: str) -> None:
    with suppress(FileExistsError):
        os.makedirs(data_dir, mode=0o700)
    if not os.path.isdir(data_dir):
        raise NotADirectoryError(errno.ENOTDIR, "Not a directory: set dataDir to one", data_dir)
    if not os.access(data_dir, os.W_OK | os.X_OK):
        raise IOFailure(f"{data_dir}: {ADVICE[READONLY]}")
    if os.statvfs(data_dir).f_bfree == 0:
        raise IOFailure(f"{data_dir}: {ADVICE[FULL]}")


def boot_id() -> str:
    """What tells this boot of the machine from all others (random(4))."""
    # A text file would load its codec first, which takes ten times as long as reading.
    with open("/proc/sys/kernel/random/boot_id", "rb", buffering=0) as file:
        return file.read().decode().strip()


@contextmanager
def _directory_lock(data_dir: str, how: int) -> Iterator[None]:
    """Openers share it, who creates or puts aside is alone: nobody meets a database without its log."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        directory = os.open(data_dir, flags)
    except FileNotFoundError:
        os.makedirs(data_dir, mode=0o700, exist_ok=True)
        directory = os.open(data_dir, flags)
    try:
        fcntl.flock(directory, how)
        yield
    finally:
        os.close(directory)


def _connect(path: str) -> sqlite3.Connection:
    # The lock in Database keeps the threads apart.
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    # The first statement touches the file: by now, under the lock, and not later.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIBIBYTES}")
    return connection


def _existing(path: str) -> sqlite3.Connection | None:
    """A connection to a database of our schema version or a newer one; None for one that is to be migrated.

    Raises CorruptStore for one without any schema: it was emptied, or its log is lost, and who took it for a new one
    would hand out what pods have.
    """
    connection = _connect(path)
    version = _schema_version(connection)
    if version >= SCHEMA_VERSION:
        return connection
    connection.close()
    if version == 0:
        raise CorruptStore(f"{path}: the store is damaged (it is empty)")
    return None


def _create(data_dir: str, path: str) -> sqlite3.Connection:
    """Create or migrate under the exclusive lock: switching to WAL does not wait for others, it fails."""
    with _directory_lock(data_dir, fcntl.LOCK_EX):
        if not os.path.exists(path):
            # A log without its database would be replayed into the new one.
            _remove(path)
            _migrated(_new_file(f"{path}.new")).close()
            os.rename(f"{path}.new", path)
        return _migrated(_connect(path))


def _new_file(path: str) -> sqlite3.Connection:
    """An empty database, in place of what a killed creator left."""
    _remove(path)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    connection = _connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    return connection


def _migrated(connection: sqlite3.Connection) -> sqlite3.Connection:
    for version in range(_schema_version(connection), SCHEMA_VERSION):
        connection.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[version]}; PRAGMA user_version = {version + 1}; COMMIT;"
        )
    return connection


def _remove(path: str) -> None:
    for suffix in COMPANIONS:
        with suppress(FileNotFoundError):
            os.unlink(path + suffix)


def _schema_version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _shorten_wal(connection: sqlite3.Connection, path: str) -> None:
    with suppress(FileNotFoundError):
        if os.stat(f"{path}-wal").st_size > MAX_WAL:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _is_sound(path: str) -> bool:
    """Whether a process that opens the database now gets along with it."""
    if not os.path.exists(path):
        return True
    connection = None
    try:
        connection = _connect(path)
        for table in TABLES:
            connection.execute(f"SELECT * FROM {table} LIMIT 0")
        whole = bool(connection.execute("PRAGMA integrity_check(1)").fetchone() == ("ok",))
        return whole and _schema_version(connection) > 0
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF not in (CORRUPT, NOTADB) and "no such table" not in str(error):
            raise
        return False
    finally:
        if connection is not None:
            connection.close()


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0
