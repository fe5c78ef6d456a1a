"""The native client, run as runtimes run it, against an agent that is a thread of the test."""

from __future__ import annotations

import errno
import io
import json
import os
import select
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni.agent.wire import MAGIC, MAX_ENVIRON, MAX_STDIN, MAX_STDOUT, Answer, Request, RequestDecoder, encode_answer
from cni.plugin import main
from cni.protocol import MAX_DEPTH, NEWEST, VERSIONS
from tests.client import compile_client

OK = encode_answer(Answer(0, b""))
CONF = b'{"cniVersion": "1.0.0", "name": "lan", "type": "shimlan"}'
DEADLINE = 30  # seconds; generous, for what takes milliseconds
Done = subprocess.CompletedProcess[bytes]


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client, compiled for this machine."""
    return compile_client(tmp_path_factory.mktemp("client"))


@dataclass(frozen=True)
class Client:
    """A client in a directory of its own, which calls an agent in another."""

    path: Path
    socket: Path

    @property
    def inprocess(self) -> Path:
        """Where it looks for the in-process plugin."""
        return self.path.with_name("shimlan-inprocess")

    def call(self, stdin: bytes | int = CONF, **environ: str) -> Done:
        return run(self.path, self.environ(environ), stdin)

    def shell(self, script: str, stdin: bytes | int = CONF, **environ: str) -> Done:
        """A call from a script that says `exec CLIENT`."""
        command = script.replace("CLIENT", shlex.quote(str(self.path)))
        return run("/bin/sh", self.environ(environ), stdin, "-c", command)

    def environ(self, environ: dict[str, str]) -> dict[str, str]:
        return {"SHIMLAN_SOCKET": str(self.socket), **environ}


def run(path: Path | str, environ: dict[str, str], stdin: bytes | int, *arguments: str) -> Done:
    """A program's call with bytes or a descriptor as its standard input."""
    pipe = subprocess.PIPE
    source: Any = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    streams = {"stdout": pipe, "stderr": pipe, **source}
    return subprocess.run([path, *arguments], env=environ, timeout=DEADLINE, check=False, **streams)


@pytest.fixture
def client(binary: Path, tmp_path: Path) -> Client:
    """A client with no agent and no in-process plugin."""
    (tmp_path / "bin").mkdir()
    return Client(Path(shutil.copy(binary, tmp_path / "bin")), tmp_path / "agent.sock")


@dataclass
class Agent:
    """What an agent has heard."""

    requests: list[Request] = field(default_factory=list)
    namespaces: list[os.stat_result] = field(default_factory=list)

    def serve(self, connection: socket.socket, answer: bytes, piece: int) -> None:
        """Take a request, tell which file came with its first byte, send an answer in pieces."""
        decoder = RequestDecoder()
        data, descriptors, _, _ = socket.recv_fds(connection, 1, maxfds=4)
        while not decoder.feed(data):
            data, late, _, _ = socket.recv_fds(connection, 1 << 20, maxfds=4)
            assert data, "the request ended early"
            assert not late
        self.requests.append(decoder.request(*descriptors))
        for descriptor in descriptors:
            self.namespaces.append(os.fstat(descriptor))
            os.close(descriptor)
        for start in range(0, len(answer), piece):
            connection.sendall(answer[start : start + piece])


Serve = Callable[[socket.socket], None]


@contextmanager
def listening(path: Path, serve: Serve) -> Iterator[None]:
    """Something that listens at a path, and serves one connection."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            connection, _ = listener.accept()
            with connection:
                serve(connection)
        except BaseException as failure:  # noqa: BLE001  (it is the test's, which runs in another thread)
            failures.append(failure)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # ends an accept() that nobody came for
            thread.join()
    if failures:
        raise failures[0]


@contextmanager
def answering(client: Client, answer: bytes = OK, piece: int = MAX_STDOUT) -> Iterator[Agent]:
    """An agent that gives this answer to the client's next call."""
    agent = Agent()
    with listening(client.socket, lambda connection: agent.serve(connection, answer, piece)):
        yield agent


def request_of(client: Client, stdin: bytes = CONF, **environ: str) -> Request:
    """What an agent hears of a call."""
    with answering(client) as agent:
        assert client.call(stdin, **environ).returncode == 0
    (request,) = agent.requests
    return request


