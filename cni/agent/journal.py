"""The agent's log: lines of text or JSON on stderr, with the call that they belong to, and in a network's `logFile`.

To whoever writes it is a `cni.log.Log`. It is not the place to decide what is worth a line. Formats and levels are told
to operators in docs/agent.md.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from cni import quickjson
from cni.files import without_waiting
from cni.log import LEVELS, Log

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping
    from typing import TextIO

    from cni.config import NetConf
    from cni.protocol import Call

SYSLOG_PRIORITIES = ("<3>", "<4>", "<6>", "<7>")  # of LEVELS; sd-daemon(3)
SHOWN_OF_ID = 13  # characters of a container's ID, in text
MOST_KEYS = 1000  # that `once_per` remembers


class Journal(Log):
    """A log that any number of threads may write to; it never raises, not even when nobody reads it any more."""

    def __init__(
        self, stream: TextIO, level: str = "info", format: str = "text", environ: Mapping[str, str] = os.environ
    ) -> None:
        """`format` is "text" or "json"; `environ` tells whether the stream is systemd's journal."""
        super().__init__(stream, level)
        self._fd = stream.fileno()
        self._is_json = format == "json"
        self._is_systemd = environ.get("JOURNAL_STREAM") == _identity(self._fd)
        self._fields: dict[str, str] = {}
        self._due: dict[Hashable, float] = {}  # shared, as the lock is, by all that were made of one journal
        self._lock = threading.Lock()

    def with_context(
        self, *, command: str = "", network: str = "", container: str = "", ifname: str = "", pod: str = ""
    ) -> Journal:
        """The same log with these words in each line; "" leaves out a word, or leaves it as it was."""
        words = {"command": command, "network": network, "container": container, "ifname": ifname, "pod": pod}
        journal = Journal.__new__(Journal)
        journal.__dict__.update(self.__dict__)
        journal._fields = self._fields | {name: word for name, word in words.items() if word}
        return journal

    def for_call(self, call: Call, conf: NetConf) -> Journal:
        """The log of one call: `logLevel` is the network's where it has one, and the lines go to its `logFile` too."""
        journal = self.with_context(
            command=call.command, network=conf.name, container=call.container_id, ifname=call.ifname, pod=conf.pod
        )
        if conf.raw.get("logLevel") is not None:
            journal._level = LEVELS.index(conf.log_level)
        journal._path = conf.log_file
        return journal

    def once_per(self, seconds: float, key: Hashable) -> bool:
        """Whether to say now what is said under this key at most once in so many seconds."""
        now = time.monotonic()
        with self._lock:
            if now < self._due.get(key, now):
                return False
            if len(self._due) >= MOST_KEYS:
                self._due.clear()  # to say something once more than intended beats growing
            self._due[key] = now + seconds
        return True

    def _write(self, level: int, message: str) -> None:
        if level > self._level:
            return
        message = message.rstrip()
        line = self._json(level, message) if self._is_json else self._text(level, message, self._is_systemd)
        # A log that cannot be written is no reason to refuse a pod its network.
        with suppress(OSError), self._lock:
            os.write(self._fd, line.encode())
        if self._path:
            with suppress(OSError):
                self._append(self._text(level, message, is_systemd=False))

    def _json(self, level: int, message: str) -> str:
        entry = {"time": _now(), "level": LEVELS[level], "message": message, **self._fields}
        return quickjson.dumps(entry, compact=True) + "\n"

    def _text(self, level: int, message: str, is_systemd: bool) -> str:
        """A line for each line of the message: none may look like one that somebody else has written."""
        words = (word[:SHOWN_OF_ID] if name == "container" else word for name, word in self._fields.items())
        context = " ".join(words)
        start = f"{SYSLOG_PRIORITIES[level] if is_systemd else ''}shimlan: {LEVELS[level]}: {context}"
        if context:
            start += ": "
        return "".join(f"{_printable(start + line)}\n" for line in message.splitlines() or [""])

    def _append(self, text: str) -> None:
        """Write to the network's file, as the in-process plugin does; opened each time, so that it can be rotated."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z ")
        fd = without_waiting(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(fd, "".join(stamp + line for line in text.splitlines(keepends=True)).encode())
        finally:
            os.close(fd)


def _identity(fd: int) -> str:
    """What JOURNAL_STREAM holds if the descriptor is the journal: systemd.exec(5)."""
    found = os.fstat(fd)
    return f"{found.st_dev}:{found.st_ino}"


def _now() -> str:
    """The time as in RFC 3339, with milliseconds and zone."""
    now = time.time()
    second, zone = time.strftime("%Y-%m-%dT%H:%M:%S %z", time.localtime(now)).split()
    return f"{second}.{int(now % 1 * 1000):03d}{zone[:3]}:{zone[3:]}"


def _printable(line: str) -> str:
    """The line with control characters, and what cannot be encoded, as escapes."""
    return line if line.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
