"""The installed plugin as a Python program: its interpreter, its versions, and whether its modules are compiled."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cni.frozen import frozen

PACKAGES = ("cni", "ipam")

QUESTION = f"""
import importlib.util, json, platform, sqlite3, sys
origins = [importlib.util.find_spec(name).origin for name in {PACKAGES}]
import cni
versions = [cni.__version__, platform.python_version(), sqlite3.sqlite_version]
print(json.dumps([*versions, sys.implementation.cache_tag, origins]))
"""


@frozen
class Plugin:
    """`interpreter` is the first line of the script: a program and its options; `packages` are directories."""

    path: str
    interpreter: tuple[str, ...]
    version: str
    python: str
    sqlite: str
    cache_tag: str
    packages: tuple[str, ...]

    def uncompiled(self) -> list[str]:
        """The modules without an up-to-date .pyc, which pip writes; without them the first call compiles."""
        return [source.name for source in self._sources() if not _is_compiled(source, self.cache_tag)]

    def _sources(self) -> Iterator[Path]:
        for package in self.packages:
            yield from Path(package).glob("*.py")


def inspect(path: str) -> Plugin:
    """What there is to know of the plugin at `path`. Raises ValueError when it is no Python script."""
    with open(path, "rb") as file:
        first = file.readline()
    if not first.startswith(b"#!"):
        raise ValueError(f"{path} is no script")
    interpreter = tuple(first[2:].decode().split())
    # -P: the modules of the plugin, not those in the current directory. -B: looking must not compile what pip did not.
    asked = subprocess.run(
        [*interpreter, "-P", "-B", "-c", QUESTION], env={"PATH": os.defpath}, capture_output=True, text=True, check=True
    )
    version, python, sqlite, cache_tag, origins = json.loads(asked.stdout)
    return Plugin(path, interpreter, version, python, sqlite, cache_tag, tuple(map(os.path.dirname, origins)))


def _is_compiled(source: Path, cache_tag: str) -> bool:
    """Whether the .pyc says that it was made of the source as it is (PEP 552: flags 0, then time and size)."""
    compiled = source.parent / "__pycache__" / f"{source.stem}.{cache_tag}.pyc"
    try:
        header = compiled.read_bytes()[:16]
    except FileNotFoundError:
        return False
    flags, seconds, size = struct.unpack("<4xIII", header)
    status = source.stat()
    return bool(flags) or (seconds, size) == (int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
