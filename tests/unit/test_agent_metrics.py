"""The agent's metrics and health, read by HTTP as a scraper reads them."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from cni import __version__
from cni.agent import exporter as exporting
from cni.agent import server
from cni.agent import web as serving
from cni.agent.exporter import CONTENT_TYPE, Exporter
from cni.agent.journal import Journal
from cni.agent.metrics import Metrics, Readings
from cni.agent.settings import Endpoint
from cni.agent.waiting import REASONS
from cni.agent.web import Page, Web, health
from cni.errors import Exhausted, IOFailure, TryAgainLater
from cni.offload import Use
from ipam.ledger import RangeUse
from tests.unit.test_docs import ROOT, tables

LOOPBACK = Endpoint("127.0.0.1", 0)
EMPTY = Page(200, "text/plain", b"")
READINGS = Readings(
    workers=lambda: 4,
    requests_in_flight=lambda: 3,
    waiting_connections=lambda: 2,
    repairs_backed_off=lambda: 1,
    attachments=lambda: {"lan": 5, "dmz": 6},
    pools=lambda: [
        RangeUse("lan", ip_address("192.0.2.10"), ip_address("192.0.2.19"), 10, 5, cooling=2, conflict=1, excluded=3),
        RangeUse("lan", ip_address("2001:db8::1"), ip_address("2001:db8::ff"), 255, 5, 0, 0, excluded=None),
    ],
    nics=lambda: [Use("eth0", active=True, was_on=False, hardware=63, software=2, refused=4)],
)
ROW = '{network="lan",range="192.0.2.10-192.0.2.19",state="%s"}'


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Journal]:
    with open(tmp_path / "log", "a", encoding="utf-8") as stream:
        yield Journal(stream)


@pytest.fixture
def exporter(log: Journal) -> Exporter:
    return Exporter(log)


def families(exporter: Exporter) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(exporter.render().decode())}


def values(exporter: Exporter) -> dict[str, float]:
    """Every sample, under its name and labels as they are written, labels in their order."""
    return {written(sample): sample.value for family in families(exporter).values() for sample in family.samples}


def written(sample: Sample) -> str:
    labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
    return f"{sample.name}{{{labels}}}" if labels else sample.name


def changes(exporter: Exporter, act: Callable[[], None]) -> dict[str, float]:
    """What an event adds to the samples of ours."""
    before = values(exporter)
    act()
    after = values(exporter)
    return {
        name: value - before.get(name, 0)
        for name, value in after.items()
        if name.startswith("shimlan") and "_bucket" not in name and value != before.get(name, 0)
    }


# --- counting ----------------------------------------------------------------------------------------------------


def test_a_request_is_counted_and_timed(exporter: Exporter) -> None:
    def serve() -> None:
        exporter.request("ADD", "lan", 0, 0.0009)
        exporter.request("ADD", "lan", 0, 0.0011)
        exporter.request("ADD", "lan", 100, 2.0)
        exporter.request("DEL", "dmz", 11, 0.5)

    assert changes(exporter, serve) == pytest.approx(
        {
            'shimlan_requests_total{code="0",command="ADD",network="lan"}': 2,
            'shimlan_requests_total{code="100",command="ADD",network="lan"}': 1,
            'shimlan_requests_total{code="11",command="DEL",network="dmz"}': 1,
            'shimlan_request_seconds_count{command="ADD"}': 3,
            'shimlan_request_seconds_sum{command="ADD"}': 2.002,
            'shimlan_request_seconds_count{command="DEL"}': 1,
            'shimlan_request_seconds_sum{command="DEL"}': 0.5,
        }
    )


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, "0.0003"), (0.0008, "0.001"), (0.001, "0.001"), (45.0, "60.0"), (100.0, "+Inf")]
)
def test_a_request_falls_into_a_bucket(exporter: Exporter, seconds: float, bucket: str) -> None:
    exporter.request("CHECK", "lan", 0, seconds)
    counts = [
        (sample.labels["le"], sample.value)
        for sample in families(exporter)["shimlan_request_seconds"].samples
        if sample.name.endswith("_bucket")
    ]
    assert next(le for le, count in counts if count == 1) == bucket


def test_other_events_are_counted(exporter: Exporter) -> None:
    def happen() -> None:
        exporter.refused("not root")
        exporter.repaired("route")
        exporter.repaired("route")
        exporter.stale_cleared()
        exporter.reconciled(0.25, errors=2)

    now = time.time()
    counted = changes(exporter, happen)
    assert counted.pop("shimlan_last_reconcile_timestamp_seconds") == pytest.approx(now, abs=60)
    assert counted == {
        'shimlan_connections_refused_total{reason="not root"}': 1,
        'shimlan_repairs_total{kind="route"}': 2,
        "shimlan_stale_cleared_total": 1,
        "shimlan_reconcile_seconds_count": 1,
        "shimlan_reconcile_seconds_sum": 0.25,
        "shimlan_reconcile_errors_total": 2,
    }


def test_what_is_known_from_the_start_starts_at_zero(log: Journal) -> None:
    found = values(Exporter(log, reasons=("not root",), kinds=("shim", "route")))
    assert found['shimlan_connections_refused_total{reason="not root"}'] == 0
    assert found['shimlan_repairs_total{kind="shim"}'] == 0
    assert found["shimlan_reconcile_errors_total"] == 0
    assert found["shimlan_last_reconcile_timestamp_seconds"] == 0


def test_version_and_process_are_told(exporter: Exporter) -> None:
    found = values(exporter)
    assert found[f'shimlan_build_info{{version="{__version__}"}}'] == 1
    assert found["process_resident_memory_bytes"] > 1 << 20
    assert found["process_open_fds"] >= 3


def test_any_number_of_threads_may_count(exporter: Exporter) -> None:
    def work() -> None:
        for _ in range(2000):
            exporter.request("ADD", "lan", 0, 0.001)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = values(exporter)
    assert found['shimlan_requests_total{code="0",command="ADD",network="lan"}'] == 16000
    assert found['shimlan_request_seconds_count{command="ADD"}'] == 16000


def test_tenants_cannot_fill_the_memory_with_networks(exporter: Exporter) -> None:
    def serve() -> None:
        for number in range(2 * exporting.MOST_NETWORKS):
            exporter.request("ADD", f"net{number}", 0, 0.001)
        exporter.request("ADD", "net0", 0, 0.001)

    counted = changes(exporter, serve)
    assert counted['shimlan_requests_total{code="0",command="ADD",network="_other"}'] == exporting.MOST_NETWORKS
    assert counted['shimlan_requests_total{code="0",command="ADD",network="net0"}'] == 2
    assert len(counted) == exporting.MOST_NETWORKS + 3
    assert len(exporter._series) == exporting.MOST_NETWORKS


def test_a_verb_that_there_is_not_has_no_name(exporter: Exporter) -> None:
    counted = changes(exporter, lambda: exporter.request("MOVE", "", 4, 0.001))
    assert counted['shimlan_requests_total{code="4",command="",network=""}'] == 1
    assert not any("MOVE" in name for name in counted)


def test_while_nobody_asks_nothing_is_counted_or_loaded() -> None:
    code = """
