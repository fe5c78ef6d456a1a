"""Whether NetworkManager or systemd-networkd would touch our shims: read from /proc and their configuration files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from configparser import ConfigParser
from configparser import Error as NotAnIni
from contextlib import suppress
from fnmatch import fnmatchcase

from cni import netns
from cni.ctl.doctor.facts import Manager
from cni.survey import sees_all_processes

NETWORK_MANAGER, NETWORKD = "NetworkManager", "systemd-networkd"
COMMS = {NETWORK_MANAGER: "NetworkManager", NETWORKD: "systemd-network"}  # proc(5): 15 characters of it
KIND = "macvlan"

# Of files with the same name the first directory's counts (NetworkManager.conf(5), systemd.network(5)).
ROOTS = ("/etc", "/run", "/usr/local/lib", "/usr/lib")


def managers(shim: str, proc: str = "/proc") -> list[Manager]:
    """Both of them, and what they would do with a link of that name; `proc` shows the processes."""
    return [
        _manager(NETWORK_MANAGER, network_manager, shim, proc),
        _manager(NETWORKD, networkd, shim, proc),
    ]


def _manager(name: str, judged: Callable[..., Manager], shim: str, proc: str) -> Manager:
    """What one of them does in our network namespace, or that it would not show."""
    own, hidden = netns.own_identity(), not sees_all_processes()
    for process in _processes(proc, COMMS[name]):
        try:
            if netns.identity_of(os.stat(f"{process}/ns/net")) == own:
                return judged(shim, running=True, root=_root(process))
        except PermissionError:  # without CAP_SYS_PTRACE, of a process that has more rights than we have
            hidden = True
        except OSError:  # it has ended meanwhile
            continue
    return Manager(name, running=False, hidden=hidden)


def _root(process: str) -> str:
    """What to put before the paths of files that a process reads, where its root is not ours."""
    return "" if os.path.samefile(f"{process}/root", "/") else f"{process}/root"


def _processes(proc: str, comm: str) -> Iterator[str]:
    """The directories of the processes of that name."""
    for pid in filter(str.isdecimal, os.listdir(proc)):
        if _text(f"{proc}/{pid}/comm").strip() == comm:
            yield f"{proc}/{pid}"


def network_manager(shim: str, *, running: bool, root: str = "") -> Manager:
    """NetworkManager takes every link that it is not told to spare."""
    files = [f"{root}/etc/NetworkManager/NetworkManager.conf", *_drop_ins(root, "NetworkManager/conf.d", ".conf")]
    spared_by = next((path for path in files if _spares(_sections(path), shim)), "")
    return Manager(NETWORK_MANAGER, running, spared_by, takes_by_itself=True)


def _spares(sections: Iterable[tuple[str, dict[str, str]]], shim: str) -> bool:
    for name, keys in sections:
        if name == "keyfile" and _is_listed(keys.get("unmanaged-devices", ""), shim):
            return True
        if name.startswith("device") and keys.get("managed", "").lower() in ("0", "no", "false"):
            return _is_listed(keys.get("match-device", "*"), shim)
    return False


def _is_listed(devices: str, shim: str) -> bool:
    """Whether a list of NetworkManager has the shim, by name or by type."""
    for device in devices.replace(",", ";").split(";"):
        spec = device.strip().removeprefix("interface-name:").removeprefix("=")
        if fnmatchcase(shim, spec) or spec in ("type:macvlan", "driver:macvlan"):
            return True
    return False


def networkd(shim: str, *, running: bool, root: str = "") -> Manager:
    """systemd-networkd takes what the first matching file tells it to take, and spares the rest."""
    for path in _drop_ins(root, "systemd/network", ".network"):
        sections = dict(_sections(path))
        if _matches(sections.get("match", {}), shim):
            unmanaged = sections.get("link", {}).get("unmanaged", "").lower() in ("yes", "true", "1", "on")
            return Manager(NETWORKD, running, path if unmanaged else "", "" if unmanaged else path)
    return Manager(NETWORKD, running)


def _matches(match: dict[str, str], shim: str) -> bool:
    """Whether a [Match] section takes the shim; one with keys that no macvlan can satisfy does not."""
    wanted = {"name": shim, "kind": KIND, "type": "ether", "driver": KIND}
    return bool(match) and all(key in wanted and _globs(patterns, wanted[key]) for key, patterns in match.items())


def _globs(patterns: str, value: str) -> bool:
    negated = patterns.startswith("!")
    return any(fnmatchcase(value, pattern) for pattern in patterns.removeprefix("!").split()) is not negated


def _drop_ins(root: str, directory: str, suffix: str) -> list[str]:
    """The files of a configuration by their names, whatever directory they are in."""
    found: dict[str, str] = {}
    for base in ROOTS:
        with suppress(OSError):
            for name in os.listdir(f"{root}{base}/{directory}"):
                if name.endswith(suffix):
                    found.setdefault(name, f"{root}{base}/{directory}/{name}")
    return [found[name] for name in sorted(found)]


def _sections(path: str) -> list[tuple[str, dict[str, str]]]:
    """The sections of a file of that kind, names and keys in lower case; none of one that cannot be read."""
    parser = ConfigParser(strict=False, interpolation=None, delimiters=("=",), allow_no_value=True)
    with suppress(NotAnIni):
        parser.read_string(_text(path))
    return [(name.lower(), {k: v or "" for k, v in parser.items(name)}) for name in parser.sections()]


def _text(path: str) -> str:
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
    return ""
