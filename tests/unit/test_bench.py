"""The pure parts of the benchmark, such as statistics and tables; and programs that do little, started and timed."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import agent, datapath, plots, report
from bench.__main__ import main
from bench.contenders import contenders
from bench.imports import own_times, render
from bench.process import Call, Failed, run, run_at_once
from bench.samples import (
    AGENT,
    DATA_PATH,
    IN_PROCESS,
    NO_LIMIT,
    PEER,
    Limit,
    Row,
    compared,
    median_ms,
    missed,
    percentile,
)

SECONDS = st.lists(st.floats(min_value=0, max_value=10), min_size=1)
ADD = Limit(6, aim=3)
ROWS = [
    Row(IN_PROCESS, "ADD", "ADD, single IPv4", 20.0, 8.0, PEER, ADD, short="ADD"),
    Row(IN_PROCESS, "DEL", "DEL, single IPv4", 2500.0, 1000.0, PEER, Limit(2, aim=1), short="DEL"),
    Row(IN_PROCESS, "STATUS", "STATUS", 12.34),
]
MIXED_ROWS = [
    Row(AGENT, "ADD", "ADD", 0.8, 8.0, PEER, short="ADD"),
    *ROWS,
    Row(AGENT, "LEASES", "ADD with 0 leases held", 0.8, short="0"),
    Row(AGENT, "LEASES", "ADD with 2,000 leases held", 0.9, 0.8, "with none", short="2,000"),
    Row(AGENT, "MEMORY", "threads", 12, 12, "before", Limit(1), unit=""),
    Row(DATA_PATH, "PATH", "pod to pod: round trip", 15, 20, datapath.BRIDGE, unit="µs", short="pod to pod"),
    Row(DATA_PATH, "PATH", "pod to pod: TCP", 12900, 9000, datapath.BRIDGE, unit="Mbit/s", short="pod to pod"),
]


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (1, 1), (20, 1), (50, 3), (80, 4), (99, 5), (100, 5)])
def test_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile([5, 3, 1, 2, 4], percent) == expected


@given(SECONDS, st.floats(min_value=0.1, max_value=100))
def test_percentile_is_a_value_that_enough_do_not_exceed(values: list[float], percent: float) -> None:
    value = percentile(values, percent)
    assert value in values
    assert sum(each <= value for each in values) >= len(values) * percent / 100 - 1e-9


def test_nothing_has_no_statistics() -> None:
    with pytest.raises(ValueError, match="no median"):
        median_ms([])
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


@pytest.mark.parametrize(
    ("ours", "verdict"), [(3.0, "ok, aim met"), (3.1, "ok"), (6.0, "ok"), (6.1, "**over**"), (600.0, "**over**")]
)
def test_verdict(ours: float, verdict: str) -> None:
    row = Row(IN_PROCESS, "ADD", "ADD", ours, 1.0, PEER, ADD)
    assert (row.verdict, row.over) == (verdict, verdict == "**over**")


@pytest.mark.parametrize(
    "row", [Row(AGENT, "A", "no limit", 9, 1, PEER), Row(AGENT, "A", "no other", 9, limit=Limit(2))]
)
def test_no_verdict_without_a_limit_and_something_to_compare_with(row: Row) -> None:
    assert (row.verdict, row.over) == ("", False)


@pytest.mark.parametrize(("now", "ratio", "over"), [(0, 1, False), (3, math.inf, True)])
def test_something_where_nothing_was_is_more(now: float, ratio: float, over: bool) -> None:
    row = Row(AGENT, "MEMORY", "numbers of namespaces", now, 0, "before", Limit(1), unit="")
    assert (row.ratio, row.over) == (ratio, over)


def test_compared_takes_medians_of_each_against_the_peer() -> None:
    series = {PEER: [0.004, 0.006], AGENT: [0.001], IN_PROCESS: [0.03, 0.01, 0.02]}
    ours, in_process = compared("ADD", "ADD", series, {IN_PROCESS: ADD})
    assert (ours.who, ours.ours, ours.other, ours.against, ours.limit) == (AGENT, 1, 5, PEER, NO_LIMIT)
    assert (in_process.who, in_process.ours, in_process.ratio, in_process.limit) == (IN_PROCESS, 20, 4, ADD)


def test_without_the_peer_there_is_nothing_to_compare_with() -> None:
    (row,) = compared("ADD", "ADD", {AGENT: [0.02]}, {AGENT: ADD})
    assert (row.other, row.ratio, row.against) == (None, None, "")


def test_missed() -> None:
    assert [row.key for row in missed(ROWS)] == ["DEL"]


def test_table() -> None:
    assert report.render_table(ROWS) == (
        "| what             | ratio | limit | aim | verdict     | in-process |    other | the other         |\n"
        "| ---------------- | ----: | ----: | --: | ----------- | ---------: | -------: | ----------------- |\n"
        "| ADD, single IPv4 |   2.5 |     6 |   3 | ok, aim met |    20.0 ms |  8.00 ms | reference plugins |\n"
        "| DEL, single IPv4 |   2.5 |     2 |   1 | **over**    |   2,500 ms | 1,000 ms | reference plugins |\n"
        "| STATUS           |       |       |     |             |    12.3 ms |          |                   |"
    )


def test_a_count_is_a_whole_number() -> None:
    (line,) = report.render_table(MIXED_ROWS[6:7]).splitlines()[2:]
    assert [cell.strip() for cell in line.split("|")[6:9]] == ["12", "12", "before"]


def test_each_has_a_table() -> None:
    assert list(report.sections(MIXED_ROWS)) == [AGENT, IN_PROCESS, DATA_PATH]
    assert report.render_table(ROWS) in report.render_tables(MIXED_ROWS)


def test_document_names_what_was_measured() -> None:
    document = report.render_document(MIXED_ROWS, {"kernel": "6.1"}, ["something was odd"], {"A plot": "plots/a.svg"})
    assert document.startswith("# Benchmarks\n")
    assert "\n![A plot](plots/a.svg)\n" in document
    assert [line for line in document.splitlines() if line.startswith("## ")] == [
        "## Client + agent",
        "## In-process",
        "## Macvlan + shim",
        "## What was measured",
    ]
    assert report.render_table(ROWS) in document
    assert document.endswith("- kernel: 6.1\n- something was odd\n")


def test_json() -> None:
    answer = report.as_json(ROWS, {"kernel": "6.1"}, ["odd"])
    assert (answer["measured"], answer["remarks"]) == ({"kernel": "6.1"}, ["odd"])
    assert answer["rows"][1] == {
        "who": IN_PROCESS,
        "key": "DEL",
        "what": "DEL, single IPv4",
        "ours": 2500.0,
        "other": 1000.0,
        "unit": "ms",
        "ratio": 2.5,
        "limit": 2,
        "aim": 1,
        "over": True,
        "against": PEER,
    }
    assert answer["rows"][2]["limit"] is None


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (ROWS, "over the limit: DEL, single IPv4 (in-process)"),
        (ROWS[:1], "no limit is missed"),
        (
            [Row(AGENT, "ADD", "ADD", 20.0, limit=Limit(6))],
            "no limit is missed; not checked, for there was nothing to compare with: ADD (client + agent)",
        ),
    ],
)
def test_conclusion(rows: list[Row], sentence: str) -> None:
    assert report.conclusion(rows) == sentence


def test_bars_are_of_who_was_measured_and_of_whom_with() -> None:
    assert plots.bars(MIXED_ROWS[:3]) == {
        AGENT: {"ADD": 0.8},
        IN_PROCESS: {"ADD": 20.0, "DEL": 2500.0},
        PEER: {"ADD": 8.0, "DEL": 1000.0},
    }


def test_being_compared_with_oneself_makes_no_bar() -> None:
    assert plots.bars(MIXED_ROWS[4:6]) == {AGENT: {"0": 0.8, "2,000": 0.9}}


def test_plots_of_the_same_rows_are_the_same_and_small(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra `bench`")
    once, again = (plots.draw(MIXED_ROWS, tmp_path / name) for name in ("once", "again"))
    assert [path.name for path in once.values()] == ["latency.svg", "leases.svg", "data-path.svg"]
    assert [path.read_bytes() for path in once.values()] == [path.read_bytes() for path in again.values()]
    assert all(path.stat().st_size < 60_000 for path in once.values())


def test_import_times() -> None:
    text = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:       120 |        120 |   zipimport\n"
        "import time:      1500 |       1620 | encodings\n"
        "a line that the plugin wrote\n"
    )
    assert own_times(text) == {"zipimport": 120, "encodings": 1500}
    assert render([("encodings", 1500.0), ("zipimport", 120.0)]).splitlines() == [
        "    1.50 ms  encodings",
        "    0.12 ms  zipimport",
        "    1.62 ms  all 2 modules, measuring included",
    ]


def test_contenders_are_those_that_there_are() -> None:
    everybody = contenders("/bin/shimlan", "/build/shimlan", "/bin/shimlanctl agent", "/usr/lib/cni")
    assert [(each.name, each.executable, each.agent) for each in everybody] == [
        (PEER, "/usr/lib/cni/macvlan", ()),
        (AGENT, "/build/shimlan", ("/bin/shimlanctl", "agent")),
        (IN_PROCESS, "/bin/shimlan", ()),
    ]
    assert [each.is_ours for each in everybody] == [False, True, True]
    assert [each.name for each in contenders("/bin/shimlan", "", "/bin/shimlanctl agent", "")] == [IN_PROCESS]


def test_round_trips_of_ping() -> None:
    told = (
        "PING 192.0.2.101 (192.0.2.101) 56(84) bytes of data.\n"
        "64 bytes from 192.0.2.101: icmp_seq=1 ttl=64 time=0.015 ms\n"
        "64 bytes from 192.0.2.101: icmp_seq=2 ttl=64 time=1.20 ms\n\n"
        "2 packets transmitted, 2 received, 0% packet loss, time 1ms\n"
    )
    assert datapath.microseconds(told) == [15, 1200]


def python(script: str, stdin: bytes = b"") -> Call:
    return Call((sys.executable, "-IS", "-c", script), {"CNI_COMMAND": "ADD"}, stdin)


def test_a_call_gets_its_input_and_environment_and_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    script = "import os, sys; sys.stderr.write('log'); print(sys.stdin.read(), *os.environ)"
    answer = run(python(script, b"input"))
    stdin, *names = answer.stdout.split()
    assert stdin == b"input"
    assert b"CNI_COMMAND" in names
    assert not [name for name in names if name.startswith(b"PYTHON")]
    assert answer.stderr == b"log"
    assert answer.seconds > 0


def test_a_call_lasts_as_long_as_somebody_holds_its_output() -> None:
    script = "import os, time\nif not os.fork(): time.sleep(0.2); print('late', flush=True)\nos._exit(0)"
    answer = run(python(script))
    assert answer.seconds >= 0.2
    assert answer.stdout == b"late\n"


def test_a_call_that_fails_says_why() -> None:
    with pytest.raises(Failed, match=r"^ADD .*: exit status 3: out err$"):
        run(python("import sys; sys.stdout.write('out'); sys.stderr.write('err'); sys.exit(3)"))


def test_calls_at_once_overlap() -> None:
    script = "import time; time.sleep(0.2); print('{}')"
    wall, answers = run_at_once([python(script)] * 5)
    assert [answer.json for answer in answers] == [{}] * 5
    assert wall < sum(answer.seconds for answer in answers)


def test_a_call_that_is_asked_to_try_again_does_so(tmp_path: Path) -> None:
    script = """
