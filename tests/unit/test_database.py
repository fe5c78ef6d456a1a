"""The database file: what opening makes of it, and what its troubles look like to a user."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from cni import database
from cni.database import FILE, CorruptStore, Database, boot_id, open_database, put_aside
from cni.errors import IOFailure, TryAgainLater
from cni.state import Nics
from tests.unit.leases import in_processes

INSERT = "INSERT INTO lease_networks VALUES (?, ?)"
REPOSITORY = Path(__file__).parents[2]


def names(store: Database) -> list[str]:
    with store.transaction() as connection:
        return [network for (network,) in connection.execute("SELECT network FROM lease_networks ORDER BY network")]


def add(store: Database, *networks: str) -> None:
    with store.transaction() as connection:
        connection.executemany(INSERT, [("eth0", network) for network in networks])


def damage(directory: Path) -> None:
    """Make the file anything but a database, without a log that could heal it."""
    store = Database(str(directory))
    add(store, "lost")
    store.close()
    (directory / FILE).write_bytes(b"no database at all" * 1000)


class TestOpening:
    def test_only_its_owner_can_read_it(self, tmp_path: Path) -> None:
        store = Database(str(tmp_path / "new" / "dir"))
        add(store, "a")
        assert stat.S_IMODE((tmp_path / "new" / "dir").stat().st_mode) == 0o700
        files = list((tmp_path / "new" / "dir").iterdir())
        assert {file.name for file in files} == {FILE, f"{FILE}-wal", f"{FILE}-shm"}
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}

    def test_an_existing_one_is_not_written_to(self, tmp_path: Path) -> None:
        open_database(str(tmp_path)).close()
        statements: list[str] = []
        connection = open_database(str(tmp_path))
        connection.set_trace_callback(statements.append)
        assert connection.execute("PRAGMA user_version").fetchone() == (database.SCHEMA_VERSION,)
        assert connection.total_changes == 0
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    def test_what_a_killed_creator_left_is_no_store_yet(self, tmp_path: Path) -> None:
        (tmp_path / f"{FILE}.new").write_bytes(b"half")
        store = Database(str(tmp_path))
        add(store, "a")
        assert names(store) == ["a"]

    def test_an_emptied_one_is_not_taken_for_a_new_one(self, tmp_path: Path) -> None:
        (tmp_path / FILE).touch()
        with pytest.raises(CorruptStore, match=r"the store is damaged \(it is empty\)"):
            open_database(str(tmp_path))
        assert put_aside(str(tmp_path))
        assert names(Database(str(tmp_path))) == []

    def test_one_that_lost_a_table_is_damaged(self, tmp_path: Path) -> None:
        store = Database(str(tmp_path))
        add(store, "a")
        with store.transaction() as connection:
            connection.execute("DROP TABLE lease_networks")
        with pytest.raises(CorruptStore, match="no such table"):
            names(store)
        assert put_aside(str(tmp_path))
        assert names(Database(str(tmp_path))) == []

    def test_a_log_without_its_database_is_not_replayed(self, tmp_path: Path) -> None:
        store = Database(str(tmp_path))
        add(store, "old")
        (tmp_path / FILE).unlink()
        assert names(Database(str(tmp_path))) == []

    def test_of_a_newer_shimlan(self, tmp_path: Path) -> None:
        connection = open_database(str(tmp_path))
        connection.execute("PRAGMA user_version = 99")
        with pytest.raises(IOFailure, match=r"written by a newer shimlan \(schema 99, this one knows 3\): upgrade"):
            open_database(str(tmp_path))

    def test_many_processes_at_once_create_one(self, tmp_path: Path) -> None:
        def work(number: int) -> str:
            add(Database(str(tmp_path / "new")), f"{number:02}")
            return "done"

        assert in_processes(30, work) == ["done"] * 30
        assert names(Database(str(tmp_path / "new"))) == [f"{number:02}" for number in range(30)]

    def test_a_long_log_of_those_who_left_without_closing_is_shortened(self, tmp_path: Path) -> None:
        def work(number: int) -> str:
            store = Database(str(tmp_path))
            for _ in range(200):
                add(store, os.urandom(300).hex())
            return str((tmp_path / f"{FILE}-wal").stat().st_size)

        (size,) = in_processes(1, work)
        assert int(size) > database.MAX_WAL
        store = Database(str(tmp_path))
        assert len(names(store)) == 200
        assert (tmp_path / f"{FILE}-wal").stat().st_size == 0

    def test_the_tables_of_version_3(self, tmp_path: Path) -> None:
        """What is on disk stays readable: a change of these needs a migration."""
        connection = open_database(str(tmp_path))
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
        columns = {
            table: " ".join(row[1] for row in connection.execute(f"PRAGMA table_info({table})")) for (table,) in tables
        }
        assert columns == {
            "attachments": "network container_id ifname boot_id recorded_at shim record",
            "lease_boot": "id",
            "lease_networks": "parent network",
            "lease_ranges": "id network first last reached rewound barred",
            "leases": "network address state range_id container_id ifname pod sticky parent free_at",
            "nics": "parent_index parent boot_id switchable was_on refused",
        }

    def test_one_of_version_1_is_migrated(self, tmp_path: Path) -> None:
        with closing(sqlite3.connect(tmp_path / FILE)) as old:
            old.executescript(f"PRAGMA journal_mode = WAL; {database.MIGRATIONS[0]}; PRAGMA user_version = 1;")
            old.execute(INSERT, ("eth0", "kept"))
            old.commit()
        store = Database(str(tmp_path))
        assert names(store) == ["kept"]
        assert Nics(store, "").switchable() == []


class TestTransactions:
    def test_an_error_rolls_back(self, tmp_path: Path) -> None:
        store = Database(str(tmp_path))

        def fail() -> None:
            with store.transaction() as connection:
                connection.execute(INSERT, ("eth0", "a"))
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert names(store) == []

    def test_threads_take_turns(self, tmp_path: Path) -> None:
        store = Database(str(tmp_path))
        threads = [threading.Thread(target=add, args=(store, f"{number:02}")) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert names(store) == [f"{number:02}" for number in range(20)]

    def test_a_locked_store_is_to_be_tried_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
        other, store = Database(str(tmp_path)), Database(str(tmp_path))
        with other.transaction(), pytest.raises(TryAgainLater, match="locked by another process for") as caught:
            add(store, "a")
        assert caught.value.code == 11
        add(store, "a")
        assert names(store) == ["a"]

    def test_a_bug_in_a_statement_is_no_trouble_of_the_store(self, tmp_path: Path) -> None:
        with pytest.raises(sqlite3.OperationalError), Database(str(tmp_path)).transaction() as connection:
            connection.execute("SELECT no_such_column FROM leases")

    def test_who_lives_on_notices_that_the_file_was_replaced(self, tmp_path: Path) -> None:
        resident = Database(str(tmp_path))
        add(resident, "old")
        (tmp_path / "elsewhere").mkdir()
        for file in tmp_path.glob("shimlan.db*"):
            file.rename(tmp_path / "elsewhere" / file.name)
        assert names(resident) == []
        add(resident, "new")
        assert names(Database(str(tmp_path))) == ["new"]


class TestTroubles:
    def test_a_directory_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(IOFailure, match=f"{tmp_path}/file.*: Not a directory"):
            open_database(str(tmp_path / "file"))
        with pytest.raises(IOFailure, match=f"{tmp_path}/file.*: Not a directory"):
            open_database(str(tmp_path / "file" / "below"))

    def test_a_database_that_cannot_be_opened(self, tmp_path: Path) -> None:
        (tmp_path / FILE).mkdir()
        with pytest.raises(IOFailure, match="cannot be opened: check that dataDir can be read"):
            open_database(str(tmp_path))

    def test_no_database(self, tmp_path: Path) -> None:
        damage(tmp_path)
        with pytest.raises(CorruptStore, match=r"shimlan.db: the store is damaged \(file is not a database\)"):
            open_database(str(tmp_path))

    def test_a_page_that_was_overwritten(self, tmp_path: Path) -> None:
        store = Database(str(tmp_path))
        add(store, *(f"{number:0100}" for number in range(500)))
        store.close()
        with (tmp_path / FILE).open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (tmp_path.joinpath(FILE).stat().st_size - 4096))
        with pytest.raises(CorruptStore):
            names(Database(str(tmp_path)))
        assert put_aside(str(tmp_path))

    @pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare (util-linux)")
    @pytest.mark.parametrize(
        ("trouble", "action", "message"),
        [
            ("truncate -s -100k $1/fill", "write(100)", "shimlan.db: the disk is full: free some space"),
            (
                "truncate -s -100k $1/fill",
                "write(2); fill(); store.check_writable()",
                "MOUNT: the disk is full: free some space",
            ),
            ("mount -o remount,ro $1", "write(1)", "shimlan.db: the store cannot be opened: check that dataDir can be"),
        ],
    )
    def test_a_disk_that_takes_nothing(self, tmp_path: Path, trouble: str, action: str, message: str) -> None:
        """On a file system of our own, in namespaces of our own; what was there before stays."""
        script = f"""
