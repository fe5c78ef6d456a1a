"""Thousands of configurations and environments that nobody should send: a clear answer always, and nothing left."""

from __future__ import annotations

import gc
import io
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

# Some are loaded here so that they need not be in each child process.
from cni import commands, config, delegate, log, node, plugin, probe, protocol  # noqa: F401
from cni.ctl import sandbox
from cni.ctl.lab import CniAnswer, Lab
from tests.kernel import mutants
from tests.kernel.agents import Serve
from tests.kernel.mutants import Case
from tests.kernel.torture import HANG_SECONDS, forked, glance, inventory, read_only, seeded, size, start


class Range:
    """A shooting range: a lab, files of all kinds for the mutants to point at, and ways to call the plugin."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.pod = lab.netns("pod")
        self.tmp = Path(lab.data_dir)
        self.data = self.tmp / "data"
        self._words = {
            mutants.TMP: str(self.tmp),
            mutants.POD: self.pod.netns,
            mutants.HOST: lab.host.netns,
            mutants.SWITCH: lab.switch.netns,
            **{json.dumps(word): text for word, text in mutants.DEEP.items()},
        }
        self._furnish()
        lab.data_dir = str(self.data)
        self.shoot(mutants.sane("STATUS"))
        self.before, self.seen_before = self.inventory(), self.glance()

    def _furnish(self) -> None:
        (self.tmp / "bin").mkdir()
        for name, script in mutants.DELEGATES.items():
            path = self.tmp / "bin" / name
            path.write_text(f'#!/bin/sh\n[ "$CNI_COMMAND" = DEL ] && exit 0\n{script}\n')
            path.chmod(0o755)
        (self.tmp / "bin" / "not-executable").write_text("#!/bin/sh\n")
        (self.tmp / "file").write_text("nothing\n")
        (self.tmp / "resolv.conf").write_text("nameserver 192.0.2.1\nsearch example.org\n")
        (self.tmp / "link-to-pod").symlink_to(self.pod.netns)
        (self.tmp / "\udcff").symlink_to(self.pod.netns)
        (self.tmp / "broken-link").symlink_to("/nope")
        os.mkfifo(self.tmp / "fifo")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.tmp / "socket"))

    def inventory(self) -> list[str]:
        """What is there, the switch included: some mutants take it for a pod."""
        return inventory(self.lab, self.pod, self.lab.switch)

    def glance(self) -> list[str]:
        """What can be seen of it at once."""
        return [line for place in (self.lab.host, self.pod, self.lab.switch) for line in glance(place)]

    def shoot(self, case: Case) -> CniAnswer:
        """One call in a child process, in-process; raises TimeoutError when it hangs."""
        environ = {name: self._placed(value) for name, value in case["environ"].items()}
        stdin = io.BytesIO(self._placed(case["stdin"]).encode(errors="surrogateescape"))
        with tempfile.TemporaryFile("w+", dir=self.tmp) as out, tempfile.TemporaryFile("w+", dir=self.tmp) as err:
            err.reconfigure(errors="backslashreplace")

            def call() -> None:
                status = plugin.main(environ, stdin, out, err)
                out.flush()
                err.flush()
                os._exit(status)

            status = os.waitstatus_to_exitcode(forked(self.lab.host, call, str(self.tmp)))
            out.seek(0)
            err.seek(0)
            return CniAnswer("shimlan", environ.get("CNI_COMMAND", ""), status, out.read(), err.read())

    def shoot_for_real(self, case: Case) -> CniAnswer:
        """One call of the executable."""
        environ = {name: self._placed(value) for name, value in case["environ"].items()}
        return start(self.lab, environ.pop("CNI_COMMAND", ""), self._placed(case["stdin"]), environ).land(HANG_SECONDS)

    def _placed(self, text: str) -> str:
        for word, place in self._words.items():
            text = text.replace(word, place)
        return text


@pytest.fixture(scope="module")
def shooting_range(serve: Serve) -> Iterator[Range]:
    """A range on which nothing but the lab can be written: the machine's files are mounted read-only meanwhile."""
    with Lab(directory=sandbox.SCRATCH) as lab, read_only(f"{lab.data_dir}/read-only"), serve(lab):
        target = Range(lab)
        protect()
        try:
            yield target
        finally:
            subprocess.run(["mount", "-o", "remount,bind,rw", "/"], check=True)