import os, sys, time
time.sleep(0.1)
try:
    os.mkdir("{}")
except FileExistsError:
    print('{{"address": 1}}')
else:
    sys.exit(print('{{"code": 11}}') or 1)
"""
    wall, [answer] = run_at_once([python(script.format(tmp_path / "tried"))])
    assert answer.json == {"address": 1}
    assert 0.2 <= answer.seconds <= wall


def test_all_calls_at_once_end_before_a_failure_is_told(tmp_path: Path) -> None:
    late = tmp_path / "late"
    scripts = ["import sys; sys.exit(1)", f"import time; time.sleep(0.3); open('{late}', 'w')"]
    with pytest.raises(Failed, match="exit status 1"):
        run_at_once(map(python, scripts))
    assert late.exists()


@pytest.mark.parametrize("arguments", [["--only", "ADD,NOTHING"], ["--rounds", "0"]])
def test_wrong_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--plugin", "/bin/sh", *arguments])
    assert "error: argument" in capsys.readouterr().err


def test_a_plugin_that_cannot_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plugin", "/bin/sh"]) == 2
    assert "/bin/sh is no script" in capsys.readouterr().err


def test_an_agent_without_a_client(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--plugin", "/bin/sh", "--client", "", "--contender", "agent"])
    assert "there is no native client" in capsys.readouterr().err


# --- an agent, which here is a program that makes a file and waits ------------------------------------------------

WAITING = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit({status}))
open({file!r}, "w").close()
print("here", flush=True)
until = time.process_time() + {busy}
while time.process_time() < until: pass
time.sleep(60)
"""


