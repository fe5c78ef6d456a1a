"""What is installed on a node: the executables and the conflist, and what to do about the files that are there already.

Decides, and touches nothing: content in, verdict out.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cni import __version__
from cni.ctl import netfile
from cni.ctl.netfile import problems, uses_us
from cni.errors import InvalidConfig
from cni.values import Unfit, network_name, show

PLUGIN, IPAM, INPROCESS = "shimlan", "shimlan-ipam", "shimlan-inprocess"
EXECUTABLES = (PLUGIN, IPAM, INPROCESS)
NATIVE = re.compile(rb"CNI plugin shimlan (\d+\.\d+\.\d+)")  # client.c
CONFIGURATIONS = (".conf", ".conflist", ".json")  # what libcni takes for one
MARK = "installedBy"  # a key of conflists that runtimes do not look at; its value begins so:
INSTALLER = "shimlanctl"
FROM = " from "  # and ends with the directory, if all conflists of one were installed
SCRIPT = re.compile(rb"^from (?:cni|ipam)\.plugin import run$", re.M)  # bin/


class Verdict(Enum):
    """What to do about a file."""

    PLACE = "installed"  # nothing is there, or something of ours that is older
    KEEP = "is up to date"
    RESPECT = "is of a newer version: left alone, unless --force is given"
    SET_ASIDE = "is not ours"  # first, and place then


@dataclass(frozen=True)
class Ware:
    """A file to install: its name in its directory, what it holds, and its permissions."""

    name: str
    content: bytes
    mode: int


def judge(ware: Ware, present: bytes | None, force: bool = False) -> Verdict:
    """What to do about a ware where a file with this content is, or None."""
    if present is None:
        return Verdict.PLACE
    if present == ware.content:
        return Verdict.KEEP
    if not belongs_to_us(ware.name, present):
        return Verdict.SET_ASIDE
    newer = _version(present) > _version(f"CNI plugin shimlan {__version__}".encode())
    return Verdict.RESPECT if newer and not force else Verdict.PLACE


def belongs_to_us(name: str, content: bytes) -> bool:
    """Whether a file is an executable of shimlan, or a conflist that was installed."""
    if name in EXECUTABLES:
        return bool(NATIVE.search(content) or SCRIPT.search(content))
    return _mark(content).startswith(INSTALLER)


def comes_from(content: bytes, directory: str) -> bool:
    """Whether a file is a conflist that was installed with all others of a directory."""
    installer, _, source = _mark(content).partition(FROM)
    return installer.startswith(INSTALLER) and source == directory


def _mark(conflist: bytes) -> str:
    document = _decoded(conflist)
    return str(document.get(MARK, "")) if isinstance(document, dict) else ""


def needs_us(content: bytes) -> bool:
    """Whether a file is a network, of whomever, that works with shimlan only."""
    return uses_us(_decoded(content))


def data_dirs(content: bytes) -> tuple[str, ...]:
    """Where a network, of whomever, has records and leases."""
    return tuple(netfile.data_dirs(_decoded(content)))


def network(conflist: bytes) -> str:
    """The name of a network that nodes may have values of their own for; "" for one without the plugin, or a name."""
    document = _decoded(conflist)
    if isinstance(document, dict) and isinstance(plugins := document.get("plugins"), list):
        with suppress(Unfit):
            return network_name(document.get("name")) if any(map(_is_plugin, plugins)) else ""
    return ""


def _decoded(content: bytes) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _version(executable: bytes) -> tuple[int, ...]:
    """Of the client; scripts have that of the environment that they name, which may be anywhere."""
    found = NATIVE.search(executable)
    return tuple(int(part) for part in found[1].split(b".")) if found else ()


def conflist(text: str | bytes, override: str | bytes = b"", of: str = "", source: str = "") -> bytes:
    """The conflist to install: a template, with what is different on this node: `override`, what the file `of` holds.

    The override is a JSON merge patch (RFC 7396) of the template's shimlan plugin, such as
    `{"master": "eno1", "ipam": {"ranges": [[{"subnet": "192.0.2.0/25"}]]}}`. Raises InvalidConfig that lists every
    problem of the outcome, which is marked as ours, and as coming from the directory `source` if there is one.
    """
    document = _object(text, "the conflist")
    if "plugins" not in document:
        raise InvalidConfig('the conflist has no list "plugins": wrap the plugin in one')
    if override and isinstance(document["plugins"], list):
        patch = _object(override, of)
        document["plugins"] = [merged(p, patch) if _is_plugin(p) else p for p in document["plugins"]]
    found = [str(problem) for problem in problems(document)]
    if found:
        beside = f" with {of}" if override else f", as there is no {of}" if of else ""
        raise InvalidConfig(f"the conflist{beside}: {'; '.join(found)}", "\n".join(found))
    document[MARK] = f"{INSTALLER} {__version__}" + (f"{FROM}{source}" if source else "")
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _is_plugin(plugin: object) -> bool:
    return isinstance(plugin, dict) and plugin.get("type") == PLUGIN


def merged(target: Any, patch: Any) -> Any:
    """RFC 7396: null removes a key, objects are merged, everything else replaces what was there."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def _object(text: str | bytes, name: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(f"{name} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidConfig(f"{name} must be an object, not {show(document)}")
    return document
