"""What was measured on what: versions and the machine, without its name."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import date

from bench.plugin import Plugin

REFERENCE_PACKAGE = "containernetworking-plugins"


def describe(plugin: Plugin, client: str, peer: str) -> dict[str, str]:
    """What a reader has to know to compare with other figures.

    `client` is the path of the native client, `peer` the directory of the reference plugins; "" for what is absent.
    """
    return {
        "date": date.today().isoformat(),
        "shimlan": f"{plugin.version} on Python {plugin.python} with SQLite {plugin.sqlite}",
        "client": f"{os.path.getsize(client):,} bytes" if client else "absent",
        "reference plugins": _reference_version(peer) if peer else "absent",
        "iperf3": _iperf3_version() if shutil.which("iperf3") else "absent",
        "kernel": platform.release(),
        "machine": f"{os.cpu_count()} x {_processor()} ({platform.machine()})",
    }


def _reference_version(directory: str) -> str:
    """The version of the Debian package; other builds tell theirs when called without a command."""
    if directory == "/usr/lib/cni" and shutil.which("dpkg-query"):
        query = ["dpkg-query", "--show", "--showformat=${Version}", REFERENCE_PACKAGE]
        found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        if found:
            return f"{REFERENCE_PACKAGE} {found} of Debian"
    told = subprocess.run([f"{directory}/macvlan"], env={}, capture_output=True, text=True, check=False).stderr
    return told.partition("\n")[0].strip() or "unknown version"


def _iperf3_version() -> str:
    """The second word of what it tells: `iperf 3.12 (cJSON 1.7.15)`."""
    return subprocess.run(["iperf3", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
        return next(names, "unknown processor")