def stand_in(file: Path, *, status: int = 0, busy: float = 0) -> list[str]:
    return [sys.executable, "-IS", "-c", WAITING.format(file=str(file), status=status, busy=busy)]


def test_an_agent_runs_for_the_time_of_a_block(tmp_path: Path) -> None:
    file = tmp_path / "here"
    with agent.running(stand_in(file), None, str(tmp_path / "log"), file.exists) as running:
        assert file.exists()
        footprint = running.footprint()
        assert 1 < footprint.megabytes < 100
        assert (footprint.threads, footprint.descriptors) == (1, 3)
    assert (tmp_path / "log").read_text() == "here\n"


def test_the_processor_time_of_an_agent(tmp_path: Path) -> None:
    file = tmp_path / "here"
    with agent.running(stand_in(file, busy=0.3), None, str(tmp_path / "log"), file.exists) as running:
        deadline = time.monotonic() + 20
        while running.cpu_seconds() < 0.3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert 0.3 <= running.cpu_seconds() < 2


def test_an_agent_that_does_not_come_up_is_quoted(tmp_path: Path) -> None:
    command = [sys.executable, "-IS", "-c", "import sys; sys.exit('no such directory')"]
    starting = agent.running(command, None, str(tmp_path / "log"), lambda: False)
    with pytest.raises(Failed, match="ended with status 1 before it answered: no such directory"), starting:
        pytest.fail("it answers")


def test_an_agent_that_ends_badly_is_told(tmp_path: Path) -> None:
    file = tmp_path / "here"
    starting = agent.running(stand_in(file, status=3), None, str(tmp_path / "log"), file.exists)
    with pytest.raises(Failed, match="the agent ended with status 3: here"), starting:
        pass
