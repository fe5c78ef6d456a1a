"""The frame of the executable: whatever it is given, it answers with JSON and an exit status."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

import pytest

from cni.plugin import main
from cni.protocol import VERSIONS

COMPLETE = {"CNI_CONTAINERID": "abc", "CNI_NETNS": "/nonexistent", "CNI_IFNAME": "eth0"}


class Unreadable(io.RawIOBase):
    """A standard input that is closed or broken."""

    def read(self, _size: int = -1) -> bytes:
        raise OSError(5, "Input/output error")


def call(environ: dict[str, str], stdin: Any = b"") -> tuple[int, str, str]:
    """Exit status, stdout and stderr of one call."""
    stdout, stderr = io.StringIO(), io.StringIO()
    stream = io.BytesIO(stdin) if isinstance(stdin, bytes) else stdin
    return main(environ, stream, stdout, stderr), stdout.getvalue(), stderr.getvalue()


def error(environ: dict[str, str], stdin: Any = b"") -> dict[str, Any]:
    """The error object of a call that fails without a word on stderr."""
    status, stdout, stderr = call(environ, stdin)
    assert (status, stderr) == (1, "")
    answer: dict[str, Any] = json.loads(stdout)
    assert set(answer) <= {"cniVersion", "code", "msg", "details"}
    return answer


def test_without_a_command_it_says_what_it_is() -> None:
    status, stdout, stderr = call({})
    assert (status, stdout) == (0, "")
    assert stderr.startswith("CNI plugin shimlan ")
    assert ", ".join(VERSIONS) in stderr


@pytest.mark.parametrize("stdin", [b"", b"nonsense", b'{"cniVersion": "1.0.0"}'])
def test_version_needs_no_configuration(stdin: bytes) -> None:
    status, stdout, _ = call({"CNI_COMMAND": "VERSION", "CNI_IFNAME": "dummy"}, stdin)
    assert status == 0
    assert json.loads(stdout)["supportedVersions"] == list(VERSIONS)


@pytest.mark.parametrize("version", VERSIONS)
def test_version_and_errors_are_in_the_asked_version(version: str) -> None:
    conf = json.dumps({"cniVersion": version, "name": "lan", "type": "shimlan", "mtu": "much"}).encode()
    _, stdout, _ = call({"CNI_COMMAND": "VERSION"}, conf)
    assert json.loads(stdout)["cniVersion"] == version
    answer = error({**COMPLETE, "CNI_COMMAND": "ADD"}, conf)
    assert (answer["cniVersion"], answer["code"]) == (version, 7)


FAILURES: dict[str, tuple[dict[str, str], Any, int]] = {
    "unknown command": ({"CNI_COMMAND": "JUMP"}, b"{}", 4),
    "missing variables": ({"CNI_COMMAND": "ADD"}, b"{}", 4),
    "bad arguments": ({**COMPLETE, "CNI_COMMAND": "ADD", "CNI_ARGS": "X=y"}, b"{}", 4),
    "nothing on stdin": ({**COMPLETE, "CNI_COMMAND": "ADD"}, b"", 6),
    "no JSON on stdin": ({**COMPLETE, "CNI_COMMAND": "ADD"}, b"{]", 6),
    "no object on stdin": ({**COMPLETE, "CNI_COMMAND": "ADD"}, b"[]", 6),
    "too much on stdin": ({**COMPLETE, "CNI_COMMAND": "ADD"}, b" " * (5 << 20), 6),
    "no stdin": ({**COMPLETE, "CNI_COMMAND": "ADD"}, Unreadable(), 5),
    "no version": ({**COMPLETE, "CNI_COMMAND": "ADD"}, b'{"name": "lan"}', 1),
    "an unknown version": ({**COMPLETE, "CNI_COMMAND": "ADD"}, b'{"cniVersion": "9.9.9"}', 1),
    "an old version": ({**COMPLETE, "CNI_COMMAND": "CHECK"}, b'{"cniVersion": "0.2.0"}', 1),
    "an odd version": ({**COMPLETE, "CNI_COMMAND": "ADD"}, b'{"cniVersion": [1]}', 1),
    "a bad configuration": ({**COMPLETE, "CNI_COMMAND": "ADD"}, b'{"cniVersion": "1.0.0", "name": 7}', 7),
    "DEL without a name": ({**COMPLETE, "CNI_COMMAND": "DEL"}, b'{"cniVersion": "1.0.0"}', 7),
}


@pytest.mark.parametrize(("environ", "stdin", "code"), FAILURES.values(), ids=FAILURES)
def test_every_failure_is_an_error_object_with_its_code(environ: dict[str, str], stdin: Any, code: int) -> None:
    assert error(environ, stdin)["code"] == code


def test_a_bug_is_an_error_object_and_its_traceback_is_for_the_log() -> None:
    def buggy(*_: object) -> None:
        raise ZeroDivisionError("oops")

    stdout, stderr = io.StringIO(), io.StringIO()
    status = main({"CNI_COMMAND": "STATUS"}, io.BytesIO(b'{"cniVersion": "1.0.0"}'), stdout, stderr, serve=buggy)
    answer = json.loads(stdout.getvalue())
    assert (status, answer["code"]) == (1, 199)
    assert "ZeroDivisionError: oops" in answer["msg"]
    assert "Traceback" in stderr.getvalue()


@pytest.mark.parametrize(
    ("closed", "status"),
    [("<&-", 0), (">&-", 0), ("2>&-", 0), ("<&- >&- 2>&-", 0), (">/dev/full", 1)],
)
def test_standard_streams_may_be_closed(closed: str, status: int) -> None:
    script = f"CNI_COMMAND=VERSION exec '{sys.executable}' -c 'from cni.plugin import run; run()' {closed}"
    done = subprocess.run(["sh", "-c", script], input="{}", capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
