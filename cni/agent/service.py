"""One request of a client, served by the stories that the in-process plugin tells as well, on nodes that stay warm.

What is kept from call to call: a node per data directory with its open store, netlink sockets of the host's namespace,
configurations that were read before. All of it could be thrown away between any two calls.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

# What the stories import when they come to need it is loaded before the first request.
from cni import commands, delegate, leasing, mac, nftables, plugin, probe  # noqa: F401
from cni.agent.background import Background
from cni.agent.configurations import Configurations
from cni.agent.host import Host, Memory
from cni.agent.wire import Answer, Request
from cni.attachment import Key
from cni.node import Handed, Node
from ipam import service as _service  # noqa: F401

if TYPE_CHECKING:
    from cni.agent.journal import Journal
    from cni.agent.keeper import Decoded, Keeper
    from cni.agent.metrics import Metrics
    from cni.config import NetConf
    from cni.protocol import Call

MOST_IDLE = 2  # sockets that are kept for the next requests; so many are served at a time, as a rule


class Service:
    """Serves requests on any number of threads, all of which are in the host's namespace."""

    def __init__(self, journal: Journal, metrics: Metrics, keeper: Keeper, decoded: Decoded) -> None:
        self._journal = journal
        self._metrics = metrics
        self._keeper = keeper
        self._decoded = decoded
        self._background = Background()
        self._configurations = Configurations()
        self._nodes: dict[str, Node] = {}
        self._making = threading.Lock()
        self._memory = Memory()
        self._hosts: list[Host] = []

    def serve(self, request: Request) -> Answer:
        """The answer to a request; raises only what must end the thread."""
        started = time.monotonic()
        journal, network = self._journal, ""

        def perform(call: Call, raw: dict[str, Any], version: str) -> dict[str, Any] | None:
            nonlocal journal, network
            conf = self._configurations.parse(request.stdin, raw, call)
            journal, network = self._journal.for_call(call, conf), conf.name
            handed = Handed(call.netns, request.netns, request.netns_errno)
            with self._host() as host:
                node = self._node(conf.data_dir).serving(journal, host, handed)
                answer = plugin.perform(node, call, conf, version)
            self._tell_keeper(call, conf, request.netns)
            return answer

        read = partial(self._configurations.read, request.stdin)
        answer, status = plugin.respond(request.environ, read, perform, self._trace)
        command = request.environ.get("CNI_COMMAND", "")
        code = 0
        if status and answer:
            code = answer["code"]
            journal.warning(f"{command} failed with code {code}: {answer['msg']}")
        self._metrics.request(command, network, code, time.monotonic() - started)
        return Answer(status, plugin.render(answer).encode())

    def _tell_keeper(self, call: Call, conf: NetConf, fd: int | None) -> None:
        """Say which namespaces are worth listening to; what DEL has undone nobody needs to look at."""
        key = Key(conf.name, call.container_id, call.ifname)
        if fd is not None and call.command == "ADD":
            self._keeper.follow(fd, key)
        elif fd is not None and call.command == "DEL":
            self._keeper.forget(fd, key)

    def _trace(self, error: Exception) -> None:
        self._journal.error("".join(traceback.format_exception(error)))

    def _node(self, data_dir: str) -> Node:
        with suppress(KeyError):
            return self._nodes[data_dir]
        with self._making:
            if data_dir not in self._nodes:
                self._nodes[data_dir] = Node(data_dir, self._journal, self._background, self._decoded[data_dir])
                self._keeper.look_after(data_dir)
            return self._nodes[data_dir]

    @contextmanager
    def _host(self) -> Iterator[Host]:
        """A socket in the host's namespace that nobody else uses meanwhile; after an error it is thrown away."""
        try:
            host = self._hosts.pop()
        except IndexError:
            host = Host(self._memory, self._background)
        try:
            yield host
        except BaseException:
            host.close()  # an answer may be left in it that nobody waited for
            raise
        if len(self._hosts) < MOST_IDLE:
            self._hosts.append(host)
        else:
            host.close()
