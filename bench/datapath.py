"""The data path: a macvlan child with the host's shim, and veth with a bridge, which is what else one would use.

Both give pods addresses of the LAN. Round-trip times by ping, rates by iperf3, in namespaces on one machine, whose
processors do the work of senders, receivers and network alike.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from bench.process import Failed
from bench.samples import DATA_PATH, Row, percentile
from bench.stage import Stage, tell
from cni.ctl.lab import Lab
from cni.ctl.node import Node
from cni.frozen import frozen

BRIDGE = "veth + bridge"
POD_NAMES = ("pod0", "pod1")
MOST_ROUNDS = 5
PINGS, PING_INTERVAL = 300, 0.002  # s
SECONDS = 1  # of a transfer; iperf3 knows only whole ones
SMALL = 64  # bytes of payload
PORT = 5201  # of iperf3
PATIENCE = 5.0  # s, for iperf3 to listen
ROUND_TRIP = re.compile(r" time=([\d.]+) ms")

# What is measured, and in which unit; only the plotted ones have a short name.
MEASURES = {
    "round trip, median": ("µs", "round trip"),
    "round trip, p99": ("µs", ""),
    f"UDP, {SMALL} bytes each": ("packets/s", "small packets"),
    "TCP": ("Mbit/s", "TCP"),
}
MEDIAN, P99, UDP, TCP = MEASURES


@frozen
class Lan:
    """Machines on one LAN: two pods, their host, and one outside."""

    pod: Node
    other_pod: Node
    host: Node
    outside: Node


PATHS: dict[str, Callable[[Lan], tuple[Node, Node]]] = {
    "pod to pod": lambda lan: (lan.pod, lan.other_pod),
    "host to pod": lambda lan: (lan.host, lan.other_pod),
    "pod to outside": lambda lan: (lan.pod, lan.outside),
}


def measure(stage: Stage) -> list[Row]:
    """Round trips, small packets and TCP between pods, host and LAN; beside veth and a bridge."""
    if not shutil.which("iperf3"):
        tell("note: iperf3 is absent, so round trips are all that is measured of the data path")
    with ExitStack() as undo:
        ours = undo.enter_context(_with_macvlan(stage.plugin))
        other = undo.enter_context(_with_bridge(stage.plugin))
        actions = {
            (path, who): partial(_between, *ends(lan))
            for path, ends in PATHS.items()
            for who, lan in ((DATA_PATH, ours), (BRIDGE, other))
        }
        taken = stage.in_turns(actions, 1 if stage.quick else min(stage.rounds, MOST_ROUNDS))
    medians = {key: _medians(rounds) for key, rounds in taken.items()}
    return [
        _row(path, what, medians[path, DATA_PATH][what], medians[path, BRIDGE][what])
        for path in PATHS
        for what in medians[path, DATA_PATH]
    ]


def _row(path: str, what: str, ours: float, other: float) -> Row:
    unit, short = MEASURES[what]
    return Row(DATA_PATH, "PATH", f"{path}: {what}", ours, other, BRIDGE, unit=unit, short=short and path)


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {what: statistics.median(measured[what] for measured in rounds) for what in rounds[0]}


def _between(source: Node, target: Node) -> dict[str, float]:
    """All measures from one machine to another."""
    return {**_round_trips(source, target), **(_rates(source, target) if shutil.which("iperf3") else {})}


def _round_trips(source: Node, target: Node) -> dict[str, float]:
    told = source.run("ping", "-n", "-i", str(PING_INTERVAL), "-c", str(PINGS), target.address).stdout
    times = microseconds(told)
    return {MEDIAN: statistics.median(times), P99: percentile(times, 99)}


def microseconds(told: str) -> list[float]:
    """The round-trip times in the output of `ping`, in microseconds."""
    return [float(each) * 1000 for each in ROUND_TRIP.findall(told)]


def _rates(source: Node, target: Node) -> dict[str, float]:
    with _listening(target):
        datagrams = _iperf3(source, target, "--udp", "--length", str(SMALL), "--bitrate", "0")["sum"]
        stream = _iperf3(source, target)["sum_received"]
    arrived = datagrams["packets"] - datagrams["lost_packets"]
    return {UDP: arrived / datagrams["seconds"], TCP: stream["bits_per_second"] / 1e6}


def _iperf3(source: Node, target: Node, *options: str) -> dict[str, dict[str, float]]:
    words = ("iperf3", "--json", "--client", target.address, "--time", str(SECONDS), *options)
    end: dict[str, dict[str, float]] = json.loads(source.run(*words).stdout)["end"]
    return end


@contextmanager
def _listening(node: Node) -> Iterator[None]:
    """iperf3 as a server on a machine, for the time of a block."""
    words = [*node.enter_words, "iperf3", "--server"]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        while not _has_listener(node):
            if time.monotonic() > deadline:
                raise Failed(f"iperf3 does not listen on {node.label}")
            time.sleep(0.01)
        yield
    finally:
        server.terminate()
        server.wait()


def _has_listener(node: Node) -> bool:
    return bool(node.run("ss", "-Hltn", f"sport = :{PORT}").stdout)


@contextmanager
def _with_macvlan(plugin: str) -> Iterator[Lan]:
    with Lab(plugin) as lab:
        pods = [lab.pod(name) for name in POD_NAMES]
        yield Lan(pods[0], pods[1], lab.host, lab.outside)
        for pod in pods:
            pod.delete()


@contextmanager
def _with_bridge(plugin: str) -> Iterator[Lan]:
    """The host's NIC is a port of a bridge, which has the host's address; so are the host's ends of the pods' veths."""
    with Lab(plugin) as lab:
        host = lab.host
        host.ip_batch(
            "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            "address flush dev eth0",
            "link set eth0 master br0",
            "link set br0 up",
            f"address add {host.address}/24 dev br0",
        )
        pods = [lab.netns(name) for name in POD_NAMES]
        for number, pod in enumerate(pods):
            pod.address = f"192.0.2.{100 + number}"
            host.ip_batch(
                f"link add {pod.label} type veth peer name eth0 netns {pod.name}",
                f"link set {pod.label} master br0 up",
            )
            pod.ip_batch("link set eth0 up", f"address add {pod.address}/24 dev eth0")
        yield Lan(pods[0], pods[1], host, lab.outside)
