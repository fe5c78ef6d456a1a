"""What was measured on what: versions and the machine, without its name."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess

from bench.plugin import Plugin

REFERENCE_PACKAGE = "containernetworking-plugins"


def describe(plugin: Plugin, peer: str) -> dict[str, str]:
    """What a reader has to know to compare with other figures; `peer` is the directory of the reference plugins."""
    return {
        "shimlan": f"{plugin.version} on Python {plugin.python}",
        "reference plugins": _reference_version(peer) if peer else "absent",
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


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
        return next(names, "unknown processor")