def error(done: Done, code: int) -> dict[str, Any]:
    """The error with which a call failed."""
    assert (done.returncode, done.stderr) == (1, b"")
    answer: dict[str, Any] = json.loads(done.stdout)
    assert set(answer) <= {"cniVersion", "code", "msg", "details"}
    assert answer["code"] == code
    return answer


# --- what goes over -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, MAX_STDIN - 1, MAX_STDIN])
def test_standard_input_goes_over_whole(client: Client, size: int) -> None:
    text = (b"\xff\x00\n\xf0" + os.urandom(1021)) * (size // 1025 + 1)
    assert request_of(client, text[:size], CNI_COMMAND="ADD").stdin == text[:size]


def test_of_endless_input_the_agent_gets_enough_to_say_that_it_is_too_much(client: Client) -> None:
    with answering(client) as agent, Path("/dev/zero").open("rb") as zeros:
        client.call(zeros.fileno(), CNI_COMMAND="ADD")
    assert agent.requests[0].stdin == bytes(MAX_STDIN)


def test_only_the_variables_of_cni_go_over(client: Client) -> None:
    ours = {"CNI_COMMAND": "ADD", "CNI_ARGS": "A=b;C=", "CNI_PATH": "", "CNI_ODD": os.fsdecode(b"\xff\n")}
    others = {"PATH": "/bin", "CNI": "x", "XCNI_ARGS": "x", "cni_args": "x", "SHIMLAN_TIMEOUT": "20"}
    assert request_of(client, CONF, **ours, **others).environ == ours


def test_what_is_no_variable_stays(client: Client) -> None:
    caller = """if True:  # for the sake of the indentation
        import ctypes, sys
        strings = lambda *items: (ctypes.c_char_p * (len(items) + 1))(*items)
        path = sys.argv[1].encode()
        odd = strings(b"CNI_COMMAND=ADD", b"CNI_ARGS", b"", b"CNI_PATH=", f"SHIMLAN_SOCKET={sys.argv[2]}".encode())
        ctypes.CDLL(None).execve(path, strings(path), odd)
    """
    with answering(client) as agent:
        run(sys.executable, {}, CONF, "-c", caller, str(client.path), str(client.socket))
    assert agent.requests[0].environ == {"CNI_COMMAND": "ADD", "CNI_PATH": ""}


def test_large_variables_go_over(client: Client) -> None:
    ours = {"CNI_COMMAND": "ADD", "CNI_ARGS": "x" * (MAX_ENVIRON - len("CNI_COMMAND=ADD\0CNI_ARGS=\0"))}
    assert request_of(client, CONF, **ours).environ == ours


def test_too_large_variables_are_an_error(client: Client) -> None:
    done = client.call(CNI_COMMAND="ADD", CNI_ARGS="x" * 70_000, CNI_PATH="x" * 70_000)
    assert str(MAX_ENVIRON) in error(done, 4)["msg"]


def test_the_namespace_goes_over_opened(client: Client, tmp_path: Path) -> None:
    netns = tmp_path / "netns"
    netns.touch()
    with answering(client) as agent:
        client.call(CNI_COMMAND="ADD", CNI_NETNS=str(netns))
    (came,) = agent.namespaces
    assert os.path.samestat(came, netns.stat())
    assert agent.requests[0].netns_errno == 0


def test_a_namespace_that_would_block_is_opened_all_the_same(client: Client, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with answering(client) as agent:
        client.call(CNI_COMMAND="ADD", CNI_NETNS=str(tmp_path / "fifo"))
    assert [stat.S_ISFIFO(came.st_mode) for came in agent.namespaces] == [True]


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        ({}, 0),
        ({"CNI_NETNS": ""}, 0),
        ({"CNI_NETNS": "/nonexistent"}, errno.ENOENT),
        ({"CNI_NETNS": "/dev/null/below"}, errno.ENOTDIR),
        ({"CNI_NETNS": "/" + "x" * 300}, errno.ENAMETOOLONG),
    ],
)
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_without_a_namespace_the_agent_hears_why(
    client: Client, command: str, environ: dict[str, str], why: int
) -> None:
    request = request_of(client, CONF, CNI_COMMAND=command, **environ)
    assert (request.netns, request.netns_errno) == (None, why)


