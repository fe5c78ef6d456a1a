"""Processes started as cheaply as a container runtime starts them, and timed from the start to the end.

A call ends when its stdout is closed and the process has been waited for: a runtime reads on for as long as somebody
holds the pipe, be it a child that the plugin left behind.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Iterable
from typing import Any

from cni.errors import TryAgainLater
from cni.frozen import frozen

Json = dict[str, Any]

READ_BYTES = 1 << 16
PATIENCE_SECONDS = 60  # for calls that are to be tried again
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # of programs that are started


class Failed(Exception):
    """A process that was to be timed did not do its work; the message says what it wrote."""


@frozen
class Call:
    """What to run: a program with its whole environment and standard input, and no word of the caller's."""

    argv: tuple[str, ...]
    env: dict[str, str]
    stdin: bytes


@frozen
class Answer:
    """How a call ended, and how long that took; `failure` is its story when it did not succeed."""

    seconds: float
    stdout: bytes
    stderr: bytes
    failure: str = ""

    def or_raise(self) -> Answer:
        """Itself when it is a success; else raises Failed."""
        if self.failure:
            raise Failed(self.failure)
        return self

    @property
    def asks_to_try_again(self) -> bool:
        """Whether it is error 11 of the CNI spec."""
        return bool(self.failure and self.stdout.startswith(b"{") and self.json.get("code") == TryAgainLater.code)

    @property
    def json(self) -> Json:
        """The object on stdout; empty when there is none."""
        value: Json = json.loads(self.stdout) if self.stdout.strip() else {}
        return value


class Running:
    """A process under way; everything that takes time on our side is done before the clock starts."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self._out, writer = os.pipe2(os.O_CLOEXEC)
        self._err = os.memfd_create("stderr", os.MFD_CLOEXEC)
        stdin = os.memfd_create("stdin", os.MFD_CLOEXEC)
        os.write(stdin, call.stdin)
        os.lseek(stdin, 0, os.SEEK_SET)
        streams = [(os.POSIX_SPAWN_DUP2, fd, stream) for stream, fd in enumerate((stdin, writer, self._err))]
        self.started = time.perf_counter()
        # Python ignores these two; programs expect that nobody does.
        signals = (signal.SIGPIPE, signal.SIGXFSZ)
        self._pid = os.posix_spawn(call.argv[0], call.argv, call.env, file_actions=streams, setsigdef=signals)
        os.close(writer)
        os.close(stdin)
        self._stdout = b""

    def fileno(self) -> int:
        """The reading end of stdout, for poll."""
        return self._out

    def read(self) -> bool:
        """Read what is there, or wait for it; whether that was the end."""
        chunk = os.read(self._out, READ_BYTES)
        self._stdout += chunk
        return not chunk

    def finish(self) -> Answer:
        """Wait for the end of the process, after that of its output."""
        _, status = os.waitpid(self._pid, 0)
        seconds = time.perf_counter() - self.started
        os.close(self._out)
        stderr = os.pread(self._err, READ_BYTES, 0)
        os.close(self._err)
        return Answer(seconds, self._stdout, stderr, self._failure(status, stderr))

    def _failure(self, status: int, stderr: bytes) -> str:
        if not status:
            return ""
        story = b" ".join((self._stdout, stderr)).decode(errors="replace").strip()
        words = " ".join((self.call.env.get("CNI_COMMAND", ""), *self.call.argv))
        return f"{words}: exit status {os.waitstatus_to_exitcode(status)}: {story}"


def run(call: Call) -> Answer:
    """Run one call. Raises Failed."""
    running = Running(call)
    while not running.read():
        pass
    return running.finish().or_raise()


class Crowd:
    """Calls that run at the same time, and their answers as they came in."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self._running: dict[int, Running] = {}
        self._poller = select.poll()

    def start(self, call: Call, started: float = 0) -> None:
        """Start a call; `started` is when it was tried for the first time."""
        process = Running(call)
        process.started = started or process.started
        self._running[process.fileno()] = process
        self._poller.register(process, select.POLLIN)

    def wait(self) -> None:
        """Wait until all have ended; those who are asked to try again do so, for a while, as a runtime would."""
        while self._running:
            for fd, _ in self._poller.poll():
                if self._running[fd].read():
                    self._poller.unregister(fd)
                    self._end(self._running.pop(fd))

    def _end(self, process: Running) -> None:
        answer = process.finish()
        if answer.asks_to_try_again and answer.seconds < PATIENCE_SECONDS:
            self.start(process.call, process.started)
        else:
            self.answers.append(answer)


def run_at_once(calls: Iterable[Call]) -> tuple[float, list[Answer]]:
    """Start all calls before waiting for any; the time until all were done, and the answers. Raises Failed."""
    started = time.perf_counter()
    crowd = Crowd()
    for call in calls:
        crowd.start(call)
    crowd.wait()
    seconds = time.perf_counter() - started
    return seconds, [answer.or_raise() for answer in crowd.answers]
