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
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from cni.ctl import sandbox
from cni.ctl.lab import Lab

START_SECONDS = 30.0
STOP_SECONDS = 30.0

SHIMLANCTL = str(Path(sys.executable).with_name("shimlanctl"))
BUG = re.compile("Traceback|please report|internal error")  # what no log may tell of


class Agent:
    """The agent of a lab's host, from the start of a `with` block to its end.

    While it is there, the lab's plugin is the client; with `fallback`, that has the in-process plugin beside it.
    `prefix` are words before its command line, `environ` is added to its environment.
    """

    def __init__(
        self,
        lab: Lab,
        client: Path,
        *options: str,
        fallback: str = "",
        prefix: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._lab = lab
        self._client = client
        self._options = options
        self._prefix = prefix
        self._environ = environ or {}
        self._fallback = fallback
        self._opened = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Agent:
        with ExitStack() as opened:
            # Not in the lab's directory, which some tests remove.
            scratch = tempfile.TemporaryDirectory("", "shimlan-agent-", sandbox.SCRATCH)
            self.directory = Path(opened.enter_context(scratch))
            self.socket = str(self.directory / "agent.sock")
            self._log = opened.enter_context(open(self.directory / "log", "ab"))
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
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            address = str(self.directory / "notify")
            ready.bind(address)
            self._process = self.launch(*options, NOTIFY_SOCKET=address)
            try:
                ready.settimeout(START_SECONDS)
                assert _hears(ready, self._process) == b"READY=1", f"the agent did not start\n{self.log}"
            finally:
                os.unlink(address)

    def launch(self, *options: str, **environ: str) -> subprocess.Popen[bytes]:
        """A process of it, which may be another one beside that of `start`."""
        where = ("--socket", self.socket, "--state-dir", self._lab.data_dir)
        command = [*self._lab.host.enter_words, *self._prefix, SHIMLANCTL, "agent", *where, *self._options, *options]
        return subprocess.Popen(command, stderr=self._log, env={**os.environ, **self._environ, **environ})

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
            process.kill()
            raise

    @contextmanager
    def _as_plugin(self) -> Iterator[None]:
        """The client is the lab's plugin, for the time of a block."""
        lab, before = self._lab, (self._lab.plugin, self._lab.environ)
        lab.plugin = str(self._client)
        lab.environ = {**lab.environ, "SHIMLAN_SOCKET": self.socket, "SHIMLAN_FALLBACK": self._fallback}
        try:
            yield
        finally:
            lab.plugin, lab.environ = before


def _hears(ready: socket.socket, process: subprocess.Popen[bytes]) -> bytes:
    """The first word of a process; empty when it has ended, or says nothing for too long."""
    ended = os.pidfd_open(process.pid)
    try:
        heard, _, _ = select.select([ready, ended], [], [], START_SECONDS)
        return ready.recv(4096) if ready in heard else b""
    finally:
        os.close(ended)