# --- what comes back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 255])
@pytest.mark.parametrize("size", [0, 1, (64 << 10) - 16, (64 << 10) - 15, 1 << 20, MAX_STDOUT])
def test_the_answer_comes_out_whole(client: Client, status: int, size: int) -> None:
    text = (b"\xff\x00\n\xf0" + os.urandom(1021)) * (size // 1025 + 1)
    with answering(client, encode_answer(Answer(status, text[:size]))):
        done = client.call(CNI_COMMAND="ADD")
    assert (done.returncode, done.stderr) == (status, b"")
    assert done.stdout == text[:size]


@pytest.mark.parametrize("piece", [1, 7, 16, 17])
def test_an_answer_may_come_in_pieces(client: Client, piece: int) -> None:
    with answering(client, encode_answer(Answer(3, b"in pieces")), piece):
        done = client.call(CNI_COMMAND="ADD")
    assert (done.returncode, done.stdout) == (3, b"in pieces")


def test_an_agent_may_answer_before_it_has_read_all(client: Client) -> None:
    """As it does when it refuses a request: what it has not read makes the kernel reset the connection."""
    with listening(client.socket, lambda connection: connection.sendall(encode_answer(Answer(1, b"too busy")))):
        done = client.call(bytes(MAX_STDIN), CNI_COMMAND="ADD")
    assert (done.returncode, done.stdout) == (1, b"too busy")


# --- what the client says itself ----------------------------------------------------------------------------------


def in_process(environ: dict[str, str], stdin: bytes) -> tuple[int, bytes, bytes]:
    """What the in-process plugin says to the same call."""
    stdout, stderr = io.StringIO(), io.StringIO()
    status = main(environ, io.BytesIO(stdin), stdout, stderr)
    return status, stdout.getvalue().encode(), stderr.getvalue().encode()


@pytest.mark.parametrize("environ", [{}, {"CNI_COMMAND": ""}])
def test_without_a_command_it_says_what_it_is(binary: Path, environ: dict[str, str]) -> None:
    done = run(binary, environ, b"")
    assert (done.returncode, done.stdout, done.stderr) == in_process(environ, b"")


def nested(depth: int) -> str:
    return '{"cniVersion": "0.3.1", "x": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


VERSION_TEXTS = {
    "empty": "",
    "white space": " \t\r\n",
    **{version: f'{{"cniVersion": "{version}"}}' for version in VERSIONS},
    "unsupported": '{"cniVersion": "9.9.9"}',
    "old": '{"cniVersion": "0.2.0"}',
    "longer": '{"cniVersion": "0.3.1 "}',
    "shorter": '{"cniVersion": "0.3."}',
    "much longer": '{"cniVersion": "0.3.10000000000000000000000"}',
    "absent": '{"name": "lan"}',
    "no text": '{"cniVersion": 1}',
    "null": '{"cniVersion": null}',
    "an object": '{"cniVersion": {"cniVersion": "0.3.1"}}',
    "white space everywhere": ' \n{\t"cniVersion"\r:\n"0.3.1" } \n',
    "last": '{"name": "lan", "ipam": {"ranges": [[{}], []]}, "mtu": -1.5e+3, "cniVersion": "0.3.1"}',
    "below the top": '{"prevResult": {"cniVersion": "0.3.1"}}',
    "below the top, and at the top": '{"prevResult": {"cniVersion": "0.3.1"}, "cniVersion": "0.4.0"}',
    "at the top, and below": '{"cniVersion": "0.4.0", "plugins": [{"cniVersion": "0.3.1"}]}',
    "twice": '{"cniVersion": "0.3.1", "cniVersion": "0.4.0"}',
    "twice, then no text": '{"cniVersion": "0.3.1", "cniVersion": []}',
    "in a string": r'{"name": "\", \"cniVersion\": \"0.3.1\"}", "cniVersion": "0.4.0"}',
    "in a string only": r'{"name": "{\"cniVersion\": \"0.3.1\"}"}',
    "after a backslash": r'{"name": "\\", "cniVersion": "0.3.1"}',
    "a value of that name": '{"name": "cniVersion", "x": "0.3.1"}',
    "a similar key": '{"cniVersions": "0.3.1", "cniVersio": "0.3.1", "CNIVERSION": "0.3.1"}',
    "an escaped key": r'{"cni\u0056ersion": "0.3.1"}',
    "an escaped value": r'{"cniVersion": "0\u002e3.1"}',
    "an escape beyond ASCII": r'{"cniVersion": "0\u012e3.1"}',
    "escapes": r'{"x": "\" \\ \/ \b \f \n \r \t \u00e4 \uD83D\uDE00 \ud800", "cniVersion": "0.3.1"}',
    "beyond ASCII": '{"Straße": "ä 😀", "cniVersion": "0.3.1"}',
    "DEL in a string": '{"x": "\x7f", "cniVersion": "0.3.1"}',
    "literals": '{"x": [true, false, null, 0, -0, 1, 10.25, 1E5, 1e-5, 0.0], "cniVersion": "0.3.1"}',
    "as deep as may be": nested(MAX_DEPTH),
    "too deep": nested(MAX_DEPTH + 1),
    "far too deep": nested(100_000),
    "a list": '[{"cniVersion": "0.3.1"}]',
    "a string": '"cniVersion"',
    "a number": "1",
    "text": 'cniVersion: "0.3.1"',
    "cut": '{"cniVersion": "0.3.1"',
    "cut in a string": '{"cniVersion": "0.3.1',
    "cut in an escape": '{"cniVersion": "0.3.1", "x": "\\',
    "cut in a code": '{"cniVersion": "0.3.1", "x": "\\u00',
    "cut in a literal": '{"cniVersion": "0.3.1", "x": tru',
    "something behind": '{"cniVersion": "0.3.1"} x',
    "a NUL behind": '{"cniVersion": "0.3.1"}\0',
    "a NUL within": '{"cniVersion": "0.3.1",\0 "x": 1}',
    "a NUL in a string": '{"cniVersion": "0.3.1", "x": "\0"}',
    "a line break in a string": '{"cniVersion": "0.3.1", "x": "\n"}',
    "an unknown escape": r'{"cniVersion": "0.3.1", "x": "\x41"}',
    "a wrong code": r'{"cniVersion": "0.3.1", "x": "\u00g0"}',
    "a comma too many": '{"cniVersion": "0.3.1",}',
    "a comma too few": '{"cniVersion": "0.3.1" "x": 1}',
    "a comma too many in a list": '{"cniVersion": "0.3.1", "x": [1,]}',
    "a colon too few": '{"cniVersion" "0.3.1"}',
    "the wrong bracket": '{"cniVersion": "0.3.1", "x": [}]',
    "no value": '{"cniVersion": "0.3.1", "x": }',
    "no key": '{"cniVersion": "0.3.1", 1: 2}',
    "another quote": "{'cniVersion': '0.3.1'}",
    "a comment": '{"cniVersion": "0.3.1" /* newest */}',
    "a literal too many": '{"cniVersion": "0.3.1", "x": True}',
    "a leading zero": '{"cniVersion": "0.3.1", "x": 01}',
    "a sign too many": '{"cniVersion": "0.3.1", "x": +1}',
    "a sign alone": '{"cniVersion": "0.3.1", "x": -}',
    "no digit before the point": '{"cniVersion": "0.3.1", "x": .5}',
    "no digit behind the point": '{"cniVersion": "0.3.1", "x": 1.}',
    "no exponent": '{"cniVersion": "0.3.1", "x": 1e}',
    "no number": '{"cniVersion": "0.3.1", "x": NaN}',
    "infinite": '{"cniVersion": "0.3.1", "x": -Infinity}',
    "as long as may be": '{"cniVersion": "0.3.1"}'.ljust(MAX_STDIN - 1),
    "too long": '{"cniVersion": "0.3.1"}'.ljust(MAX_STDIN),
    "far too long": '{"cniVersion": "0.3.1"}'.ljust(MAX_STDIN + 100_000),
}


def assert_answers_version_as_in_process(binary: Path, stdin: bytes) -> None:
    environ = {"CNI_COMMAND": "VERSION", "CNI_IFNAME": "dummy"}
    done = run(binary, {**environ, "SHIMLAN_SOCKET": "/nonexistent"}, stdin)
    assert (done.returncode, done.stdout, done.stderr) == in_process(environ, stdin)


@pytest.mark.parametrize("text", VERSION_TEXTS.values(), ids=VERSION_TEXTS)
def test_version_is_answered_as_in_process(binary: Path, text: str) -> None:
    assert_answers_version_as_in_process(binary, text.encode())


scalars = st.none() | st.booleans() | st.integers() | st.floats(-1e6, 1e6, width=32) | st.text()
keys = st.sampled_from(["cniVersion", "name", "prevResult"]) | st.text(max_size=12)
values = st.recursive(
    st.sampled_from(VERSIONS) | scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
objects = st.builds(
    json.dumps,
    st.dictionaries(keys, values, max_size=5),
    ensure_ascii=st.booleans(),
    indent=st.sampled_from([None, 0, 2]),
)


@settings(deadline=None)
@given(text=objects)
def test_version_is_answered_as_in_process_to_any_object(binary: Path, text: str) -> None:
    assert_answers_version_as_in_process(binary, text.encode())


@settings(deadline=None)
@given(text=objects, place=st.floats(0, 1), cut=st.integers(0, 2), put=st.text('{}[]",:\\ \t\n\0/u-+.x', max_size=2))
def test_version_is_answered_as_in_process_to_anything_broken(
    binary: Path, text: str, place: float, cut: int, put: str
) -> None:
    start = round(place * len(text))
    broken = text[:start] + put + text[start + cut :]
    assert_answers_version_as_in_process(binary, broken.encode())


@pytest.mark.parametrize("command", ["VERSION", "ADD"])
def test_input_that_cannot_be_read_is_the_error_that_it_is_in_process(client: Client, command: str) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))

    environ = {"CNI_COMMAND": command, "CNI_CONTAINERID": "abc", "CNI_NETNS": "/n", "CNI_IFNAME": "eth0"}
    stdout = io.StringIO()
    status = main(environ, Broken(), stdout, stdout)
    done = client.shell("exec CLIENT < /", b"", **environ)
    assert (done.returncode, done.stdout.decode()) == (status, stdout.getvalue())


