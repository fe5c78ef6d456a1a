"""What the tests ask of a container runtime, whichever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from e2e.machine import Machine


class Pod(Machine):
    """A running container in a network of its own, with a web server; `netns` is the path of that network."""

    netns: str

    def stop(self) -> None:
        """End its processes and detach it; may be called again."""
        raise NotImplementedError

    def remove(self) -> None:
        """Stop it and forget it; may be called again."""
        raise NotImplementedError


class Runtime(ABC):
    """A runtime that looks for plugins in `bin_dir` and for networks in `conf_dir`."""

    bin_dir: Path
    conf_dir: Path

    @abstractmethod
    def start(self, name: str, *, ip: str = "", mac: str = "") -> Pod:
        """A pod on the network that is in `conf_dir`. Raises Refused."""

    @abstractmethod
    def sees(self, conflist: dict[str, Any]) -> bool:
        """Whether it has read this network."""

    @abstractmethod
    def pods(self) -> list[Pod]:
        """Those that the tests have started and not removed."""


class Refused(Exception):
    """The runtime could not do it; the message is its own."""
