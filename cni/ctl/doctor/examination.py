"""The order in which doctor looks at things, and what it leaves out because of what it has found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass

from cni.attachment import shim_name, wants_shim
from cni.config import NetConf
from cni.ctl.doctor import checks, configuration, host, lan, managers, scratch, state
from cni.ctl.doctor.facts import Configuration, ParentState, Store
from cni.ctl.doctor.findings import Finding, failure, ok, refused
from cni.errors import CniError
from cni.kernel import Namespace

VENDOR = "/sys/class/dmi/id/sys_vendor"


@dataclass(frozen=True)
class Question:
    """What to look at, as it was asked on the command line."""

    path: str | None = None
    directory: str = configuration.DIRECTORY
    master: str = ""
    state_dir: str = ""  # "": that of the configuration
    socket: str = ""
    bin_dirs: Sequence[str] = ()
    probe: bool = True  # the LAN may be asked


@dataclass(frozen=True)
class Report:
    """What was looked at, and the findings."""

    configuration: str
    parent: str
    findings: tuple[Finding, ...]


def examine(question: Question) -> Report:
    """Look at everything; where the kernel does not answer any more, that is the last finding."""
    if missing := host.missing_rights():
        remedy = f"run it as root, or with {', '.join(missing)}"
        return Report("", "", (failure("privileges", "it may not look at this network as ADD would", remedy),))
    found = configuration.find(question.path, question.directory, question.master)
    findings: list[Finding] = []
    parent = ParentState()
    try:
        with closing(Namespace()) as namespace, scratch.namespace() as fd:
            if not found.conf.link_in_container:
                parent = host.parent(found.conf, namespace)
            for finding in _findings(question, found, namespace, fd, parent):
                findings.append(finding)
    except CniError as error:
        findings.append(refused("doctor", error.msg))
    return Report(found.path, parent.parent.name if parent.parent else "", tuple(findings))


def _findings(
    question: Question, found: Configuration, namespace: Namespace, fd: int, parent: ParentState
) -> Iterator[Finding]:
    conf = found.conf
    stores = _stores(question, conf, namespace)
    yield from checks.configuration(found)
    plugins = state.executables(question.bin_dirs, conf, found.types)
    yield from checks.executables(plugins)
    yield checks.agent(state.agent(question.socket), plugins)
    for store in stores:
        yield from checks.store(store)
        yield from checks.pools(conf, store)
    if conf.ipam and conf.ipam.resolv_conf:
        yield checks.resolver(conf.ipam, state.resolver(conf.ipam))
    yield from checks.kernel(conf, host.kernel(fd))
    yield from _host(conf, namespace, parent)
    yield from _lan(question, conf, namespace, fd, parent, stores)
    yield checks.service_proxy(conf, host.service_proxy(namespace))


def _stores(question: Question, conf: NetConf, namespace: Namespace) -> list[Store]:
    """The store of the attachments, and that of the leases if it is another one."""
    of_leases = conf.ipam.data_dir if conf.ipam else conf.data_dir
    directories = dict.fromkeys([question.state_dir] if question.state_dir else [conf.data_dir, of_leases])
    with_leases = question.state_dir or of_leases
    own = [address.ip for _, address in namespace.addresses()]
    return [state.store(each, conf.ipam if each == with_leases else None, own) for each in directories]


def _host(conf: NetConf, namespace: Namespace, parent: ParentState) -> Iterator[Finding]:
    if conf.link_in_container:
        yield ok("parent", "not looked at: it lives in the pod's namespace")
    else:
        yield from checks.parent(conf, parent)
        yield from checks.offload(conf, parent)
        yield from checks.shim(conf, parent)
        yield from _addresses(conf, namespace, parent)
    index, name = (parent.parent.index, parent.parent.name) if parent.parent else (0, "default")
    yield from checks.sysctls(conf, host.sysctls(name))
    for manager in managers.managers(shim_name(index)):
        yield checks.manager(manager)


def _addresses(conf: NetConf, namespace: Namespace, parent: ParentState) -> Iterator[Finding]:
    """Those of the host, which has them only while its parent is as it should be, and the gateways among them."""
    if parent.parent and checks.is_sound(conf, parent):
        reached = host.reached(conf, namespace, parent.parent)
        if wants_shim(conf, parent.parent):
            yield from checks.reached(conf, reached)
        yield from checks.routes(conf, reached)


def _lan(
    question: Question, conf: NetConf, namespace: Namespace, fd: int, parent: ParentState, stores: Sequence[Store]
) -> Iterator[Finding]:
    if parent.parent is None or not checks.can_carry(conf, parent):
        return
    if not question.probe:
        yield ok("lan", "not asked (--no-probe)")
        return
    held = frozenset(ip for store in stores for ip in store.held)
    yield from checks.lan(conf, lan.lan(conf, namespace, parent.parent, fd, held), _vendor())


def _vendor() -> str:
    """Who made this machine, real or virtual."""
    with suppress(OSError), open(VENDOR, encoding="utf-8", errors="replace") as file:
        return file.read().strip()
    return ""