# --- no agent -----------------------------------------------------------------------------------------------------


def closes(_: socket.socket) -> None:
    """An agent that is killed right away."""


def sends(data: bytes) -> Serve:
    """An agent that says this to a request, and is gone."""

    def serve(connection: socket.socket) -> None:
        with suppress(BrokenPipeError):  # the client has seen enough
            Agent().serve(connection, data, MAX_STDOUT)

    return serve


ANSWER = encode_answer(Answer(0, bytes(100_000)))
LOST: dict[str, Serve | None] = {
    "there is no socket": None,
    "it closes at once": closes,
    "it closes before it answers": sends(b""),
    "it sends half a header": sends(ANSWER[:10]),
    "it sends a header": sends(ANSWER[:16]),
    "it sends part of an answer": sends(ANSWER[:20]),
    "it sends nearly all of an answer": sends(ANSWER[:-1]),
    "it sends garbage": sends(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "it is of another version": sends(ANSWER.replace(MAGIC, MAGIC[:-1] + b"\x02")),
    "its status is none": sends(encode_answer(Answer(256, b"{}"))),
    "its answer is too long": sends(encode_answer(Answer(0, bytes(MAX_STDOUT + 1)))),
}
each_loss = pytest.mark.parametrize("serve", LOST.values(), ids=LOST)


@contextmanager
def lost(client: Client, serve: Serve | None) -> Iterator[None]:
    if serve:
        with listening(client.socket, serve):
            yield
    else:
        yield


@each_loss
@pytest.mark.parametrize(("stdin", "version"), [(CONF, "1.0.0"), (b'{"cniVersion": "0.1.0"}', NEWEST), (b"{", NEWEST)])
def test_without_an_agent_it_fails_with_error_11(
    client: Client, serve: Serve | None, stdin: bytes, version: str
) -> None:
    with lost(client, serve):
        answer = error(client.call(stdin, CNI_COMMAND="ADD"), 11)
    assert answer["cniVersion"] == version
    assert f"{client.socket}: start the agent (shimlanctl agent)" in answer["msg"]
    assert f"put the in-process plugin at {client.inprocess}" in answer["msg"]


def inprocess_plugin(path: Path) -> Path:
    """A plugin that says where it is, and keeps what it was given beside it."""
    path.write_text('#!/bin/sh\ncd "${0%/*}"\nenv -0 > environ\ncat > stdin\necho "in $0"\nexit 3\n')
    path.chmod(0o755)
    return path


@each_loss
@pytest.mark.parametrize("size", [0, 100, MAX_STDIN])
def test_without_an_agent_the_in_process_plugin_does_it(client: Client, serve: Serve | None, size: int) -> None:
    plugin = inprocess_plugin(client.inprocess)
    stdin = os.urandom(size)
    environ = {"CNI_COMMAND": "DEL", "CNI_ARGS": "A=b", "PATH": os.environ["PATH"], "HOME": "/nowhere"}
    with lost(client, serve):
        done = client.call(stdin, **environ)
    assert (done.returncode, done.stdout, done.stderr) == (3, f"in {plugin}\n".encode(), b"")
    assert plugin.with_name("stdin").read_bytes() == stdin
    given = dict(line.split("=", 1) for line in plugin.with_name("environ").read_text().split("\0") if line)
    assert environ.items() <= given.items()
    assert given["SHIMLAN_FALLBACK"] == ""


def test_an_agent_that_refuses_connections_is_none(client: Client) -> None:
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(client.socket))
    assert os.strerror(errno.ECONNREFUSED) in error(client.call(CNI_COMMAND="ADD"), 11)["details"]


