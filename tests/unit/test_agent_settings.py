"""The agent's settings: what a file and a command line may say, which of them wins, and how a slip is told."""

from __future__ import annotations

import argparse
import configparser
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cni.agent.settings import KEYS, Endpoint, Settings, load
from cni.ctl import agent
from cni.errors import InvalidConfig, IOFailure
from tests.unit.configurations import JSON
from tests.unit.test_docs import ROOT, tables

GUIDE = (ROOT / "docs/agent.md").read_text()
FULL = {
    "socket": "/run/s",
    "stateDir": "/var/s",
    "metrics": "[::1]:9113",
    "logFormat": "json",
    "logLevel": "debug",
    "resyncSeconds": 1,
    "graceSeconds": 2,
    "stopSeconds": 3,
    "maxWorkers": 4,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "agent.yaml"


def told(file: Path, text: str) -> str:
    """What is said about a file that is refused, without its name."""
    file.write_text(text)
    with pytest.raises(InvalidConfig) as refused:
        load(str(file), {})
    return refused.value.msg.replace(str(file), "FILE")


def command_line(*arguments: str) -> Settings:
    parser = argparse.ArgumentParser(prog="shimlanctl agent")
    agent.add_arguments(parser)
    return agent.settings_of(parser.parse_args(arguments))


# --- the file ----------------------------------------------------------------------------------------------------


def test_without_a_file_there_are_the_defaults() -> None:
    assert load(None, {}) == Settings(
        socket="/run/shimlan/agent.sock",
        state_dir="/var/lib/cni/shimlan",
        metrics=None,
        log_format="text",
        log_level="info",
        resync_seconds=30,
        grace_seconds=60,
        stop_seconds=30,
        max_workers=256,
        take_over=False,
    )


def test_a_file_may_say_everything(file: Path) -> None:
    file.write_text(yaml.safe_dump(FULL))
    assert load(str(file), {}) == Settings("/run/s", "/var/s", Endpoint("::1", 9113), "json", "debug", 1, 2, 3, 4)
    assert FULL.keys() == KEYS.keys()


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "{}", "metrics:\nlogLevel: null\n"])
def test_a_file_may_say_nothing(file: Path, text: str) -> None:
    file.write_text(text)
    assert load(str(file), {}) == Settings()


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("metrics: 127.0.0.1:9113", "metrics", Endpoint("127.0.0.1", 9113)),
        ("metrics: :9113", "metrics", Endpoint("", 9113)),
        ('metrics: "[::]:1"', "metrics", Endpoint("::", 1)),
        ("metrics: 0.0.0.0:65535", "metrics", Endpoint("0.0.0.0", 65535)),
        ("logLevel: warn", "log_level", "warning"),
        ("logLevel: warning", "log_level", "warning"),
        ("stopSeconds: 0", "stop_seconds", 0),
    ],
)
def test_values_that_are_understood(file: Path, text: str, field: str, value: object) -> None:
    file.write_text(text)
    assert getattr(load(str(file), {}), field) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("socket: agent.sock", 'socket: "agent.sock" must be an absolute path'),
        ("stateDir: 5", "stateDir: must be a string, not 5"),
        ("stateDir: 2024-01-01", 'stateDir: "2024-01-01" must be an absolute path'),
        ("metrics: 9113", "metrics: must be ADDR:PORT such as 127.0.0.1:9113, not 9113"),
        ("metrics: eth0", 'metrics: must be ADDR:PORT such as 127.0.0.1:9113, not "eth0"'),
        ("metrics: ::1:9113", 'metrics: "::1": an IPv6 address, and no other, stands in brackets, as in [::1]:9113'),
        ('metrics: "[127.0.0.1]:9113"', "an IPv6 address, and no other, stands in brackets"),
        ("metrics: localhost:9113", 'metrics: "localhost" is not an IP address'),
        ("metrics: 127.0.0.1:0", "the port must be between 1 and 65535"),
        ("metrics: 127.0.0.1:65536", "the port must be between 1 and 65535"),
        (f"metrics: 127.0.0.1:{'1' * 5000}", "the port must be between 1 and 65535"),
        ("metrics: 127.0.0.1:http", "the port must be between 1 and 65535"),
        ("metrics: [9113]", "metrics: must be ADDR:PORT such as 127.0.0.1:9113, not a list"),
        ("logFormat: xml", 'logFormat: must be one of text, json, not "xml"'),
        ("logLevel: off", "logLevel: must be one of error, warning, warn, info, debug, not false"),
        ("resyncSeconds: 0", "resyncSeconds: must be between 1 and 86400, not 0"),
        ("graceSeconds: 0.5", "graceSeconds: must be a whole number, not 0.5"),
        ("stopSeconds: -1", "stopSeconds: must be between 0 and 3600, not -1"),
        ("maxWorkers: true", "maxWorkers: must be a whole number, not true"),
        ("resyncSecond: 5", "resyncSecond: there is no such setting; did you mean resyncSeconds?"),
        ("log_level: info", "log_level: there is no such setting; did you mean logLevel?"),
        ("takeOver: true", f"takeOver: must be one of {', '.join(KEYS)}"),
        ("5: 5", f"5: must be one of {', '.join(KEYS)}"),
        ("logLevel: info\nlogLevel: debug", "logLevel: stands here more than once"),
        ("- logLevel: info", 'FILE must hold lines such as "logLevel: info", not a list'),
        ("info", 'FILE must hold lines such as "logLevel: info", not "info"'),
        ("2024-01-01", 'FILE must hold lines such as "logLevel: info", not "2024-01-01"'),
        ("metrics: [::1]:9113", "FILE is not YAML: "),
        ("socket: 2024-13-45", "FILE is not YAML: "),
        ("a: 1\n---\na: 2", "FILE is not YAML: "),
        ("\x00", "FILE is not YAML: "),
    ],
)
def test_values_that_are_refused(file: Path, text: str, problem: str) -> None:
    assert problem in told(file, text)


