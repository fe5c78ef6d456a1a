"""The agent from start to stop: its parts wired together, and the signals that end it."""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from collections import defaultdict
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from cni import __version__, netns
from cni.agent import systemd
from cni.agent.directories import Directories
from cni.agent.journal import Journal
from cni.agent.keeper import Decoded, Keeper
from cni.agent.listener import Listener, adopt, listen
from cni.agent.mending import KINDS
from cni.agent.metrics import Metrics, Readings
from cni.agent.server import FAILED, Server
from cni.agent.service import Service
from cni.agent.stores import Stores
from cni.agent.waiting import REASONS
from cni.errors import IOFailure
from cni.frozen import compile_methods

if TYPE_CHECKING:
    from typing import TextIO

    from cni.agent.settings import Settings

KEEPER_SECONDS = 10.0  # for the pass under way at the end
# Objects between two collections of garbage. A request makes some thousand, and hardly any of them in circles.
GARBAGE = 50_000, 20, 20

STOPPED, UNFINISHED = 0, 1


def run(settings: Settings) -> int:
    """Run the agent until it is told to stop (SIGTERM, SIGINT); 1 if requests were left unfinished then.

    Raises CniError when it cannot start.
    """
    journal = Journal(sys.stderr or _nowhere(), settings.log_level, settings.log_format)
    _raise_descriptor_limit()
    os.umask(0o077)
    netns.settle()
    agent = Agent(settings, _listener(settings), journal)
    told = _end_of_signals()
    compile_methods()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE)
    agent.start()
    journal.info(f"shimlan {__version__} serves {settings.socket}, state in {settings.state_dir}")
    _tell_systemd("READY=1", journal)
    os.read(told, 1)
    _tell_systemd("STOPPING=1", journal)
    finished = agent.stop()
    journal.info("stopped" if finished else f"stopped, with requests unfinished after {settings.stop_seconds} s")
    return STOPPED if finished else UNFINISHED


def _end_of_signals() -> int:
    """A descriptor that can be read from as soon as we are told to stop.

    The interpreter writes into it on whatever thread a signal finds. Not a `threading.Event`: setting one takes a lock,
    and the signal may have come while that was held by the very code that it has interrupted.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return reader


class Agent:
    """The parts, and how they hang together."""

    def __init__(self, settings: Settings, listener: Listener, journal: Journal) -> None:
        """Raises CniError."""
        self._settings = settings
        metrics = self._metrics(journal)
        decoded: Decoded = defaultdict(dict)
        self._directories = Directories(settings.state_dir, journal)
        try:
            self._keeper = Keeper(
                self._directories,
                journal,
                metrics,
                decoded,
                resync_seconds=settings.resync_seconds,
                grace_seconds=settings.grace_seconds,
            )
        except OSError as error:
            raise IOFailure(f"cannot hear the kernel's events: {error.strerror}") from error
        service = Service(journal, metrics, self._keeper, decoded)
        self._server = Server(listener, service.serve, journal, metrics, most_workers=settings.max_workers)
        self._opened = ExitStack()
        self._serve_metrics(metrics, journal)

    def start(self) -> None:
        """Begin to serve and to keep."""
        self._server.start()
        self._keeper.start(lambda: self._server.in_flight)

    def stop(self) -> bool:
        """Finish what is under way; whether all of it was."""
        finished = self._server.stop(self._settings.stop_seconds)
        self._keeper.stop(KEEPER_SECONDS)
        self._opened.close()
        return finished

    def _metrics(self, journal: Journal) -> Metrics:
        if self._settings.metrics is None:
            return Metrics()
        from cni.agent.exporter import Exporter  # 10 MB, only for those who ask

        return Exporter(journal, [*REASONS.values(), FAILED], KINDS)

    def _serve_metrics(self, metrics: Metrics, journal: Journal) -> None:
        """Metrics and health by HTTP, if the settings want it. Raises IOFailure."""
        endpoint = self._settings.metrics
        if endpoint is None:
            return
        from cni.agent import exporter, web

        assert isinstance(metrics, exporter.Exporter)
        metrics.show(self._readings())
        pages = {
            "/metrics": lambda: web.Page(200, exporter.CONTENT_TYPE, metrics.render()),
            "/healthz": lambda: web.health(self._is_healthy),
            "/readyz": lambda: web.health(self._is_ready),
        }
        served = web.Web(endpoint, pages, journal)
        self._opened.callback(served.close)

    def _readings(self) -> Readings:
        stores = Stores(self._directories)
        return Readings(
            workers=lambda: self._server.workers,
            requests_in_flight=lambda: self._server.in_flight,
            waiting_connections=lambda: self._server.waiting,
            repairs_backed_off=lambda: self._keeper.backed_off,
            attachments=stores.attachments,
            pools=stores.pools,
            nics=stores.nics,
        )

    def _is_healthy(self) -> tuple[bool, str]:
        if not self._server.workers:
            return False, "nobody serves requests"
        if not self._keeper.is_alive:
            return False, "the host has not been looked at for too long"
        return True, "ok"

    def _is_ready(self) -> tuple[bool, str]:
        if not self._keeper.is_ready:
            return False, "the first look at the host is not finished"
        return self._is_healthy()


def _nowhere() -> TextIO:
    """Where the log goes if stderr was closed at the start."""
    return open(os.open(os.devnull, os.O_WRONLY), "w")


def _listener(settings: Settings) -> Listener:
    try:
        passed = systemd.listen_fds(os.environ)
    except OSError as error:
        raise IOFailure(str(error.strerror)) from error
    return adopt(passed[0]) if passed else listen(settings.socket, settings.take_over)


def _tell_systemd(state: str, journal: Journal) -> None:
    try:
        systemd.notify(state, os.environ)
    except OSError as error:
        journal.warning(f"cannot tell systemd {state}: {error.strerror}; is NOTIFY_SOCKET meant for this process?")


def _raise_descriptor_limit() -> None:
    """Connections that wait, each with a descriptor, come on top of what requests need."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