def test_with_an_agent_the_in_process_plugin_is_left_alone(client: Client) -> None:
    inprocess_plugin(client.inprocess)
    with answering(client, encode_answer(Answer(1, b"no"))):
        done = client.call(CNI_COMMAND="ADD")
    assert (done.returncode, done.stdout) == (1, b"no")


def test_the_in_process_plugin_may_be_elsewhere(client: Client, tmp_path: Path) -> None:
    inprocess_plugin(client.inprocess)
    plugin = inprocess_plugin(tmp_path / "other")
    done = client.call(CNI_COMMAND="ADD", SHIMLAN_FALLBACK=str(plugin), PATH=os.environ["PATH"])
    assert done.stdout == f"in {plugin}\n".encode()
    assert plugin.with_name("environ").read_text().count("SHIMLAN_FALLBACK=") == 1


def test_the_in_process_plugin_may_be_switched_off(client: Client) -> None:
    inprocess_plugin(client.inprocess)
    answer = error(client.call(CNI_COMMAND="ADD", SHIMLAN_FALLBACK=""), 11)
    assert "name the in-process plugin in SHIMLAN_FALLBACK" in answer["msg"]


def test_an_in_process_plugin_that_cannot_be_executed_is_an_error_that_says_why(client: Client) -> None:
    inprocess_plugin(client.inprocess).chmod(0o644)
    details = error(client.call(CNI_COMMAND="ADD"), 11)["details"]
    assert details == "connect: No such file or directory; in-process plugin: Permission denied"


