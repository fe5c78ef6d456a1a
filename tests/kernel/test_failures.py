"""ADD and DEL that end halfway, at every request to the kernel: refused, or killed. Nothing remains of them."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni.ctl.lab import Lab, Pod
from cni.ctl.runtime import CniAnswer, Json
from cni.errors import NetnsUnusable
from cni.log import Log
from cni.node import Handed, Node
from tests.kernel.marks import needs_reference_plugins
from tests.kernel.traces import held, network, records, stored

# The plugin, whose n-th conversation with the kernel goes wrong. Of a batch, all but the last message are sent.
SABOTAGED = """
import errno, os, signal, sys
from cni import netlink, plugin

how, number = sys.argv[1], int(sys.argv[2])
conversations = 0

def sabotaged(method):
    def call(self, *arguments):
        global conversations
        conversations += 1
        if conversations < number or (how != "broken" and conversations > number):
            return method(self, *arguments)
        if how == "killed":
            try:
                method(self, *arguments)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        refusal = netlink.NetlinkError(errno.EIO, "sabotaged")
        if method.__name__ == "request" and arguments[0]:
            return [*method(self, arguments[0][:-1]), refusal]
        raise refusal
    return call

for name in ("request", "get", "dump", "batch"):
    setattr(netlink.Socket, name, sabotaged(getattr(netlink.Socket, name)))
plugin.run()
"""

NETWORKS = [
    pytest.param({"dual": True, "shim": {"routes": ["10.96.0.0/16"]}}, id="all of it"),
    pytest.param({"shim": False}, id="no shim"),
    pytest.param({"ipam": {"type": "host-local"}}, id="delegated", marks=needs_reference_plugins),
]
MOST = 60  # conversations of one ADD; more would mean that the sabotage never stops


def call(lab: Lab, pod: Pod, command: str, how: str, number: int) -> CniAnswer:
    """One verb of the sabotaged plugin."""
    environ = {"CNI_COMMAND": command, "CNI_PATH": ":".join(lab.runtime().directories), **pod.variables}
    done = lab.host.run(
        sys.executable, "-c", SABOTAGED, how, str(number), check=False, env=environ, input=json.dumps(pod.conf)
    )
    return CniAnswer("shimlan", command, done.returncode, done.stdout, done.stderr)


def assert_nothing_is_left(lab: Lab, pod: Pod, before: Json) -> None:
    assert network(lab.host) == before
    assert [link["ifname"] for link in pod.links()] == ["lo"]
    assert stored(lab) == []
    assert list(Path(lab.data_dir, "lan").glob("192.0.2.*")) == []  # of host-local


@pytest.mark.parametrize("changes", NETWORKS)
def test_an_add_that_is_refused_anywhere_leaves_nothing(lab: Lab, changes: dict[str, Any]) -> None:
    before, pod = network(lab.host), lab.container("a", lab.conf(**changes))
    for number in range(1, MOST):
        answer = call(lab, pod, "ADD", "refused", number)
        if answer.ok:  # there is no conversation of that number, or one that nothing depends on
            break
        assert answer.json["code"] in (102, 103), answer
        assert "Traceback" not in answer.stderr
        assert_nothing_is_left(lab, pod, before)
    assert number > 5


def delete(lab: Lab, pod: Pod) -> None:
    """DEL of a runtime that never got a result."""
    lab.runtime().call("DEL", pod.conf, pod.variables).or_raise()


def collect(lab: Lab, pod: Pod) -> None:
    """GC of a runtime that knows of no container."""
    lab.cni("GC", {**pod.conf, "cni.dev/valid-attachments": []}).or_raise()


def add_again(lab: Lab, pod: Pod) -> None:
    """A runtime that tries once more, and then ends the container."""
    pod.add()
    pod.check()
    assert len(records(lab)) == 1
    pod.delete()


@pytest.mark.parametrize("changes", NETWORKS)
@pytest.mark.parametrize(
    ("how", "clear"), [("killed", delete), ("killed", collect), ("killed", add_again), ("broken", delete)]
)
def test_an_add_that_ends_anywhere_is_cleared(
    lab: Lab, changes: dict[str, Any], how: str, clear: Callable[[Lab, Pod], None]
) -> None:
    before, pod = network(lab.host), lab.container("a", lab.conf(**changes))
    for number in range(1, MOST):
        done = call(lab, pod, "ADD", how, number).ok
        clear(lab, pod)
        assert_nothing_is_left(lab, pod, before)
        if done:
            break
    assert number > 5


@pytest.mark.parametrize("changes", NETWORKS)
def test_a_del_that_is_killed_anywhere_is_finished_by_the_next(lab: Lab, changes: dict[str, Any]) -> None:
    before, pod = network(lab.host), lab.container("a", lab.conf(**changes))
    for number in range(1, MOST):
        pod.add()
        done = call(lab, pod, "DEL", "killed", number).ok
        delete(lab, pod)
        assert_nothing_is_left(lab, pod, before)
        if done:
            break
    assert number > 1


@pytest.mark.without_agent("no plugin is called")
def test_a_link_is_deleted_without_a_child_process_where_there_can_be_none(lab: Lab) -> None:
    lab.pod("a")
    program = """
import errno, os
from cni.kernel import Namespace

def no_more() -> int:
    raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

