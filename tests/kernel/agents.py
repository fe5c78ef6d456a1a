"""An agent on the host of a lab, and the client that runtimes call it with: real processes, as on a node."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from cni.ctl import sandbox
from cni.ctl.lab import CniAnswer, Lab

START_SECONDS = 30.0
STOP_SECONDS = 30.0

SHIMLANCTL = str(Path(sys.executable).with_name("shimlanctl"))
# Has an agent serve a lab for the time of a block, if all labs shall have one; else nothing happens.
Serve = Callable[[Lab], AbstractContextManager[object]]

BUG = re.compile("Traceback|please report|internal error")  # what no log may tell of


class Agent:
    """The agent of a lab's host, from the start of a `with` block to its end.

    While it is there, the lab's plugin is the client; with `fallback`, that has the in-process plugin beside it.
    `prefix` are words before its command line, `environ` is added to its environment, `pass_fds` it inherits.
    """

    def __init__(
        self,
        lab: Lab,
        client: Path,
        *options: str,
        fallback: str = "",
        prefix: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        self._lab = lab
        self._client = client
        self._options = options
        self._prefix = prefix
        self._environ = environ or {}
        self._pass_fds = pass_fds
        self._fallback = fallback
        self._opened = ExitStack()
        self._launched: list[subprocess.Popen[bytes]] = []
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Agent:
        with ExitStack() as opened:
            # Not in the lab's directory, which some tests remove.
            scratch = tempfile.TemporaryDirectory("", "shimlan-agent-", sandbox.SCRATCH)
            self.directory = Path(opened.enter_context(scratch))
            self.socket = str(self.directory / "agent.sock")
            self._log = opened.enter_context(open(self.directory / "log", "ab"))
            self._notified = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            self._notified.bind(str(self.directory / "notify"))
            opened.callback(self._leave_nobody)
            opened.enter_context(self._as_plugin())
            self.start()
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._opened:
            status = self.stop() if self._process else 0
            print(f"# the agent's log\n{self.log}")
            if error is None:
                assert status == 0
                assert [line for line in self.log.splitlines() if BUG.search(line)] == []

    @property
    def log(self) -> str:
        """What it has said."""
        return (self.directory / "log").read_text(errors="surrogateescape")

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def start(self, *options: str) -> None:
        """Start it, and wait until it serves; `options` are added to those it was made with."""
        self._process = self.launch(*options, NOTIFY_SOCKET=str(self.directory / "notify"))
        while (said := self._hear()) != "READY=1":
            assert said, f"the agent did not start\n{self.log}"

    def _hear(self) -> str:
        """What it tells systemd next; nothing when it has ended, or takes too long."""
        assert self._process is not None
        ended = os.pidfd_open(self._process.pid)
        waiting = select.poll()
        waiting.register(self._notified, select.POLLIN)
        waiting.register(ended, select.POLLIN)
        try:
            heard = dict(waiting.poll(START_SECONDS * 1000))
        finally:
            os.close(ended)
        return self._notified.recv(4096).decode() if self._notified.fileno() in heard else ""

    def launch(self, *options: str, **environ: str) -> subprocess.Popen[bytes]:
        """A process of it, which may be another one beside that of `start`."""
        where = ("--socket", self.socket, "--state-dir", self._lab.data_dir)
        command = [*self._lab.host.enter_words, *self._prefix, SHIMLANCTL, "agent", *where, *self._options, *options]
        env = {**os.environ, "PYTHONFAULTHANDLER": "1", **self._environ, **environ}
        process = subprocess.Popen(command, stderr=self._log, env=env, pass_fds=self._pass_fds)
        self._launched.append(process)
        return process

    def stop(self) -> int:
        """Tell it to stop; its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._end()

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._end()

    def _end(self) -> int:
        assert self._process is not None
        process, self._process = self._process, None
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # what its threads are doing goes to the log
            process.wait(STOP_SECONDS)
            raise

    def _leave_nobody(self) -> None:
        """End what a test that failed has left."""
        for process in self._launched:
            if process.poll() is None:
                process.kill()
                process.wait(STOP_SECONDS)

    @contextmanager
    def _as_plugin(self) -> Iterator[None]:
        """The client is the lab's plugin, for the time of a block."""
        lab, before = self._lab, (self._lab.plugin, self._lab.environ)
        lab.plugin = str(self._client)
        lab.environ = {**lab.environ, "SHIMLAN_SOCKET": self.socket, "SHIMLAN_FALLBACK": self._fallback}
        _of_labs[lab] = self
        try:
            yield
        finally:
            del _of_labs[lab]
            lab.plugin, lab.environ = before


_of_labs: dict[Lab, Agent] = {}


def agent_of(lab: Lab) -> Agent | None:
    """The agent that serves a lab now."""
    return _of_labs.get(lab)


@contextmanager
def interrupted(lab: Lab) -> Iterator[None]:
    """Nobody serves a lab for the time of a block, whether an agent does before and afterwards or not."""
    agent = agent_of(lab)
    if agent:
        assert agent.stop() == 0
    yield
    if agent:
        agent.start()


def said(lab: Lab, answer: CniAnswer) -> str:
    """What the plugin has written to its log: the in-process plugin on stderr, an agent in its own."""
    agent = agent_of(lab)
    return agent.log if agent else answer.stderr
