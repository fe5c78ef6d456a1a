"""A network that one contender serves, and the calls that a runtime makes for its pods."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from bench.agent import Agent
from bench.contenders import Contender
from bench.process import PATH, Answer, Call, Failed, Json, run
from cni import netns
from cni.frozen import frozen

# The kernel goes on for ~20 ms after a link has gone; the next process that is timed shall not pay for it.
SETTLE_SECONDS = 0.03


@frozen
class Times:
    """How long the two halves of a pod's life took, in seconds."""

    add: float
    delete: float


class Network:
    """A network that one contender serves on a host of its own.

    `host` is a descriptor of the host's namespace, `socket` where the contender's agent listens, "" if it has none.
    """

    def __init__(self, contender: Contender, conf: Json, host: int, socket: str = "") -> None:
        self.contender = contender
        self.conf = conf
        self.host = host
        self.socket = socket
        self.agent: Agent | None = None

    def call(self, command: str, pod: str = "", container: str = "", result: Json | None = None) -> Call:
        """What a runtime runs for a verb: `pod` is a path of a namespace, `result` that of ADD where it has one."""
        variables = {"CNI_COMMAND": command, "CNI_PATH": self.contender.directory, "PATH": PATH}
        if self.socket:  # without a fallback, so that it is the agent that answers, or nobody
            variables |= {"SHIMLAN_SOCKET": self.socket, "SHIMLAN_FALLBACK": ""}
        if container:
            variables |= {"CNI_CONTAINERID": container, "CNI_NETNS": pod, "CNI_IFNAME": "eth0"}
        conf = {**self.conf, "prevResult": result} if result else self.conf
        return Call((self.contender.executable,), variables, json.dumps(conf).encode())

    def run(self, command: str, pod: str = "", container: str = "", result: Json | None = None) -> Answer:
        """Run a verb on the host. Raises Failed."""
        call = self.call(command, pod, container, result)
        with netns.entered(self.host):
            return run(call)

    def cycle(self, pod: str) -> Times:
        """One pod's life: ADD, DEL, and a pause that belongs to nobody."""
        container = secrets.token_hex(16)
        added = self.run("ADD", pod, container)
        deleted = self.run("DEL", pod, container, added.json)
        time.sleep(SETTLE_SECONDS)
        return Times(added.seconds, deleted.seconds)

    @contextmanager
    def attached(self, pods: Sequence[str]) -> Iterator[list[tuple[str, str, Json]]]:
        """Pods that are attached for the time of a block: (namespace, container ID, result of ADD) of each."""
        with ExitStack() as undo:
            attached = []
            for pod in pods:
                container = secrets.token_hex(16)
                result = self.run("ADD", pod, container).json
                undo.callback(self.run, "DEL", pod, container, result)
                attached.append((pod, container, result))
            yield attached

    def nsids(self) -> int:
        """How many other namespaces the host's has a number for (RTM_GETNSID)."""
        with netns.entered(self.host):
            listed = subprocess.run(["ip", "-j", "netns", "list-id"], capture_output=True, text=True, check=True).stdout
        return len(json.loads(listed or "[]"))

    def answers(self) -> bool:
        """Whether STATUS succeeds."""
        call = self.call("STATUS")
        current = json.dumps({**self.conf, "cniVersion": "1.1.0"}).encode()
        try:
            run(Call(call.argv, call.env, current))
        except Failed:
            return False
        return True