def test_a_client_that_is_its_own_fallback_ends(client: Client) -> None:
    answer = error(client.call(CNI_COMMAND="ADD", SHIMLAN_FALLBACK=str(client.path)), 11)
    assert answer["cniVersion"] == "1.0.0"


def test_the_in_process_plugin_has_all_of_its_streams(client: Client) -> None:
    client.inprocess.write_text("#!/bin/sh\ncat && echo to stdout && echo to stderr >&2\n")
    client.inprocess.chmod(0o755)
    done = client.shell("exec CLIENT <&- >&- 2>&-", CNI_COMMAND="ADD", PATH=os.environ["PATH"])
    assert done.returncode == 0


def test_the_time_limit_is_the_clients_alone(client: Client) -> None:
    client.inprocess.write_text("#!/bin/sh\nsleep 1.3\necho done\n")
    client.inprocess.chmod(0o755)
    done = client.call(CNI_COMMAND="ADD", SHIMLAN_TIMEOUT="1", PATH=os.environ["PATH"])
    assert (done.returncode, done.stdout) == (0, b"done\n")


# --- time ---------------------------------------------------------------------------------------------------------


@contextmanager
def crowded(client: Client) -> Iterator[socket.socket]:
    """A socket that listens, with as many clients waiting as the kernel lets wait."""
    waiting = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(client.socket))
        listener.listen(0)
        try:
            while True:
                waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
                waiting[-1].connect(str(client.socket))
        except BlockingIOError:
            yield listener
        finally:
            for one in waiting:
                one.close()


