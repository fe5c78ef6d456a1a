"""The agent as a process that the benchmark starts, watches and ends."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bench.process import PATH, Failed
from cni import netns
from cni.frozen import frozen

START_SECONDS = STOP_SECONDS = 20
POLL_SECONDS = 0.02
LAST_BYTES = 2000  # of its log, for the reader of an error

CPUCLOCK_SCHED = 2  # kernel, include/linux/posix-timers_types.h


@frozen
class Footprint:
    """What a process occupies: resident memory in millions of bytes, descriptors, threads."""

    megabytes: float
    descriptors: int
    threads: int


class Agent:
    """A running agent and the file that its log goes to."""

    def __init__(self, process: subprocess.Popen[bytes], log: str) -> None:
        self._process = process
        self._log = log

    def wait_until(self, answers: Callable[[], bool]) -> None:
        """Wait until it answers. Raises Failed when it ends before, or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while not answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"{self._story()} before it answered: {self._last_words()}")
            time.sleep(POLL_SECONDS)

    def cpu_seconds(self) -> float:
        """The processor time that all of its threads have taken, ended ones included.

        From the clock that clock_getcpuclockid(3) names: the utime and stime of /proc are hundredths of a second.
        """
        return time.clock_gettime((~self._process.pid << 3) | CPUCLOCK_SCHED)

    def footprint(self) -> Footprint:
        """What it occupies now (proc_pid_status(5))."""
        with open(f"/proc/{self._process.pid}/status", encoding="utf-8") as file:
            fields = dict(line.split(":", 1) for line in file)
        kibibytes = int(fields["VmRSS"].split()[0])
        descriptors = len(os.listdir(f"/proc/{self._process.pid}/fd"))
        return Footprint(kibibytes * 1024 / 1e6, descriptors, int(fields["Threads"]))

    def stop(self) -> None:
        """End it as a service manager does. Raises Failed when it had ended already, or does not end well."""
        ended = self._process.poll() is not None
        self._process.terminate()
        try:
            status = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"the agent did not end within {STOP_SECONDS} s: {self._last_words()}") from None
        if ended or status:
            raise Failed(f"{self._story()}: {self._last_words()}")

    def kill(self) -> None:
        """End it at once, if it still runs."""
        self._process.kill()
        self._process.wait()

    def _story(self) -> str:
        status = self._process.poll()
        return "the agent has not come up" if status is None else f"the agent ended with status {status}"

    def _last_words(self) -> str:
        with open(self._log, "rb") as file:
            return file.read()[-LAST_BYTES:].decode(errors="replace").strip()


@contextmanager
def running(command: Sequence[str], host: int | None, log: str, answers: Callable[[], bool]) -> Iterator[Agent]:
    """An agent for the time of a block, in the network namespace `host`, None for ours; its output goes to `log`.

    Raises Failed when it does not come up, or does not end well.
    """
    with netns.entered(host), open(log, "wb") as file:
        process = subprocess.Popen(
            command, env={"PATH": PATH}, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
    agent = Agent(process, log)
    try:
        agent.wait_until(answers)
        yield agent
    except BaseException:
        agent.kill()
        raise
    agent.stop()
