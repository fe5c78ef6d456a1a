"""Log lines for people: to stderr, which runtimes keep, and to `logFile` when there is one. Never to stdout."""

from __future__ import annotations

import time

from cni.files import without_waiting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

LEVELS = ("error", "warning", "info", "debug")


class Log:
    """Writes lines up to a level; `context` (command, network, container...) stands in each of them."""

    def __init__(self, stream: TextIO, level: str = "info", path: str = "", context: str = "") -> None:
        self._stream = stream
        self._level = LEVELS.index(level)
        self._path = path
        self._context = context

    @property
    def is_detailed(self) -> bool:
        """Whether `debug` writes anything, for those to whom composing its message is work."""
        return self._level == len(LEVELS) - 1

    def error(self, message: str) -> None:
        """Something failed."""
        self._write(0, message)

    def warning(self, message: str) -> None:
        """Something works, but not as its owner may think."""
        self._write(1, message)

    def info(self, message: str) -> None:
        """Something worth knowing was done."""
        self._write(2, message)

    def debug(self, message: str) -> None:
        """A step on the way, such as a change to the kernel in `ip` syntax."""
        self._write(3, message)

    def _write(self, level: int, message: str) -> None:
        if level > self._level:
            return
        line = f"shimlan: {LEVELS[level]}: {self._context}{message}\n"
        # A log that cannot be written is no reason to refuse a pod its network.
        try:
            self._stream.write(line)
            if self._path:
                with open(self._path, "a", encoding="utf-8", errors="backslashreplace", opener=without_waiting) as file:
                    file.write(time.strftime("%Y-%m-%dT%H:%M:%S%z ") + line)
        except OSError:
            return