mount -t tmpfs -o size=400k tmpfs $1
$2 -c "$3" $1 "write(1)"
head -c 10M /dev/zero > $1/fill
{trouble}
$2 -c "$3" $1 "{action}"
"""
        program = f"""
import contextlib, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from cni.database import Database
store = Database(sys.argv[1])
def write(count):
    with store.transaction() as connection:
        connection.executemany({INSERT!r}, [(str(number) * 900, str(count)) for number in range(count)])
def fill():
    with contextlib.suppress(OSError), open(sys.argv[1] + "/more", "wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
try:
    exec(sys.argv[2])
except Exception as error:
    print(f"{{type(error).__name__}}: {{error}}")
"""
        command = ["unshare", "-Urm", "sh", "-c", script, "sh", str(tmp_path), sys.executable, program]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "unshare failed" in done.stderr:
            pytest.skip("user namespaces are not allowed here")
        assert done.stdout.startswith("IOFailure: "), done.stderr
        assert message.replace("MOUNT", str(tmp_path)) in done.stdout

    def test_a_file_that_may_not_grow(self, tmp_path: Path) -> None:
        add(Database(str(tmp_path)), "before")

        def work(_: int) -> str:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (40960, 40960))
            add(Database(str(tmp_path)), *(f"{number:01000}" for number in range(100)))
            return "written"

        (answer,) = in_processes(1, work)
        assert answer.startswith(f"IOFailure: {tmp_path}/{FILE}: the store cannot be read or written")
        assert names(Database(str(tmp_path))) == ["before"]

    def test_a_store_is_writable_until_somebody_locks_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(database, "BUSY_SECONDS", 0.01)
        store = Database(str(tmp_path))
        store.check_writable()
        with Database(str(tmp_path)).transaction(), pytest.raises(TryAgainLater):
            store.check_writable()


class TestPuttingAside:
    def test_what_was_damaged_is_kept_beside_a_fresh_store(self, tmp_path: Path) -> None:
        damage(tmp_path)
        (tmp_path / f"{FILE}-wal").write_bytes(b"log")
        target = put_aside(str(tmp_path))
        assert Path(target).parent == tmp_path
        assert Path(target).name.startswith(f"{FILE}.corrupt-{time.strftime('%Y')}")
        assert Path(target).read_bytes().startswith(b"no database")
        assert Path(f"{target}-wal").read_bytes() == b"log"
        assert names(Database(str(tmp_path))) == []

    def test_a_sound_store_stays(self, tmp_path: Path) -> None:
        add(Database(str(tmp_path)), "a")
        assert put_aside(str(tmp_path)) == ""
        assert names(Database(str(tmp_path))) == ["a"]

    def test_a_successor_takes_its_place(self, tmp_path: Path) -> None:
        damage(tmp_path)

        def successor() -> str:
            store = Database(str(tmp_path / "next"))
            add(store, "rebuilt")
            store.close()
            return store.path

        assert put_aside(str(tmp_path), successor)
        assert names(Database(str(tmp_path))) == ["rebuilt"]
        assert put_aside(str(tmp_path), successor) == ""

    def test_without_the_successor_all_stays(self, tmp_path: Path) -> None:
        damage(tmp_path)

        def successor() -> str:
            raise IOFailure("no room")

        with pytest.raises(IOFailure, match="no room"):
            put_aside(str(tmp_path), successor)
        assert (tmp_path / FILE).read_bytes().startswith(b"no database")

    def test_so_does_no_store(self, tmp_path: Path) -> None:
        assert put_aside(str(tmp_path)) == ""
        assert list(tmp_path.iterdir()) == []

    def test_a_store_that_cannot_be_opened_is_not_damaged(self, tmp_path: Path) -> None:
        (tmp_path / FILE).mkdir()
        with pytest.raises(IOFailure, match="cannot be opened"):
            put_aside(str(tmp_path))

    def test_of_many_that_find_the_damage_one_renames(self, tmp_path: Path) -> None:
        """And what the others have written to the fresh store meanwhile is not lost."""
        damage(tmp_path)

        def work(number: int) -> str:
            try:
                add(Database(str(tmp_path)), f"{number:02}")
            except CorruptStore:
                answer = put_aside(str(tmp_path))
                add(Database(str(tmp_path)), f"{number:02}")
                return answer
            return ""

        answers = in_processes(30, work)
        (target,) = filter(None, answers)
        assert Path(target).exists()
        assert names(Database(str(tmp_path))) == [f"{number:02}" for number in range(30)]


def test_the_boot_id_is_that_of_the_kernel() -> None:
    assert boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