import sys
from cni.agent.metrics import Metrics
metrics = Metrics()
metrics.request("ADD", "lan", 0, 0.001)
metrics.reconciled(0.1, errors=1)
print({"prometheus_client", "http.server"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_whatever_can_be_told_is_counted() -> None:
    events = {name for name in vars(Metrics) if not name.startswith("_")}
    assert events <= vars(Exporter).keys()


# --- looking up --------------------------------------------------------------------------------------------------


def test_what_is_looked_up_is_there(exporter: Exporter) -> None:
    exporter.show(READINGS)
    found = values(exporter)
    assert found["shimlan_workers"] == 4
    assert found["shimlan_requests_in_flight"] == 3
    assert found["shimlan_waiting_connections"] == 2
    assert found["shimlan_repairs_backed_off"] == 1
    assert found['shimlan_attachments{network="lan"}'] == 5
    assert found['shimlan_attachments{network="dmz"}'] == 6
    assert found['shimlan_offload_children{by="hardware",parent="eth0"}'] == 63
    assert found['shimlan_offload_children{by="software",parent="eth0"}'] == 2
    assert found['shimlan_offload_active{parent="eth0"}'] == 1
    assert found['shimlan_offload_refused_total{parent="eth0"}'] == 4
    states = ("size", "held", "cooling", "conflict", "excluded")
    pool = {state: found[f"shimlan_pool_addresses{ROW % state}"] for state in states}
    assert pool == {"size": 10, "held": 5, "cooling": 2, "conflict": 1, "excluded": 3}
    other = 'shimlan_pool_addresses{network="lan",range="2001:db8::1-2001:db8::ff",state="%s"}'
    assert found[other % "size"] == 255
    assert other % "excluded" not in found, "unknown is not 0"


def test_it_is_looked_up_each_time(exporter: Exporter) -> None:
    workers = iter(range(10))
    exporter.show(Readings(**{**READINGS.__dict__, "workers": lambda: next(workers)}))
    assert [values(exporter)["shimlan_workers"] for _ in range(3)] == [0, 1, 2]


def test_a_store_that_cannot_be_read_hides_nothing_else(exporter: Exporter, tmp_path: Path) -> None:
    def busy() -> Any:
        raise TryAgainLater("the store is busy")

    exporter.show(Readings(**{**READINGS.__dict__, "attachments": busy, "pools": busy}))
    for _ in range(2):
        found = families(exporter)
        assert not {"shimlan_attachments", "shimlan_pool_addresses"} & found.keys()
        assert {"shimlan_workers", "shimlan_requests", "process_open_fds"} <= found.keys()
    assert (tmp_path / "log").read_text() == "shimlan: warning: metrics are incomplete: the store is busy\n"


# --- the guide ---------------------------------------------------------------------------------------------------


@pytest.fixture
def everything(exporter: Exporter) -> dict[str, Metric]:
    """All families with a sample each."""
    exporter.show(READINGS)
    exporter.request("ADD", "lan", 0, 0.001)
    exporter.refused("not root")
    exporter.repaired("route")
    return families(exporter)


def exported_name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def test_the_guide_tells_every_metric(everything: dict[str, Metric]) -> None:
    table, _ = tables("docs/agent.md", "## Metrics")
    told = {row[0].strip("`"): (row[1], set(re.findall(r"`(\w+)`", row[2]))) for row in table}
    assert told == {
        exported_name(family): (family.type, set(family.samples[0].labels) - {"le"}) for family in everything.values()
    }


def test_the_guide_tells_why_connections_are_refused() -> None:
    _, table = tables("docs/agent.md", "## Metrics")
    assert [row[0].strip("`") for row in table] == [*REASONS.values(), server.FAILED]


def test_the_guides_rules_ask_for_what_there_is(everything: dict[str, Metric]) -> None:
    names = {sample.name for family in everything.values() for sample in family.samples}
    rules = re.findall(r"^ +expr: (.*)$", (ROOT / "docs/agent.md").read_text(), re.M)
    asked = {name for rule in rules for name in re.findall(r"\b(?:shimlan|process)_\w+", rule)}
    assert len(rules) > 5
    assert asked <= names
    assert all(rule.count("(") == rule.count(")") for rule in rules)


@pytest.mark.parametrize(("excluded", "alert"), [(0, False), (16, True)])
def test_the_guides_rule_about_ranges_goes_by_what_can_be_held(log: Journal, excluded: int, alert: bool) -> None:
    use = RangeUse("lan", ip_address("192.0.2.100"), ip_address("192.0.2.199"), 100, 84, 0, 0, excluded)
    exporter = Exporter(log)
    exporter.show(Readings(**{**READINGS.__dict__, "pools": lambda: [use]}))
    (rule,) = re.findall(r"ShimlanPoolNearlyFull\n +expr: (.*)$", (ROOT / "docs/agent.md").read_text(), re.M)
    states = {sample.labels["state"]: sample.value for sample in families(exporter)["shimlan_pool_addresses"].samples}
    arithmetic = re.sub(
        r'shimlan_pool_addresses\{state="(\w+)"\}',
        lambda match: str(states[match[1]]),
        rule.replace("ignoring (state)", ""),
    )
    assert eval(arithmetic) is alert


def test_the_guides_rule_about_adds_without_an_address_goes_by_their_error() -> None:
    (rule,) = re.findall(r"ShimlanNoAddressLeft\n +expr: (.*)$", (ROOT / "docs/agent.md").read_text(), re.M)
    assert f'command="ADD", code="{Exhausted.code}"' in rule


# --- by HTTP -----------------------------------------------------------------------------------------------------


class Switch:
    """A check whose answer can be changed."""

    def __init__(self) -> None:
        self.answer = (True, "ok")

    def __call__(self) -> tuple[bool, str]:
        return self.answer


@pytest.fixture
def ready() -> Switch:
    return Switch()


@pytest.fixture
def web(exporter: Exporter, log: Journal, ready: Switch) -> Iterator[Web]:
    exporter.show(READINGS)
    pages = {
        "/metrics": lambda: Page(200, CONTENT_TYPE, exporter.render()),
        "/healthz": lambda: health(lambda: (True, "ok")),
        "/readyz": lambda: health(ready),
    }
    web = Web(LOOPBACK, pages, log)
    yield web
    web.close()


def ask(web: Web, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str, str]:
    """Status, content type and body of an answer."""
    connection = http.client.HTTPConnection(host, web.port, timeout=30)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.headers.get("Content-Type", ""), response.read().decode()
    finally:
        connection.close()


def test_metrics_are_served(web: Web, exporter: Exporter) -> None:
    exporter.request("GC", "lan", 0, 0.1)
    status, content_type, text = ask(web, "/metrics")
    assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found = {family.name for family in text_string_to_metric_families(text)}
    assert {"shimlan_requests", "shimlan_pool_addresses", "shimlan_build_info", "process_open_fds"} <= found
    assert ask(web, "/metrics?debug=1")[0] == 200


def test_health_is_told(web: Web, ready: Switch) -> None:
    plain = "text/plain; charset=utf-8"
    assert ask(web, "/healthz") == (200, plain, "ok\n")
    ready.answer = (False, "waiting for the first pass over the host")
    assert ask(web, "/readyz") == (503, plain, "waiting for the first pass over the host\n")
    assert ask(web, "/healthz")[0] == 200
    ready.answer = (True, "ready")
    assert ask(web, "/readyz") == (200, plain, "ready\n")


@pytest.mark.parametrize("path", ["/", "/metrics/", "/healthz/../metrics", "/favicon.ico", "//"])
def test_nothing_else_is_there(web: Web, path: str) -> None:
    assert ask(web, path) == (404, "text/plain; charset=utf-8", "there are /metrics, /healthz, /readyz\n")


def test_only_reading_is_possible(web: Web) -> None:
    assert ask(web, "/healthz", "HEAD")[::2] == (200, "")
    assert ask(web, "/metrics", "POST")[0] == 501


def test_a_scraper_that_stalls_holds_up_nobody_and_does_not_last(log: Journal) -> None:
    """Neither one that sends nothing, nor one that sends slowly, nor one that does not read."""
    pages = {"/": lambda: EMPTY, "/huge": lambda: Page(200, "text/plain", bytes(32 << 20))}
    web = Web(LOOPBACK, pages, log, seconds=1)
    before = threading.active_count()
    with ExitStack() as stack:
        silent, slow, deaf = (stack.enter_context(connected(web)) for _ in range(3))
        deaf.sendall(b"GET /huge HTTP/1.1\r\n\r\n")
        slow.sendall(b"GET / HTTP/1.1\r\nHost: ")
        assert ask(web, "/")[0] == 200
        assert eventually(lambda: not still_open(slow))
        assert silent.recv(1) == b""
        assert eventually(lambda: threading.active_count() == before)
        assert ask(web, "/")[0] == 200
    web.close()


def test_connections_are_few(log: Journal) -> None:
    web = Web(LOOPBACK, {"/": lambda: EMPTY}, log, seconds=600)
    before = threading.active_count()
    with ExitStack() as stack:
        idle = [stack.enter_context(connected(web)) for _ in range(3 * serving.MOST_CONNECTIONS)]
        refused = idle[serving.MOST_CONNECTIONS :]
        assert all(connection.recv(1) == b"" for connection in refused)
        assert threading.active_count() == before + serving.MOST_CONNECTIONS
    assert eventually(lambda: threading.active_count() == before)
    assert ask(web, "/")[0] == 200
    web.close()


def connected(web: Web) -> socket.socket:
    return socket.create_connection(("127.0.0.1", web.port), 30)


def still_open(slow: socket.socket) -> bool:
    """Send one more byte; whether that was still possible."""
    try:
        slow.sendall(b"a")
    except OSError:
        return False
    return True


def eventually(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 30
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


@pytest.mark.parametrize(("host", "client"), [("::1", "::1"), ("", "::1"), ("", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")])
def test_both_families_are_served(log: Journal, host: str, client: str) -> None:
    web = Web(Endpoint(host, 0), {"/": lambda: Page(200, "text/plain", b"here")}, log)
    try:
        assert ask(web, "/", host=client)[2] == "here"
    finally:
        web.close()


def test_it_closes_at_once_and_can_be_opened_again(log: Journal) -> None:
    web = Web(LOOPBACK, {"/": lambda: EMPTY}, log, seconds=120)
    port = web.port
    started = time.monotonic()
    web.close()
    assert time.monotonic() - started < 30  # by itself it looks around once a minute
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 30)
    Web(Endpoint("127.0.0.1", port), {}, log).close()


def test_a_successor_may_listen_already(web: Web, log: Journal) -> None:
    Web(Endpoint("127.0.0.1", web.port), {}, log).close()


def test_a_port_that_is_taken_is_told(log: Journal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(IOFailure) as taken:
            Web(Endpoint("127.0.0.1", port), {}, log)
    assert taken.value.msg == (
        f"metrics: cannot listen on 127.0.0.1:{port}: Address already in use: another program has this port, "
        "choose another one"
    )
    with pytest.raises(IOFailure, match=r"cannot listen on \[2001:db8::1\]:9113: Cannot assign requested address"):
        Web(Endpoint("2001:db8::1", 9113), {}, log)


def test_a_bug_in_a_page_is_logged_and_ends_nothing(log: Journal, tmp_path: Path) -> None:
    def broken() -> Page:
        raise ValueError("a bug")

    web = Web(LOOPBACK, {"/broken": broken, "/": lambda: EMPTY}, log)
    with pytest.raises(http.client.RemoteDisconnected):
        ask(web, "/broken")
    assert ask(web, "/")[0] == 200
    web.close()
    assert "ValueError: a bug" in (tmp_path / "log").read_text()


def test_clients_that_hang_up_are_not_worth_a_line(web: Web, tmp_path: Path) -> None:
    for _ in range(5):
        client = connected(web)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        client.close()
    assert ask(web, "/healthz")[0] == 200
    assert (tmp_path / "log").read_text() == ""
