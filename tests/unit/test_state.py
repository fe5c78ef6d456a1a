"""Records of attachments: what is written can be read, by this version and by every later one."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path

import pytest

from cni.attachment import Attachment, Delegation, Key, Leasing, Vlan
from cni.database import Database
from cni.frozen import replace
from cni.protocol import Result
from cni.state import Records, decode, encode
from tests.unit.attachments import planned

FULL = replace(
    planned(
        shim={"hostAddresses": ["auto", "192.0.2.10"], "routes": ["10.96.0.0/12"]},
        mtu=1400,
        bcqueuelen=2000,
        bclim=-1,
    ),
    pod="default/db-0",
    leasing=Leasing("/var/lib/x", 60),
    delegate=Delegation("host-local", '{"name": "lan"}', "/opt/cni/bin", "IgnoreUnknown=1"),
    vlan=Vlan("eth0.100", 100, "eth0", 2, 1500, ours=True),
)
GOLDEN = Path(__file__).with_name("record.json")


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(str(tmp_path))


def named(container_id: str, shim: bool = True) -> Attachment:
    return replace(planned(shim=shim), key=Key("lan", container_id, "eth0"))


@pytest.mark.parametrize("attachment", [FULL, planned(), planned(shim=False, ipam=Result())])
def test_what_is_written_is_read(attachment: Attachment) -> None:
    assert decode(encode(attachment)) == attachment


def test_the_form_of_a_record_does_not_change() -> None:
    assert json.loads(encode(FULL)) == json.loads(GOLDEN.read_text())


def test_a_record_of_the_first_version_is_read() -> None:
    record = json.loads(GOLDEN.read_text())
    assert decode(json.dumps(record)) == FULL
    for added_since in ("reach",):
        del record[added_since]
    assert decode(json.dumps(record)) == replace(FULL, reach=None)


def test_a_record_is_found_replaced_and_forgotten(database: Database) -> None:
    records = Records(database, "boot")
    assert records.find(FULL.key) is None
    records.put(planned())
    records.put(FULL)
    assert records.find(FULL.key) == FULL
    assert records.all() == records.of_network("lan") == [FULL]
    assert records.of_network("other") == []
    records.forget(FULL.key)
    records.forget(FULL.key)
    assert records.all() == []


def test_a_record_that_is_revised_gets_no_newer(database: Database) -> None:
    records = Records(database, "boot")
    first, second = named("a"), named("b", shim=False)
    for attachment in (first, second):
        records.put(attachment)
    moved = replace(first, parent="eth9", host=replace(first.host, link=replace(first.host.link, name="shim9")))
    records.revise(moved)
    assert records.all() == [moved, second]
    assert records.behind("shim9") == [moved]
    assert not records.is_needed("shim2")


def test_what_is_not_recorded_is_not_revised(database: Database) -> None:
    records = Records(database, "boot")
    records.revise(FULL)
    assert records.texts() == []


def test_texts_are_what_is_decoded(database: Database) -> None:
    records = Records(database, "boot")
    for name in ("c", "a"):
        records.put(named(name))
    assert [decode(text) for text in records.texts()] == records.all() == [named("c"), named("a")]


def test_records_of_another_boot_do_not_count(database: Database) -> None:
    Records(database, "earlier").put(FULL)
    records = Records(database, "boot")
    assert records.find(FULL.key) is None
    assert records.all() == records.behind("shim2") == []
    assert records.of_earlier_boots() == [FULL]
    records.put(FULL)
    assert records.find(FULL.key) == FULL
    assert records.of_earlier_boots() == []


def test_who_needs_a_shim_is_known(database: Database) -> None:
    records = Records(database, "boot")
    first, second, without = named("a"), named("b"), named("c", shim=False)
    for attachment in (first, second, without):
        records.put(attachment)
    assert {attachment.key.container_id for attachment in records.behind("shim2")} == {"a", "b"}
    assert records.behind("shim3") == []
    records.forget(second.key)
    assert records.is_needed("shim2")
    assert not records.is_needed("shim2", but=first.key)


def test_the_newest_record_comes_last(database: Database) -> None:
    records = Records(database, "boot")
    for name in ("c", "a", "b"):
        records.put(named(name))
    assert [attachment.key.container_id for attachment in records.all()] == ["c", "a", "b"]


def test_a_record_holds_addresses_as_addresses() -> None:
    assert decode(encode(FULL)).ips == (ip_address("192.0.2.100"), ip_address("2001:db8::100"))


def test_what_a_newer_version_has_added_is_ignored() -> None:
    record = json.loads(encode(FULL))
    link, route = record["sandbox"]["link"], record["sandbox"]["routes"][0]
    for part in (record, record["key"], link, route, record["leasing"], record["reach"]):
        part["added"] = "later"
    assert decode(json.dumps(record)) == FULL
