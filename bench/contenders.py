"""Who is compared: what a runtime calls, and what has to run for it on the host."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from bench.samples import AGENT, IN_PROCESS, PEER
from cni.frozen import frozen

OURS = {"agent": AGENT, "in-process": IN_PROCESS}  # as the command line calls them
BUILT_CLIENT = Path(__file__).parents[1] / "build/client/shimlan"


@frozen
class Contender:
    """A CNI plugin. `agent` is the command that starts the process which serves it; empty when it needs none."""

    name: str
    executable: str
    agent: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether it is a shimlan."""
        return self.name != PEER

    @property
    def directory(self) -> str:
        """Where it finds other plugins (CNI_PATH)."""
        return os.path.dirname(self.executable)


def contenders(plugin: str, client: str, agent: str, peer: str) -> list[Contender]:
    """Those that there are of all: `peer` is a directory, `agent` a command line; what is "" is left out."""
    all_of_them = [
        Contender(PEER, peer and f"{peer}/macvlan"),
        Contender(AGENT, client, tuple(agent.split())),
        Contender(IN_PROCESS, plugin),
    ]
    return [contender for contender in all_of_them if contender.executable]


def find_peer() -> str:
    """The directory with the reference plugins: $CNI_PEER_DIR, or where Debian has them; "" when there are none."""
    directories = (os.environ.get("CNI_PEER_DIR", ""), "/usr/lib/cni", "/opt/cni/bin")
    complete = (
        each for each in directories if all(shutil.which(name, path=each) for name in ("macvlan", "host-local"))
    )
    return next(complete, "")


def find_plugin() -> str:
    """The shimlan beside this Python, else the one in PATH; "" when there is none."""
    beside = os.path.dirname(sys.executable)
    return shutil.which("shimlan", path=beside) or shutil.which("shimlan") or ""


def find_client() -> str:
    """The native client that `make client` builds for this machine; "" when it was not."""
    return str(BUILT_CLIENT) if os.access(BUILT_CLIENT, os.X_OK) else ""
