"""The network that doctor looks at: the file that was named, or the one that a runtime would find."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import cni.config
from cni.ctl import netfile
from cni.ctl.doctor.facts import Configuration, NetworkFile
from cni.ctl.runtime import plugins
from cni.files import without_waiting
from cni.frozen import replace

DIRECTORY = "/etc/cni/net.d"
EXTENSIONS = (".conf", ".conflist", ".json")  # that libcni looks for


def find(path: str | None, directory: str, master: str) -> Configuration:
    """The configuration in a file, else the first of type shimlan in a directory; `master` takes its master's place.

    Without any, one that has no key but `master`.
    """
    files = list(_files(directory))
    chosen = path or next((f"{directory}/{file.name}" for file in files if netfile.PLUGIN in file.types), "")
    if not chosen:
        return Configuration(_defaults(master), directory=directory, expected=not master)
    before: tuple[NetworkFile, ...] = ()
    if os.path.realpath(os.path.dirname(chosen) or ".") == os.path.realpath(directory):
        before = tuple(file for file in files if file.name < os.path.basename(chosen))
    try:
        document = _read(chosen)
    except (OSError, ValueError, RecursionError) as error:
        return Configuration(_defaults(master), chosen, directory, (_reason(error),), before=before)
    conf, problems = _network(document, master)
    return Configuration(conf, chosen, directory, problems, _types(document), before)


def _network(document: Any, master: str) -> tuple[cni.config.NetConf, tuple[str, ...]]:
    """The part that is ours, and all that is wrong with any of it."""
    problems = tuple(map(str, netfile.problems(document)))
    chain = list(plugins(document)) if isinstance(document, dict) and not problems else []
    ours = next((plugin for plugin in chain if plugin.get("type") == netfile.PLUGIN), None)
    if problems or ours is None:
        return _defaults(master), problems or (f"nothing in it is of type {netfile.PLUGIN}",)
    raw = {**ours, "master": master} if master else ours
    # Not `parse`: ranges that the runtime is to give are missing here.
    conf = cni.config.parse_for_delete(raw, {})
    # Addresses that are asked for are one pod's.
    return replace(conf, ipam=replace(conf.ipam, requested=()) if conf.ipam else None), ()


def _defaults(master: str) -> cni.config.NetConf:
    return cni.config.parse({"name": "none", "type": netfile.PLUGIN, "master": master or None}, {})


def _files(directory: str) -> Iterator[NetworkFile]:
    """The configurations of a directory in the order in which runtimes find them."""
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(EXTENSIONS))
    except OSError:
        return
    for name in names:
        try:
            yield NetworkFile(name, _types(_read(f"{directory}/{name}")))
        except (OSError, ValueError, RecursionError) as error:
            yield NetworkFile(name, unreadable=_reason(error))


def _read(path: str) -> Any:
    with open(path, encoding="utf-8", opener=without_waiting) as file:
        return json.load(file)


def _types(document: Any) -> tuple[str, ...]:
    """The types of the plugins of a conf or conflist, whatever else may be wrong with it."""
    if not isinstance(document, dict):
        return ()
    chain = document.get("plugins", [document])
    entries = chain if isinstance(chain, list) else []
    return tuple(str(entry.get("type", "")) for entry in entries if isinstance(entry, dict))


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} in line {error.lineno}"
    return (error.strerror if isinstance(error, OSError) else "") or str(error)