os.fork = no_more
host = Namespace()
before = set(os.listdir("/proc/self/fd"))
host.delete_link(host.link("shim2").index)
assert host.link("shim2") is None
assert set(os.listdir("/proc/self/fd")) == before
"""
    lab.host.run(sys.executable, "-c", program)


@pytest.mark.without_agent("no plugin is called")
def test_a_link_is_deleted_though_whoever_was_to_do_it_got_killed(lab: Lab) -> None:
    lab.pod("a")
    program = """
from cni.kernel import Namespace

host = Namespace(background=lambda fd, request: None)
host.delete_link(host.link("shim2").index)
assert host.link("shim2") is None
"""
    lab.host.run(sys.executable, "-c", program)


@pytest.mark.without_agent("no plugin is called")
@pytest.mark.parametrize("background", ["cni.deletion.in_child", "cni.agent.background.Background()"])
def test_why_a_link_cannot_be_deleted_is_told(lab: Lab, background: str) -> None:
    program = f"""
import cni.agent.background
import cni.deletion
from cni.errors import KernelRefused
from cni.kernel import Namespace

host = Namespace(background={background})
try:
    host.delete_link(host.link("lo").index)
except KernelRefused as error:
    print(error.msg)
"""
    told = lab.host.run(sys.executable, "-c", program).stdout
    assert told == "cannot remove the link: Operation not supported\n"


@pytest.mark.without_agent("no plugin is called")
@pytest.mark.parametrize("background", ["cni.deletion.in_child", "cni.agent.background.Background()"])
def test_a_link_that_is_gone_already_is_deleted(lab: Lab, background: str) -> None:
    program = f"""
import cni.agent.background
import cni.deletion
from cni.kernel import Namespace

host = Namespace(background={background})
host.delete_link(1000)
"""
    lab.host.run(sys.executable, "-c", program)


@pytest.mark.without_agent("no plugin is called")
def test_who_has_deleted_a_link_hears_no_more_of_links_and_is_answered_as_before(lab: Lab) -> None:
    lab.pod("a")
    program = """
import socket, struct, time
from cni.kernel import Namespace

NLMSG_ERROR = 2
host = Namespace()
parent = host.link("eth0")
host.delete_link(host.link("shim2").index)
Namespace().delete_link(parent.index)
time.sleep(0.1)
heard = socket.socket(fileno=host._socket.fileno())
answer = heard.recv(1 << 16, socket.MSG_DONTWAIT)
assert struct.unpack_from("=IH", answer)[1] == NLMSG_ERROR  # the one that was not waited for
try:
    print(heard.recv(1 << 16, socket.MSG_DONTWAIT))
except BlockingIOError:
    pass
assert host.link("eth0") is None
assert host.link("lo").name == "lo"
"""
    assert lab.host.run(sys.executable, "-c", program).stdout == ""


@pytest.mark.without_agent("no plugin is called")
def test_a_link_is_deleted_in_the_foreground_while_other_links_change_all_the_time(lab: Lab) -> None:
    lab.pod("a")
    program = """
import errno, os, subprocess
from cni.kernel import Namespace

def nobody(fd: int, request: bytes) -> None:
    raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

changes = "".join(f"link set lo alias {number}\\n" for number in range(20_000))
host = Namespace(background=nobody)
with subprocess.Popen(["ip", "-batch", "-"], stdin=subprocess.PIPE, text=True) as storm:
    os.set_blocking(storm.stdin.fileno(), False)
    storm.stdin.write(changes[:60_000])
    storm.stdin.flush()
    host.delete_link(host.link("shim2").index)
    storm.terminate()
assert host.link("shim2") is None
"""
    lab.host.run(sys.executable, "-c", program)


@pytest.mark.without_agent("the plugin lacks a capability")
def test_a_namespace_that_cannot_be_entered_is_not_taken_for_gone(lab: Lab) -> None:
    pod = lab.pod("a")
    environ = {**pod.variables, "CNI_COMMAND": "DEL", "CNI_PATH": "/nowhere"}
    plugin = (
        "setpriv",
        "--bounding-set=-sys_admin",
        "--inh-caps=-sys_admin",
        str(Path(sys.executable).with_name("shimlan")),
    )
    refused = lab.host.run(*plugin, input=json.dumps(pod.conf), env=environ, check=False)
    assert json.loads(refused.stdout)["code"] == 106
    assert "CAP_SYS_ADMIN" in refused.stdout
    assert [attachment.key.container_id for attachment in records(lab)] == [pod.variables["CNI_CONTAINERID"]]
    assert [str(lease.address) for lease in held(lab)] == [pod.address]
    pod.delete()
    assert (records(lab), held(lab), pod.links()[1:]) == ([], [], [])


@pytest.mark.parametrize("code", [errno.ENFILE, errno.EMFILE, errno.EACCES])
def test_a_namespace_that_a_client_could_not_open_for_want_of_something_is_not_taken_for_gone(
    tmp_path: Path, code: int
) -> None:
    node = Node(str(tmp_path), Log(sys.stderr, "error"))
    serving = node.serving(node.log, node.host, Handed("/run/netns/a", None, code))
    with pytest.raises(NetnsUnusable, match=os.strerror(code)), serving.pod_if_there("/run/netns/a", own_allowed=False):
        pass
    gone = node.serving(node.log, node.host, Handed("/run/netns/a", None, errno.ENOENT))
    with gone.pod_if_there("/run/netns/a", own_allowed=False) as pod:
        assert pod is None