def protect() -> None:
    """Mount the machine's files read-only, once nobody writes: what the tests before have opened may still be open."""
    gc.collect()  # a store that nobody refers to any more
    command = ["mount", "-o", "remount,bind,ro", "/"]
    until = time.monotonic() + HANG_SECONDS
    while (busy := subprocess.run(command, check=False).returncode) and time.monotonic() < until:
        time.sleep(0.1)
    assert not busy, "\n".join(opened_for_writing("/"))


def opened_for_writing(mount: str) -> Iterator[str]:
    """What processes have opened for writing on a mount of ours, by proc(5)."""
    mounts = map(str.split, Path("/proc/self/mountinfo").read_text().splitlines())
    (number,) = (fields[0] for fields in mounts if fields[4] == mount)
    for info in Path("/proc").glob("[0-9]*/fdinfo/*"):
        with suppress(OSError):
            fields = dict(line.split(":\t") for line in info.read_text().splitlines() if ":\t" in line)
            if fields["mnt_id"] == number and int(fields["flags"], 8) & os.O_ACCMODE:
                descriptor = info.parents[1] / "fd" / info.name
                yield f"{(info.parents[1] / 'comm').read_text().strip()}: {descriptor} -> {os.readlink(descriptor)}"


def refuse_constant(name: str) -> Any:
    """NaN and Infinity are Python's idea, not JSON's."""
    raise ValueError(f"{name} is not JSON")


def judge(case: Case, answer: CniAnswer) -> int:
    """The error code of an answer, 0 for success. Raises AssertionError unless the spec allows the answer."""
    replay = f"{answer.stdout[:2000]}\n{answer.stderr[-2000:]}\n{json.dumps(case)[:20000]}"
    assert "Traceback" not in answer.stdout + answer.stderr, replay
    assert answer.status in (0, 1), replay
    verb = case["environ"].get("CNI_COMMAND", "")
    if answer.status == 0 and verb not in ("ADD", "VERSION"):
        assert answer.stdout == "", replay
        return 0
    try:
        told = json.loads(answer.stdout, parse_constant=refuse_constant)
    except ValueError as error:
        raise AssertionError(f"{error}\n{replay}") from error
    assert told["cniVersion"] in protocol.VERSIONS, replay
    if answer.status == 0:
        check_success(verb, told, replay)
        return 0
    assert told.keys() <= {"cniVersion", "code", "msg", "details"}, replay
    assert isinstance(told["code"], int), replay
    assert told["code"] not in (0, 199), replay
    assert isinstance(told["msg"], str), replay
    assert told["msg"], replay
    assert isinstance(told.get("details", ""), str), replay
    return int(told["code"])


def check_success(verb: str, told: dict[str, Any], replay: str) -> None:
    """A result has the shape of its version, and VERSION tells versions."""
    if verb == "VERSION":
        assert told["supportedVersions"] == list(protocol.VERSIONS), replay
        return
    assert isinstance(told["dns"], dict), replay
    assert any("sandbox" in entry for entry in told["interfaces"]), replay
    for ip in told.get("ips", []):
        assert ("version" in ip) == told["cniVersion"].startswith("0."), replay
        assert ip.get("interface", 0) in range(len(told["interfaces"])), replay


