"""The agent's metrics as Prometheus reads them. How they are asked for is the business of `cni.agent.web`.

Label values come from configurations and from this program; nothing is counted per pod, and what a tenant can invent
(names of networks) is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cni import __version__
from cni.agent.journal import Journal
from cni.agent.metrics import Metrics, Readings
from cni.errors import CniError
from cni.protocol import REQUIRED

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds. An ADD takes less than a millisecond; one that waits for a lock or a delegate may take a minute.
REQUEST_BUCKETS = (
    *(0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
RECONCILE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

MOST_NETWORKS = 200  # with requests of their own in the metrics; a node has some ten
OTHER_NETWORKS = "_other"  # no network can be called so
SILENCE_SECONDS = 300.0  # between two warnings about what cannot be read

# Looked up when asked for: the name, what it means, and which of the readings it is.
NUMBERS = (
    ("shimlan_workers", "Threads that serve requests, idle ones included.", "workers"),
    ("shimlan_requests_in_flight", "Requests that are being served.", "requests_in_flight"),
    ("shimlan_waiting_connections", "Connections whose request is not whole yet.", "waiting_connections"),
    ("shimlan_repairs_backed_off", "Things left broken for a while: repairs did not last.", "repairs_backed_off"),
)

Count = Callable[[], None]
Observe = Callable[[float], None]


class Exporter(Metrics):
    """Counts what happens, and renders it together with what is looked up at that moment."""

    def __init__(self, log: Journal, reasons: Iterable[str] = (), kinds: Iterable[str] = ()) -> None:
        """`reasons` of `refused` and `kinds` of `repaired` are there from the start: a first count is an increase."""
        # They would be a second series beside each one of ours, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._log = log
        self._registry = CollectorRegistry()
        self._series: dict[tuple[str, str, int], tuple[Count, Observe]] = {}
        self._networks: set[str] = set()
        self._define_requests()
        self._define_reconciliation()
        Info("shimlan_build", "The version of the agent.", registry=self._registry).info({"version": __version__})
        ProcessCollector(registry=self._registry)
        for reason in reasons:
            self._refused.labels(reason)
        for kind in kinds:
            self._repairs.labels(kind)

    def _define_requests(self) -> None:
        self._requests = Counter(
            "shimlan_requests_total",
            'Requests answered, by CNI verb, network and error code; "0" is success.',
            ("command", "network", "code"),
            registry=self._registry,
        )
        self._request_seconds = Histogram(
            "shimlan_request_seconds",
            "Time from a whole request to its answer.",
            ("command",),
            buckets=REQUEST_BUCKETS,
            registry=self._registry,
        )
        self._refused = Counter(
            "shimlan_connections_refused_total",
            "Connections closed without an answer.",
            ("reason",),
            registry=self._registry,
        )

    def _define_reconciliation(self) -> None:
        self._repairs = Counter(
            "shimlan_repairs_total", "Things that were put right, by kind.", ("kind",), registry=self._registry
        )
        self._stale_cleared = Counter(
            "shimlan_stale_cleared_total", "What was cleared because its pod was gone.", registry=self._registry
        )
        self._reconcile_seconds = Histogram(
            "shimlan_reconcile_seconds",
            "Duration of the passes of the reconciliation.",
            buckets=RECONCILE_BUCKETS,
            registry=self._registry,
        )
        self._reconcile_errors = Counter(
            "shimlan_reconcile_errors_total", "What a pass could not put right.", registry=self._registry
        )
        self._last_reconcile = Gauge(
            "shimlan_last_reconcile_timestamp_seconds",
            "When the last pass has ended, in seconds since 1970; 0 before the first one.",
            registry=self._registry,
        )

    def request(self, command: str, network: str, code: int, seconds: float) -> None:
        """See `Metrics.request`; some microseconds."""
        count, observe = self._series.get((command, network, code)) or self._find(command, network, code)
        count()
        observe(seconds)

    def _find(self, command: str, network: str, code: int) -> tuple[Count, Observe]:
        """Where to count a request; kept, unless its words are such as anybody could make up any number of."""
        asked = (command, network, code)
        command = command if command in REQUIRED else ""
        if network not in self._networks and len(self._networks) >= MOST_NETWORKS:
            network = OTHER_NETWORKS
        series = self._requests.labels(command, network, str(code)).inc, self._request_seconds.labels(command).observe
        if asked == (command, network, code):
            self._networks.add(network)
            self._series[asked] = series
        return series

    def refused(self, reason: str) -> None:
        """See `Metrics.refused`."""
        self._refused.labels(reason).inc()

    def reconciled(self, seconds: float, errors: int = 0) -> None:
        """See `Metrics.reconciled`."""
        self._reconcile_seconds.observe(seconds)
        self._reconcile_errors.inc(errors)
        self._last_reconcile.set_to_current_time()

    def repaired(self, kind: str) -> None:
        """See `Metrics.repaired`."""
        self._repairs.labels(kind).inc()

    def stale_cleared(self) -> None:
        """See `Metrics.stale_cleared`."""
        self._stale_cleared.inc()

    def show(self, readings: Readings) -> None:
        """Have these looked up, from now on, whenever somebody asks; to be called once."""
        self._registry.register(_Looking(readings, self._log))

    def render(self) -> bytes:
        """All of it, in the text format (CONTENT_TYPE)."""
        return generate_latest(self._registry)


class _Looking(Collector):
    """What is looked up. Whatever the store cannot tell is left out: the rest is needed then more than ever."""

    def __init__(self, readings: Readings, log: Journal) -> None:
        self._readings = readings
        self._log = log

    def collect(self) -> Iterator[Metric]:
        for name, text, reading in NUMBERS:
            yield GaugeMetricFamily(name, text, value=getattr(self._readings, reading)())
        for families in (self._attachments, self._pools, self._nics):
            try:
                yield from families()
            except CniError as error:
                if self._log.once_per(SILENCE_SECONDS, "metrics"):
                    self._log.warning(f"metrics are incomplete: {error.msg}")

    def _attachments(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("shimlan_attachments", "Attachments recorded.", labels=("network",))
        for network, count in self._readings.attachments().items():
            family.add_metric((network,), count)
        yield family

    def _pools(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "shimlan_pool_addresses",
            "Addresses of a range: all (size), and those held, cooling down, in conflict and excluded or reserved.",
            labels=("network", "range", "state"),
        )
        for use in self._readings.pools():
            for state in ("size", "held", "cooling", "conflict", "excluded"):
                if (count := getattr(use, state)) is not None:
                    family.add_metric((use.network, f"{use.start}-{use.end}", state), count)
        yield family

    def _nics(self) -> Iterator[Metric]:
        children = GaugeMetricFamily(
            "shimlan_offload_children",
            "Children of a NIC that can forward in hardware, by who forwards for them: hardware or software.",
            labels=("parent", "by"),
        )
        active = GaugeMetricFamily(
            "shimlan_offload_active", "Whether such a NIC has the feature on.", labels=("parent",)
        )
        refused = CounterMetricFamily(
            "shimlan_offload_refused",
            "Children that came up in software although the feature was on: all slots were taken, as a rule.",
            labels=("parent",),
        )
        for use in self._readings.nics():
            children.add_metric((use.parent, "hardware"), use.hardware)
            children.add_metric((use.parent, "software"), use.software)
            active.add_metric((use.parent,), use.active)
            refused.add_metric((use.parent,), use.refused)
        yield from (children, active, refused)