def stalls(start: bytes) -> Serve:
    """An agent that says this much, and then nothing until the client has gone."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(start)
        gone = select.poll()
        gone.register(connection, 0)
        assert gone.poll(DEADLINE * 1000)

    return serve


STALLS = {
    "answer": (b"", CONF, "the agent does not answer"),
    "half of its answer": (ANSWER[:20], CONF, "the agent does not answer"),
    "request": (b"", CONF.ljust(MAX_STDIN - 1), "the agent does not take the request"),
}


@pytest.mark.parametrize(("start", "stdin", "reason"), STALLS.values(), ids=STALLS)
def test_a_stalled_agent_is_error_11_in_time(client: Client, start: bytes, stdin: bytes, reason: str) -> None:
    inprocess_plugin(client.inprocess)
    with listening(client.socket, stalls(start)):
        answer = error(client.call(stdin, CNI_COMMAND="ADD", SHIMLAN_TIMEOUT="1"), 11)
    assert answer["cniVersion"] == "1.0.0"
    assert answer["msg"].startswith(f"not done within 1 s (SHIMLAN_TIMEOUT): {reason}")
    assert str(client.socket) in answer["details"]


def test_a_client_that_finds_no_place_in_the_queue_is_error_11_in_time(client: Client) -> None:
    with crowded(client):
        answer = error(client.call(CNI_COMMAND="ADD", SHIMLAN_TIMEOUT="1"), 11)
    assert "the agent accepts no connection" in answer["msg"]


def test_a_client_waits_for_a_place_in_the_queue(client: Client) -> None:
    with crowded(client) as listener, ThreadPoolExecutor() as pool:
        call = pool.submit(client.call, CNI_COMMAND="ADD")
        time.sleep(0.2)
        assert not call.done()
        listener.settimeout(0.2)
        while not call.done():
            with suppress(TimeoutError), listener.accept()[0] as connection:  # of the crowd, and at last of the client
                connection.sendall(encode_answer(Answer(7, b"at last")))
    assert (call.result().returncode, call.result().stdout) == (7, b"at last")


@contextmanager
def pipe_with(data: bytes) -> Iterator[tuple[int, int]]:
    """Both ends of a pipe that holds some data and is not closed."""
    reader, writer = os.pipe()
    try:
        os.write(writer, data)
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def test_a_client_that_was_interrupted_goes_on_where_it_was(client: Client) -> None:
    agent, stopped = Agent(), threading.Event()

    def serve(connection: socket.socket) -> None:
        assert stopped.wait(DEADLINE)
        agent.serve(connection, OK, 1)

    stdin = CONF.ljust(MAX_STDIN)
    environ = client.environ({"CNI_COMMAND": "ADD", "CNI_NETNS": "/dev/null"})
    with (
        listening(client.socket, serve),
        subprocess.Popen([client.path], env=environ, stdin=subprocess.PIPE) as process,
    ):
        assert process.stdin
        process.stdin.write(stdin)
        process.stdin.close()
        time.sleep(0.2)  # until it waits for the agent to read
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        process.send_signal(signal.SIGCONT)
        stopped.set()
        assert process.wait(DEADLINE) == 0
    assert agent.requests[0].stdin == stdin
    assert len(agent.namespaces) == 1


def test_input_that_does_not_end_is_error_11_in_time(client: Client) -> None:
    with pipe_with(CONF) as (stdin, _):
        answer = error(client.call(stdin, CNI_COMMAND="ADD", SHIMLAN_TIMEOUT="1", SHIMLAN_SOCKET=""), 11)
    assert "standard input did not end" in answer["msg"]
    assert "/run/shimlan/agent.sock" in answer["details"]


def test_the_limit_holds_where_the_caller_has_blocked_its_signal(client: Client) -> None:
    caller = "import os, signal, sys; signal.pthread_sigmask(0, [signal.SIGALRM]); os.execv(sys.argv[1], ['shimlan'])"
    environ = client.environ({"CNI_COMMAND": "ADD", "SHIMLAN_TIMEOUT": "1"})
    with listening(client.socket, stalls(b"")):
        error(run(sys.executable, environ, CONF, "-c", caller, str(client.path)), 11)


# --- odd circumstances --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("closed", "stdin", "status", "stdout"),
    [
        ("<&-", b"", 0, b"done"),
        (">&-", CONF, 0, b""),
        ("2>&-", CONF, 0, b"done"),
        ("<&- >&- 2>&-", b"", 0, b""),
        (">/dev/full", CONF, 1, b""),
    ],
)
@pytest.mark.parametrize("netns", ["", "/dev/null"])
def test_standard_streams_may_be_closed(
    client: Client, closed: str, stdin: bytes, status: int, stdout: bytes, netns: str
) -> None:
    with answering(client, encode_answer(Answer(0, b"done"))) as agent:
        done = client.shell(f"exec CLIENT {closed}", CNI_COMMAND="ADD", CNI_NETNS=netns)
    assert (done.returncode, done.stdout, done.stderr) == (status, stdout, b"")
    assert agent.requests[0].stdin == stdin
    assert len(agent.namespaces) == bool(netns)


def test_standard_input_may_be_non_blocking(client: Client) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with answering(client) as agent, ThreadPoolExecutor() as pool:
        call = pool.submit(client.call, reader, CNI_COMMAND="ADD")
        for part in (CONF[:9], CONF[9:]):
            time.sleep(0.1)
            os.write(writer, part)
        os.close(writer)
        assert call.result().returncode == 0
    os.close(reader)
    assert agent.requests[0].stdin == CONF


@contextmanager
def writing_to(client: Client, stdout: int) -> Iterator[subprocess.Popen[bytes]]:
    """A call that prints to a descriptor, which is closed here."""
    environ = client.environ({"CNI_COMMAND": "ADD"})
    with subprocess.Popen([client.path], env=environ, stdin=subprocess.DEVNULL, stdout=stdout) as process:
        os.close(stdout)
        yield process


def test_standard_output_may_be_non_blocking(client: Client) -> None:
    text = os.urandom(1 << 20)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with answering(client, encode_answer(Answer(0, text))), writing_to(client, writer) as process:
        time.sleep(0.1)  # until the pipe is full
        with open(reader, "rb") as stream:
            assert stream.read() == text
    assert process.returncode == 0


def test_a_reader_that_has_gone_is_no_reason_to_die(client: Client) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with answering(client, encode_answer(Answer(0, b"done"))), writing_to(client, writer) as process:
        pass
    assert process.returncode == 1


def test_a_time_limit_within_an_answer_adds_nothing_to_it(client: Client) -> None:
    environ = client.environ({"CNI_COMMAND": "ADD", "SHIMLAN_TIMEOUT": "1"})
    with answering(client, encode_answer(Answer(0, bytes(1 << 20)))), pipe_with(b"") as (reader, writer):
        silent = subprocess.DEVNULL
        done = subprocess.run([client.path], env=environ, stdin=silent, stdout=writer, timeout=DEADLINE, check=False)
        printed = os.read(reader, 1 << 20)
    assert done.returncode == 1
    assert set(printed) == {0}


@pytest.mark.parametrize("seconds", ["0", "-1", "+1", "1.5", "soon", "86401", str((1 << 32) + 1), str((1 << 64) + 1)])
def test_a_wrong_time_limit_is_an_error(client: Client, seconds: str) -> None:
    msg = error(client.call(CNI_COMMAND="ADD", SHIMLAN_TIMEOUT=seconds), 4)["msg"]
    assert msg == f"SHIMLAN_TIMEOUT: {seconds} is no number of seconds from 1 to 86400"


def test_a_socket_path_that_is_too_long_is_an_error(client: Client) -> None:
    longest = "/" + "x" * 106
    assert longest in error(client.call(CNI_COMMAND="ADD", SHIMLAN_SOCKET=longest), 11)["msg"]
    msg = error(client.call(CNI_COMMAND="ADD", SHIMLAN_SOCKET=longest + "x"), 4)["msg"]
    assert msg == f"SHIMLAN_SOCKET: {longest}x is too long: the path of a socket has at most 107 bytes"


@pytest.mark.parametrize(
    ("path", "shown"),
    [('/a"b', '/a"b'), ("/a\\b", "/a\\b"), ("/a\nb", "/a?b"), ("/a\x7f", "/a?"), (os.fsdecode(b"/\xff"), "/?")],
)
def test_an_error_is_json_whatever_it_has_to_name(client: Client, path: str, shown: str) -> None:
    assert f" {shown}: " in error(client.call(CNI_COMMAND="ADD", SHIMLAN_SOCKET=path), 11)["msg"]


@pytest.mark.parametrize(("name", "code"), [("SHIMLAN_SOCKET", 4), ("SHIMLAN_TIMEOUT", 4), ("SHIMLAN_FALLBACK", 11)])
def test_an_error_is_json_however_long_what_it_has_to_name(client: Client, name: str, code: int) -> None:
    error(client.call(CONF, **{"CNI_COMMAND": "ADD", name: '/"' * 30_000}), code)
