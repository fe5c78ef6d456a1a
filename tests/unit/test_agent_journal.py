"""The agent's log: lines that machines and people read, whose call they belong to, and that nothing fails with it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.agent import journal as module
from cni.agent.journal import Journal
from cni.config import NetConf, parse, parse_for_delete
from cni.log import LEVELS, Log
from cni.protocol import Call
from tests.unit.test_docs import ROOT

CONTAINER = "0123456789abcdef"
CALL = Call("ADD", CONTAINER, "/run/netns/x", "eth0")
POD = {"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": "web-0"}
CLEARING = "clearing what an earlier ADD of this container left behind"


@pytest.fixture
def stderr(tmp_path: Path) -> Iterator[TextIO]:
    with open(tmp_path / "stderr", "a", encoding="utf-8") as file:
        yield file


def conf(**keys: Any) -> NetConf:
    return parse({"name": "lan", "type": "shimlan", **keys}, POD)


def lines(stream: TextIO) -> list[str]:
    return Path(stream.name).read_text().splitlines()


def entries(stream: TextIO) -> list[dict[str, str]]:
    return [json.loads(line) for line in lines(stream)]


# --- text --------------------------------------------------------------------------------------------------------


def test_a_line_of_text_tells_whose_call_it_is(stderr: TextIO) -> None:
    journal = Journal(stderr).for_call(CALL, conf())
    journal.info(CLEARING)
    assert lines(stderr) == [f"shimlan: info: ADD lan 0123456789abc eth0 default/web-0: {CLEARING}"]
    assert f"    {lines(stderr)[0]}\n" in (ROOT / "docs/agent.md").read_text()


def test_words_that_are_not_known_are_left_out(stderr: TextIO) -> None:
    journal = Journal(stderr)
    journal.info("started")
    journal.with_context(network="lan").with_context(command="GC", network="", container="abc").warning("odd")
    journal.info("going on")
    assert lines(stderr) == ["shimlan: info: started", "shimlan: warning: lan GC abc: odd", "shimlan: info: going on"]


@pytest.mark.parametrize(
    ("level", "written"),
    [("error", 1), ("warning", 2), ("info", 3), ("debug", 4)],
)
def test_lines_up_to_a_level_are_written(stderr: TextIO, level: str, written: int) -> None:
    journal = Journal(stderr, level)
    for method in (journal.error, journal.warning, journal.info, journal.debug):
        method("x")
    assert lines(stderr) == [f"shimlan: {name}: x" for name in LEVELS[:written]]
    assert journal.is_detailed == (level == "debug")


def test_a_message_of_several_lines_is_as_many_lines(stderr: TextIO) -> None:
    Journal(stderr).with_context(command="DEL").error("Traceback:\n  File\n")
    assert lines(stderr) == ["shimlan: error: DEL: Traceback:", "shimlan: error: DEL:   File"]


@given(message=st.text(), pod=st.text(max_size=20))
def test_no_message_can_look_like_another_line(
    tmp_path_factory: pytest.TempPathFactory, message: str, pod: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "lines"
    with open(file, "w", encoding="utf-8") as stream:
        journal = Journal(stream).with_context(command="ADD", pod=pod)
        journal.error(message)
    written = file.read_bytes().decode().split("\n")
    assert written.pop() == ""
    assert all(line.startswith("shimlan: error: ADD") and line.isprintable() for line in written)


def test_control_characters_and_halves_of_surrogates_are_shown(stderr: TextIO) -> None:
    Journal(stderr).info("a\x1b[2Jb\udc80 ü")
    assert lines(stderr) == ["shimlan: info: a\\x1b[2Jb\\udc80 ü"]


# --- on systemd --------------------------------------------------------------------------------------------------


def test_the_journal_of_systemd_is_told_the_priority(stderr: TextIO) -> None:
    status = os.fstat(stderr.fileno())
    journal = Journal(stderr, "debug", environ={"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
    for method in (journal.error, journal.warning, journal.info, journal.debug):
        method("x\ny")
    assert [line[: line.index(" ")] for line in lines(stderr)] == [
        *("<3>shimlan:", "<3>shimlan:", "<4>shimlan:", "<4>shimlan:"),
        *("<6>shimlan:", "<6>shimlan:", "<7>shimlan:", "<7>shimlan:"),
    ]


@pytest.mark.parametrize("environ", [{}, {"JOURNAL_STREAM": ""}, {"JOURNAL_STREAM": "8:12345"}])
def test_a_stream_that_is_not_the_journal_is_not(stderr: TextIO, environ: dict[str, str]) -> None:
    Journal(stderr, environ=environ).info("x")
    assert lines(stderr) == ["shimlan: info: x"]


# --- JSON --------------------------------------------------------------------------------------------------------


def test_a_line_of_json_has_everything(stderr: TextIO) -> None:
    before = datetime.now().astimezone()
    Journal(stderr, format="json").for_call(CALL, conf()).info(f"{CLEARING}\n")
    (entry,) = entries(stderr)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", entry["time"])
    assert abs((datetime.fromisoformat(entry.pop("time")) - before).total_seconds()) < 60
    assert entry == {
        "level": "info",
        "message": CLEARING,
        "command": "ADD",
        "network": "lan",
        "container": CONTAINER,
        "ifname": "eth0",
        "pod": "default/web-0",
    }


def test_the_guide_shows_such_a_line(stderr: TextIO) -> None:
    Journal(stderr, format="json").for_call(CALL, conf()).info(CLEARING)
    (shown,) = re.findall(r"^\{.*\}$", (ROOT / "docs/agent.md").read_text(), re.M)
    assert list(json.loads(shown).items())[1:] == list(entries(stderr)[0].items())[1:]


@given(st.text())
def test_any_message_is_one_line_of_json(tmp_path_factory: pytest.TempPathFactory, message: str) -> None:
    file = tmp_path_factory.getbasetemp() / "json"
    with open(file, "w", encoding="utf-8") as stream:
        Journal(stream, format="json").error(message)
    written = file.read_text()
    assert written.count("\n") == 1
    assert json.loads(written)["message"] == message.rstrip()


# --- the keys of a network ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("agent", LEVELS)
@pytest.mark.parametrize("network", [*LEVELS, "warn", None])
def test_the_networks_level_wins_where_it_has_one(stderr: TextIO, agent: str, network: str | None) -> None:
    journal = Journal(stderr, agent).for_call(CALL, conf(logLevel=network))
    for method in (journal.error, journal.warning, journal.info, journal.debug):
        method("x")
    level = agent if network is None else "warning" if network == "warn" else network
    assert len(lines(stderr)) == LEVELS.index(level) + 1


def test_another_networks_calls_keep_the_agents_level(stderr: TextIO) -> None:
    journal = Journal(stderr)
    journal.for_call(CALL, conf(logLevel="debug"))
    journal.debug("x")
    journal.for_call(CALL, conf()).debug("x")
    assert lines(stderr) == []


def test_a_wrong_level_does_not_keep_a_pod_from_going_away(stderr: TextIO) -> None:
    broken = parse_for_delete({"name": "lan", "logLevel": "loud"}, {})
    Journal(stderr, "error").for_call(CALL, broken).info("x")
    assert len(lines(stderr)) == 1


def test_the_networks_file_has_the_lines_of_its_calls_too(stderr: TextIO, tmp_path: Path) -> None:
    file = tmp_path / "lan.log"
    journal = Journal(stderr, format="json")
    call = journal.for_call(CALL, conf(logFile=str(file)))
    call.warning("odd\nvery")
    call.debug("not wanted")
    journal.warning("of somebody else")
    context = "shimlan: warning: ADD lan 0123456789abc eth0 default/web-0: "
    stamps, texts = zip(*(line.split(" ", 1) for line in file.read_text().splitlines()), strict=True)
    assert texts == (f"{context}odd", f"{context}very")
    assert all(datetime.fromisoformat(stamp).tzinfo for stamp in stamps)
    assert [entry["message"] for entry in entries(stderr)] == ["odd\nvery", "of somebody else"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_file_looks_as_the_in_process_plugin_writes_it(stderr: TextIO, tmp_path: Path) -> None:
    by_agent, by_plugin = tmp_path / "agent.log", tmp_path / "plugin.log"
    without_pod = parse({"name": "lan", "logFile": str(by_agent)}, {})
    Journal(stderr).for_call(CALL, without_pod).info("x")
    Log(stderr, "info", str(by_plugin), f"ADD lan {CONTAINER[:13]} eth0: ").info("x")
    assert by_agent.read_text().split(" ", 1)[1] == by_plugin.read_text().split(" ", 1)[1]


# --- what may go wrong -------------------------------------------------------------------------------------------


def test_nobody_has_to_read_it(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with open(writer, "w", encoding="utf-8") as stream:
        journal = Journal(stream).for_call(CALL, conf(logFile=str(tmp_path / "missing" / "log")))
        os.close(reader)
        journal.error("broken pipe")
    journal.error("closed")


def test_a_file_may_be_a_pipe_that_nobody_reads(stderr: TextIO, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    Journal(stderr).for_call(CALL, conf(logFile=str(tmp_path / "pipe"))).info("x")
    assert len(lines(stderr)) == 1


def test_lines_of_many_threads_stay_whole() -> None:
    """Even through a full pipe, where the kernel mixes what is longer than 4096 bytes (pipe(7), PIPE_BUF)."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    written = [str(number) * 20_000 for number in range(8)]

    def write_all() -> None:
        with open(writer, "w", encoding="utf-8") as stream:
            journal = Journal(stream, format="json")
            threads = [threading.Thread(target=journal.info, args=(message,)) for message in written]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    writing = threading.Thread(target=write_all)
    writing.start()
    with open(reader, encoding="utf-8") as stream:
        messages = [json.loads(line)["message"] for line in stream]
    writing.join()
    assert sorted(messages) == written


# --- repetition --------------------------------------------------------------------------------------------------


def test_what_is_said_again_and_again_is_said_once_in_a_while(stderr: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    journal = Journal(stderr)
    assert journal.once_per(60, "busy")
    assert not journal.with_context(network="lan").once_per(60, "busy")
    assert journal.once_per(60, ("busy", "other"))
    now += 59.9
    assert not journal.once_per(60, "busy")
    now += 0.1
    assert journal.once_per(60, "busy")
    assert not journal.once_per(60, "busy")


def test_no_number_of_keys_fills_the_memory(stderr: TextIO) -> None:
    journal = Journal(stderr)
    assert all(journal.once_per(60, key) for key in range(3 * module.MOST_KEYS))
    assert len(journal._due) <= module.MOST_KEYS
    assert not journal.once_per(60, 3 * module.MOST_KEYS - 1)