def test_all_problems_are_told_at_once(file: Path) -> None:
    assert told(file, "socket: x\nlogFormat: y\nlogFromat: json\nmaxWorkers: 0\nmaxWorkers: 0\n") == (
        "FILE: logFromat: there is no such setting; did you mean logFormat?; "
        "maxWorkers: stands here more than once; "
        'socket: "x" must be an absolute path; '
        'logFormat: must be one of text, json, not "y"; '
        "maxWorkers: must be between 1 and 4096, not 0"
    )


@given(st.dictionaries(st.sampled_from([*KEYS, "other"]), JSON, max_size=4))
def test_whatever_a_file_says_it_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(yaml.safe_dump(values))
    with suppress(InvalidConfig):
        assert isinstance(load(str(file), {}), Settings)


def test_a_file_that_cannot_be_read(file: Path, tmp_path: Path) -> None:
    with pytest.raises(IOFailure, match=r"agent\.yaml: No such file or directory"):
        load(str(file), {})
    with pytest.raises(IOFailure, match="Is a directory"):
        load(str(tmp_path), {})


def test_yaml_is_loaded_only_for_a_file() -> None:
    code = "import sys, cni.ctl.agent as agent; agent.settings.load(None, {}); print('yaml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- the command line --------------------------------------------------------------------------------------------


def test_a_command_line_needs_to_say_nothing() -> None:
    assert command_line() == Settings()


def test_a_command_line_wins_over_the_file(file: Path) -> None:
    file.write_text("socket: /run/file\nlogLevel: debug\nlogFormat: json\n")
    assert command_line(
        *("--config", str(file), "--socket", "/run/line", "--state-dir", "/var/line"),
        *("--metrics", ":9113", "--log-level", "warn", "--take-over"),
    ) == Settings("/run/line", "/var/line", Endpoint("", 9113), "json", "warning", take_over=True)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--socket", "agent.sock"], 'argument --socket: "agent.sock" must be an absolute path'),
        (["--metrics", "9113"], "argument --metrics: must be ADDR:PORT"),
        (["--log-level", "loud"], "argument --log-level: must be one of error, warning, warn, info, debug"),
        (["--log-format", ""], "argument --log-format: must be one of text, json"),
        (["--config"], "argument --config: expected one argument"),
    ],
)
def test_a_wrong_option_is_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str) -> None:
    with pytest.raises(SystemExit) as end:
        command_line(*arguments)
    assert end.value.code == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("endpoint", [Endpoint("", 1), Endpoint("127.0.0.1", 65535), Endpoint("2001:db8::1", 9113)])
def test_an_endpoint_is_shown_as_it_is_written(endpoint: Endpoint) -> None:
    assert command_line("--metrics", str(endpoint)).metrics == endpoint


# --- the guide ---------------------------------------------------------------------------------------------------


def test_the_guide_tells_every_key_option_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    (table,) = tables("docs/agent.md", "## Options and settings")
    with pytest.raises(SystemExit):
        command_line("--help")
    usage = set(re.findall(r"^  (--[\w-]+(?: [A-Z:]+)?)", capsys.readouterr().out, re.M))
    assert {row[1].strip("`") for row in table} - {"-"} == usage
    defaults = {row[0].strip("`"): row[2].strip("`") for row in table if row[0] != "-"}
    assert defaults.keys() == KEYS.keys()
    for key, default in defaults.items():
        value = getattr(Settings(), re.sub(r"([A-Z])", r"_\1", key).lower())
        assert default == ("off" if value is None else str(value))


def test_the_guides_file_is_a_good_one(file: Path) -> None:
    (example,) = re.findall(r"^```yaml\n(# /etc/shimlan/agent.yaml\n.*?)^```", GUIDE, re.M | re.S)
    file.write_text(example)
    assert load(str(file), {}) == Settings(metrics=Endpoint("127.0.0.1", 9113), log_format="json", grace_seconds=120)


def test_the_guide_shows_what_is_said_about_a_slip(file: Path) -> None:
    said = told(file, "resyncSecond: 5\nlogLevel: loud\n").replace("FILE", "/etc/shimlan/agent.yaml")
    assert f"    shimlanctl: {said}\n" in GUIDE


def test_the_guides_units_fit_the_defaults() -> None:
    units = {}
    for name, text in re.findall(r"^```ini\n# /etc/systemd/system/(\S+)\n(.*?)^```", GUIDE, re.M | re.S):
        units[name] = configparser.ConfigParser(interpolation=None)
        units[name].read_string(text)
    socket, service = units["shimlan.socket"]["Socket"], units["shimlan.service"]["Service"]
    assert socket["ListenStream"] == Settings().socket
    assert socket["SocketMode"] == "0600"
    assert int(service["TimeoutStopSec"]) > Settings().stop_seconds
    command, verb, *arguments = service["ExecStart"].split()
    assert (command.rpartition("/")[2], verb) == ("shimlanctl", "agent")
    parser = argparse.ArgumentParser()
    agent.add_arguments(parser)
    assert f"```yaml\n# {parser.parse_args(arguments).config}\n" in GUIDE
