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

from cni.frozen import frozen

Json = dict[str, Any]

READ_BYTES = 1 << 16
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
    """How a call ended, and how long that took."""

    seconds: float
    stdout: bytes
    stderr: bytes

    @property
    def json(self) -> Json:
        """The object on stdout; empty when there is none."""
        value: Json = json.loads(self.stdout) if self.stdout.strip() else {}
        return value


class Running:
    """A process under way; everything that takes time on our side is done before the clock starts."""

    def __init__(self, call: Call) -> None:
        self._call = call
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
        """Wait for the end of the process, after that of its output. Raises Failed unless it succeeded."""
        _, status = os.waitpid(self._pid, 0)
        seconds = time.perf_counter() - self.started
        os.close(self._out)
        stderr = os.pread(self._err, READ_BYTES, 0)
        os.close(self._err)
        if status:
            story = b" ".join((self._stdout, stderr)).decode(errors="replace").strip()
            words = " ".join((self._call.env.get("CNI_COMMAND", ""), *self._call.argv))
            raise Failed(f"{words}: exit status {os.waitstatus_to_exitcode(status)}: {story}")
        return Answer(seconds, self._stdout, stderr)


def run(call: Call) -> Answer:
    """Run one call. Raises Failed."""
    running = Running(call)
    while not running.read():
        pass
    return running.finish()


def run_at_once(calls: Iterable[Call]) -> tuple[float, list[Answer]]:
    """Start all calls before waiting for any; the time until all were done, and the answers as they came in."""
    answers: list[Answer] = []
    poller = select.poll()
    started = time.perf_counter()
    running = {}
    for call in calls:
        process = Running(call)
        running[process.fileno()] = process
        poller.register(process, select.POLLIN)
    while running:
        for fd, _ in poller.poll():
            if running[fd].read():
                poller.unregister(fd)
                answers.append(running.pop(fd).finish())
    return time.perf_counter() - started, answers
