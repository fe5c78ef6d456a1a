"""What the agent keeps between requests: configurations that were read before, threads that wait for the kernel."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import config
from cni.agent import background, configurations
from cni.agent.background import Background
from cni.agent.configurations import Configurations
from cni.config import NetConf
from cni.errors import CniError, DecodingFailure, InvalidConfig
from cni.protocol import Call, parse_environ
from tests.unit.configurations import DUAL_STACK, FULL, MINIMAL, Place, changed, places

# --- configurations --------------------------------------------------------------------------------------------------


def text_of(conf: object) -> bytes:
    return json.dumps(conf).encode()


def call(command: str = "ADD", args: str = "") -> Call:
    variables = {"CNI_CONTAINERID": "c", "CNI_NETNS": "/run/netns/c", "CNI_IFNAME": "eth0", "CNI_ARGS": args}
    return parse_environ({"CNI_COMMAND": command, **variables})


def parsed(cache: Configurations, conf: object, of: Call | None = None) -> NetConf:
    """What the cache makes of a configuration."""
    text = text_of(conf)
    return cache.parse(text, cache.read(text), of or call())


def parsed_afresh(conf: object, of: Call | None = None) -> NetConf:
    """What the in-process plugin makes of it."""
    of = of or call()
    parse = config.parse_for_delete if of.command == "DEL" else config.parse
    return parse(conf, of.args or {})


def outcome(parse: Callable[[], NetConf]) -> NetConf | tuple[object, ...]:
    """A configuration, or the error in its place."""
    try:
        return parse()
    except CniError as error:
        return type(error), error.code, error.msg, error.details


POD = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={}"
CALLS = [
    call(),
    call("DEL"),
    call("CHECK"),
    call(args=POD.format("web-0", "c")),
    call(args=POD.format("web-1", "d")),
    call("DEL", POD.format("web-1", "d")),
    call(args="IP=10.0.0.17"),
    call(args="IP=10.0.0.18;MAC=02:00:00:00:00:07"),
    call(args=POD.format("web-1", "d") + ";IP=10.0.0.17"),
    call(args="IP=nonsense"),
    call(args="IgnoreUnknown=1;X=Y"),
    call(args=POD.format("\udcff", "e")),
]


# Without what is never kept.
LASTING = {key: value for key, value in FULL.items() if key not in configurations.OF_THE_CALL}


RESULTS: list[object] = [{"cniVersion": "1.0.0"}, {"cniVersion": "1.0.0", "ips": []}, {}, [], None, "", 1]


@pytest.mark.parametrize("conf", [MINIMAL, DUAL_STACK, LASTING, FULL, {**MINIMAL, "mtu": "much"}])
def test_every_call_gets_what_it_would_get_without_a_cache(conf: dict[str, Any]) -> None:
    """In whatever order they come, as each of them leaves something for the next."""
    for first in range(len(CALLS)):
        cache = Configurations()
        for of in CALLS[first:] + CALLS[:first]:
            assert outcome(partial(parsed, cache, conf, of)) == outcome(partial(parsed_afresh, conf, of))


VALUES: list[object] = [None, 0, 1, True, "", "x", [], {}, "10.0.0.0/8", "prevResult"]


@given(st.sampled_from(places(LASTING)[1:]), st.sampled_from(VALUES), st.lists(st.sampled_from(CALLS), max_size=4))
def test_so_does_a_configuration_that_resembles_one_that_was_kept(
    place: Place, value: object, calls: list[Call]
) -> None:
    cache = Configurations()
    parsed(cache, LASTING)
    conf = changed(LASTING, place, value)
    for of in calls:
        assert outcome(partial(parsed, cache, conf, of)) == outcome(partial(parsed_afresh, conf, of))


@pytest.mark.parametrize("of", CALLS)
@pytest.mark.parametrize("also", [{}, {"cni.dev/attachments": []}, {"mtu": "much"}])
def test_each_call_gets_its_own_result(of: Call, also: dict[str, Any]) -> None:
    cache = Configurations()
    for result in RESULTS + RESULTS:
        conf = {**LASTING, **also, "prevResult": result}
        assert outcome(partial(parsed, cache, conf, of)) == outcome(partial(parsed_afresh, conf, of))


def test_what_is_parsed_for_one_result_need_not_be_for_the_next() -> None:
    cache = Configurations()
    first, second = (parsed(cache, {**DUAL_STACK, "prevResult": result}, CALLS[1]) for result in RESULTS[:2])
    assert first.ipam is second.ipam
    assert all("prevResult" not in conf.raw for conf in cache._parsed.values())


def test_the_same_text_is_read_once() -> None:
    cache = Configurations()
    text = text_of(DUAL_STACK)
    assert cache.read(text) is cache.read(bytes(bytearray(text)))
    assert parsed(cache, DUAL_STACK).ipam is parsed(cache, DUAL_STACK, call(args=POD.format("web-0", "c"))).ipam


@pytest.mark.parametrize("key", ["prevResult", "cni.dev/valid-attachments", "cni.dev/attachments"])
def test_what_is_of_one_call_alone_is_not_kept(key: str) -> None:
    cache = Configurations()
    text = text_of({**DUAL_STACK, key: []})
    assert cache.read(text) is not cache.read(text)


def test_what_cannot_be_read_is_not_kept() -> None:
    cache = Configurations()
    for _ in range(2):
        with pytest.raises(DecodingFailure):
            cache.read(b"{")
        with pytest.raises(InvalidConfig, match="mtu"):
            parsed(cache, {**MINIMAL, "mtu": "much"})


def test_no_more_is_kept_than_a_node_needs() -> None:
    cache = Configurations()
    for number in range(3 * configurations.MOST):
        parsed(cache, {**MINIMAL, "name": f"lan{number}"})
        parsed(cache, MINIMAL, call(args=f"IP=10.0.0.{number % 250}"))
        parsed(cache, {**MINIMAL, "name": f"lan{number}", "prevResult": {}})
    for number in range(30):
        long = {**MINIMAL, "name": f"lan{number}", "padding": "x" * (configurations.LONGEST // 2)}
        for conf in (long, {**long, "prevResult": {}}):
            parsed(cache, conf)
            assert bytes_kept(cache) <= configurations.MOST_BYTES
    text = text_of({**MINIMAL, "padding": "x" * configurations.LONGEST})
    assert cache.read(text) is not cache.read(text)
    assert len(cache._raw) <= configurations.MOST
    assert len(cache._parsed) <= configurations.MOST
    assert parsed(cache, {**json.loads(text), "prevResult": {}}).raw["prevResult"] == {}
    assert bytes_kept(cache) <= configurations.MOST_BYTES


def bytes_kept(cache: Configurations) -> int:
    """Of the texts by which a cache knows things."""
    texts: list[Any] = [*cache._raw, *(text for text, *_ in cache._parsed)]
    return sum(map(len, texts))


# --- threads that wait for the kernel --------------------------------------------------------------------------------

SOON = 10.0  # seconds in which something happens even on a busy machine


def eventually(question: Callable[[], bool]) -> bool:
    until = time.monotonic() + SOON
    while not (yes := question()) and time.monotonic() < until:
        time.sleep(0.01)
    return yes


class Pipe:
    """Something to write to, and what was written."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def fill(self) -> Pipe:
        """From now on whoever writes to it waits until it is read."""
        os.set_blocking(self.writer, False)
        with suppress(BlockingIOError):
            while True:
                os.write(self.writer, bytes(4096))
        os.set_blocking(self.writer, True)
        return self

    def written(self, run: Background, data: bytes) -> Pipe:
        """The same with that being written to it in the background; we close our end at once."""
        try:
            run(self.writer, data)
        finally:
            os.close(self.writer)
        return self

    def read(self) -> bytes:
        """Everything until the last writer has closed it, but for what filled it."""
        with open(self.reader, "rb") as file:
            return file.read().lstrip(b"\0")


