"""The pure parts of the benchmark: statistics, verdicts, the table; and calls timed with programs that do little."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import report
from bench.__main__ import main
from bench.imports import own_times, render
from bench.process import Call, Failed, run, run_at_once
from bench.samples import PEER, Row, compared, median_ms, missed, percentile_ms

SECONDS = st.lists(st.floats(min_value=0, max_value=10), min_size=1)
ROWS = [
    Row("ADD", "ADD, single IPv4", 20.0, 8.0, PEER, limit=6, aim=3),
    Row("DEL", "DEL, single IPv4", 250.0, 100.0, PEER, limit=2, aim=1),
    Row("STATUS", "STATUS", 12.34),
]


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1000), (1, 1000), (20, 1000), (50, 3000), (80, 4000), (99, 5000), (100, 5000)]
)
def test_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile_ms([5, 3, 1, 2, 4], percent) == expected


@given(SECONDS, st.floats(min_value=0.1, max_value=100))
def test_percentile_is_a_time_that_enough_do_not_exceed(seconds: list[float], percent: float) -> None:
    value = percentile_ms(seconds, percent)
    assert value in [each * 1000 for each in seconds]
    assert sum(each * 1000 <= value for each in seconds) >= len(seconds) * percent / 100 - 1e-9


def test_nothing_has_no_statistics() -> None:
    with pytest.raises(ValueError, match="no median"):
        median_ms([])
    with pytest.raises(ValueError, match="no times"):
        percentile_ms([], 50)


@pytest.mark.parametrize(
    ("ours", "verdict"), [(3.0, "ok, aim met"), (3.1, "ok"), (6.0, "ok"), (6.1, "**over**"), (600.0, "**over**")]
)
def test_verdict(ours: float, verdict: str) -> None:
    row = Row("ADD", "ADD", ours, 1.0, PEER, limit=6, aim=3)
    assert (row.verdict, row.over) == (verdict, verdict == "**over**")


@pytest.mark.parametrize("row", [Row("A", "no limit", 9, 1, PEER), Row("A", "no other", 9, limit=2)])
def test_no_verdict_without_a_limit_and_something_to_compare_with(row: Row) -> None:
    assert (row.verdict, row.over) == ("", False)


def test_compared_takes_medians() -> None:
    row = compared("ADD", "ADD", [0.03, 0.01, 0.02], [0.004, 0.006], limit=6)
    assert (row.ours, row.other, row.against) == (20, 5, PEER)
    assert row.ratio == 4


def test_compared_without_the_peer() -> None:
    row = compared("ADD", "ADD", [0.02], [], limit=6)
    assert (row.other, row.ratio, row.against) == (None, None, "")


def test_missed() -> None:
    assert [row.key for row in missed(ROWS)] == ["DEL"]


def test_table() -> None:
    assert report.render_table(ROWS) == (
        "| what             | ratio | limit | aim | verdict     | shimlan, ms | other, ms | the other         |\n"
        "| ---------------- | ----: | ----: | --: | ----------- | ----------: | --------: | ----------------- |\n"
        "| ADD, single IPv4 |   2.5 |     6 |   3 | ok, aim met |        20.0 |       8.0 | reference plugins |\n"
        "| DEL, single IPv4 |   2.5 |     2 |   1 | **over**    |         250 |       100 | reference plugins |\n"
        "| STATUS           |       |       |     |             |        12.3 |           |                   |"
    )


def test_document_names_what_was_measured() -> None:
    document = report.render_document(ROWS, {"kernel": "6.1"}, ["something was odd"], 31)
    assert document.startswith("# Benchmarks\n")
    assert report.render_table(ROWS) in document
    assert document.endswith("- kernel: 6.1\n- 31 rounds\n- something was odd\n")


def test_json() -> None:
    answer = report.as_json(ROWS, {"kernel": "6.1"}, [], 9)
    assert (answer["machine"], answer["rounds"], answer["remarks"]) == ({"kernel": "6.1"}, 9, [])
    assert answer["rows"][1] == {
        "key": "DEL",
        "what": "DEL, single IPv4",
        "ours_ms": 250.0,
        "other_ms": 100.0,
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
        (ROWS, "over the limit: DEL, single IPv4"),
        (ROWS[:1], "no limit is missed"),
        (
            [Row("ADD", "ADD", 20.0, limit=6)],
            "no limit is missed; not checked, for there was nothing to compare with: ADD",
        ),
    ],
)
def test_conclusion(rows: list[Row], sentence: str) -> None:
    assert report.conclusion(rows) == sentence


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


@pytest.mark.parametrize("arguments", [["--only", "ADD,NOTHING"], ["--rounds", "0"]])
def test_wrong_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--plugin", "/bin/sh", *arguments])
    assert "error: argument" in capsys.readouterr().err


def test_a_plugin_that_cannot_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plugin", "/bin/sh"]) == 2
    assert "/bin/sh is no script" in capsys.readouterr().err