def fire(target: Range, case: Case, for_real: bool = False) -> int:
    """One case from a clean start to a clean end; its code."""
    shoot = target.shoot_for_real if for_real else target.shoot
    verb = case["environ"].get("CNI_COMMAND")
    if verb in ("DEL", "CHECK", "GC"):
        assert target.shoot(mutants.sane("ADD")).status == 0
    try:
        code = judge(case, shoot(case))
    except (TimeoutError, subprocess.TimeoutExpired) as error:
        raise AssertionError(f"{error}: {json.dumps(case)}") from error
    goodbye = {**case, "environ": {**case["environ"], "CNI_COMMAND": "DEL"}}
    regrets = judge(goodbye, target.shoot(goodbye))
    if verb == "ADD" and code == 0:
        assert regrets == 0, json.dumps(case)
    if verb in ("DEL", "CHECK", "GC"):
        assert target.shoot(mutants.sane("DEL")).status == 0
    return code


def check_clean(before: list[str], now: list[str], *cases: Case) -> None:
    """Nothing is left of some cases."""
    more, less = sorted(set(now) - set(before)), sorted(set(before) - set(now))
    assert (more, less) == ([], []), "\n".join(json.dumps(case)[:20000] for case in cases)


@pytest.mark.parametrize("for_real", [False, True], ids=["in-process", "executable"])
def test_mutants_get_a_clear_answer_and_leave_nothing(shooting_range: Range, for_real: bool) -> None:
    chance = seeded("mutants")
    suspects: list[Case] = []
    codes: dict[int, int] = {}
    for _ in range(size(20, 250) if for_real else size(250, 4750)):
        case = mutants.mutant(chance)
        suspects.append(case)
        code = fire(shooting_range, case, for_real)
        codes[code] = codes.get(code, 0) + 1
        check_clean(shooting_range.seen_before, shooting_range.glance(), case)
        if len(suspects) == 20:
            check_clean(shooting_range.before, shooting_range.inventory(), *suspects)
            suspects.clear()
    check_clean(shooting_range.before, shooting_range.inventory(), *suspects)
    print(codes)
    assert codes[0] > sum(codes.values()) / 20, "so few of them pass that little is tried"


@pytest.mark.parametrize(
    ("changes", "variables", "code"),
    [
        ({"ipam": {"type": "nowhere"}}, {}, 105),
        ({"ipam": {"type": "babbling"}}, {}, 6),
        ({"ipam": {"type": "listing"}}, {}, 6),
        ({"ipam": {"type": "infinite"}}, {}, 6),
        ({"ipam": {"type": "huge"}}, {}, 6),
        ({"dns": {"x": float("nan")}}, {}, 6),
        ({"dns": {"x": "@OBJECTS@"}}, {}, 6),
        ({"prevResult": {"interfaces": [{"name": "eth9", "mtu": float("inf")}]}}, {}, 6),
        ({}, {"CNI_NETNS": f"{mutants.TMP}/fifo"}, 106),
        ({}, {"CNI_NETNS": f"{mutants.TMP}/\udcff"}, 4),
        ({}, {"CNI_IFNAME": "\udcff"}, 4),
    ],
)
def test_what_was_found_once(
    shooting_range: Range, changes: dict[str, Any], variables: dict[str, str], code: int
) -> None:
    """Mutants that once got a traceback, no answer at all, one that is not JSON, or left a record for ever."""
    case = mutants.sane("ADD", {**mutants.SANE, **changes}, **variables)
    assert fire(shooting_range, case) == code
    check_clean(shooting_range.before, shooting_range.inventory(), case)


def test_a_log_takes_what_is_no_text(shooting_range: Range) -> None:
    """The names of links need not be UTF-8, and errors tell of them."""
    shooting_range.lab.host.run("ip", "link", "add", os.fsdecode(b"\xff"), "type", "bridge")
    conf = {**mutants.SANE, "logFile": f"{mutants.TMP}/log", "logLevel": "debug", "master": "nope"}
    try:
        assert fire(shooting_range, mutants.sane("ADD", conf)) == 102
    finally:
        shooting_range.lab.host.run("ip", "link", "del", os.fsdecode(b"\xff"))