def answer(run: Background, data: bytes) -> bytes:
    """What comes of writing in the background."""
    return Pipe().written(run, data).read()


def threads() -> int:
    return sum(thread.name == "deletion" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def _on_threads_of_their_own() -> None:
    """Those of the test before have ended."""
    assert eventually(lambda: threads() == 0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads wait for work for a moment only, also those that still have some when the test ends."""
    monkeypatch.setattr(background, "IDLE_SECONDS", 0.05)
    yield
    assert eventually(lambda: threads() == 0)


@pytest.mark.usefixtures("impatient")
def test_what_is_written_arrives_though_the_caller_closes_his_end() -> None:
    run = Background()
    assert [answer(run, data) for data in (b"a", b"bc", b"d" * 1000)] == [b"a", b"bc", b"d" * 1000]


@pytest.mark.usefixtures("impatient")
def test_there_are_as_many_threads_as_waiting_writers_and_none_when_all_are_done() -> None:
    run, before = Background(), descriptors()
    pipes = [Pipe().fill().written(run, b"%d" % number) for number in range(20)]
    assert threads() == 20
    assert [pipe.read() for pipe in pipes] == [b"%d" % number for number in range(20)]
    assert eventually(lambda: threads() == 0)
    assert descriptors() == before
    assert answer(run, b"x") == b"x"


def test_a_thread_that_is_free_takes_the_next_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "IDLE_SECONDS", 1.0)
    run = Background()
    for _ in range(50):
        assert answer(run, b"x") == b"x"
        assert eventually(lambda: run._free._value == 1)  # threads
    assert threads() == 1


@pytest.mark.usefixtures("impatient")
def test_many_callers_at_once_write_what_they_want() -> None:
    run = Background()
    wrong: list[tuple[bytes, bytes]] = []

    def ask(data: bytes) -> None:
        for _ in range(50):
            got = answer(run, data)
            if got != data:
                wrong.append((data, got))

    callers = [threading.Thread(target=ask, args=(b"%d" % number,)) for number in range(16)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


@pytest.mark.usefixtures("impatient")
def test_what_cannot_be_written_does_no_harm() -> None:
    run = Background()
    for _ in range(3):
        pipe = Pipe()
        os.close(pipe.reader)
        pipe.written(run, b"nobody reads it")
    assert answer(run, b"x") == b"x"
    assert eventually(lambda: threads() == 0)


@pytest.mark.usefixtures("impatient")
def test_one_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "MOST", 3)
    run = Background()
    pipes = [Pipe().fill().written(run, b"%d" % number) for number in range(3)]
    spare = Pipe()
    before = descriptors()
    for _ in range(5):
        with pytest.raises(OSError, match="3 deletions are under way"):
            run(spare.writer, b"x")
    assert descriptors() == before
    assert [pipe.read() for pipe in pipes] == [b"0", b"1", b"2"]
    assert eventually(lambda: threads() == 0)
    assert spare.written(run, b"x").read() == b"x"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("shortage", ["descriptors", "threads"])
def test_a_shortage_passes_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, shortage: str) -> None:
    monkeypatch.setattr(background, "MOST", 2)
    run, pipe = Background(), Pipe()
    before = descriptors()
    with monkeypatch.context() as short:
        if shortage == "descriptors":
            short.setattr(os, "dup", no_more(OSError("Too many open files")))
        else:
            short.setattr(threading.Thread, "start", no_more(RuntimeError("can't start new thread")))
        for _ in range(5):
            with pytest.raises(OSError, match=r"open files|start new thread"):
                run(pipe.writer, b"x")
    assert descriptors() == before
    pipes = [each.fill().written(run, b"%d" % number) for number, each in enumerate((pipe, Pipe()))]
    assert [each.read() for each in pipes] == [b"0", b"1"]


def no_more(error: Exception) -> Callable[..., Any]:
    """What a system does that has no more of something."""

    def refuse(*_: object) -> Any:
        raise error

    return refuse


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
