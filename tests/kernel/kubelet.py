"""Pods as kubelet sees to them while plugins fail, and a census of the addresses that they have.

A sandbox whose ADD failed is taken away and another one is made in its place; a DEL is repeated until it succeeds.
"""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from itertools import count
from typing import Any

from cni.ctl.lab import CniAnswer, Lab, Pod
from cni.ctl.runtime import Json, with_result
from cni.errors import NetnsUnusable
from cni.kernel import Namespace

TRY_AGAIN_LATER, INTERNAL = 11, 199  # codes of CNI errors
PAUSE_SECONDS = 0.1  # before a call that failed is repeated; kubelet takes longer
GIVE_UP_SECONDS = 60.0


class Kubelet:
    """Makes and removes pods of one lab; threads may share it. Every failed call is looked at, and kept."""

    def __init__(self, lab: Lab, *, passing: Collection[int] = (TRY_AGAIN_LATER,), **changes: Any) -> None:
        """`passing`: codes of errors that pass by themselves. `changes` are made to the lab's configuration."""
        self._lab = lab
        self._passing = passing
        self._conf = lab.conf(**changes)
        self._numbers = count()
        self.failures: list[CniAnswer] = []
        self.slowest = 0.0  # call, in seconds
        self.sandboxes: set[Pod] = set()  # that have a namespace

    def make(self) -> Pod:
        """A pod, in the first sandbox whose ADD succeeds."""
        until = time.monotonic() + GIVE_UP_SECONDS
        while True:
            assert time.monotonic() < until, "no ADD succeeds"
            pod = self.sandbox(f"pod{next(self._numbers)}")
            answer = self.call("ADD", pod)
            if answer.ok:
                note(pod, answer)
                return pod
            self.remove(pod)

    def sandbox(self, label: str) -> Pod:
        """A namespace that waits for its ADD."""
        pod = self._lab.container(label, self._conf)
        self.sandboxes.add(pod)
        return pod

    def remove(self, pod: Pod) -> None:
        """Remove a pod and its sandbox."""
        self.repeat("DEL", pod)
        self.lose(pod)

    def lose(self, pod: Pod) -> None:
        """Let a sandbox go, whatever is in it."""
        subprocess.run(["ip", "netns", "del", pod.name], check=True)
        self.sandboxes.discard(pod)

    def repeat(self, command: str, pod: Pod, **variables: str) -> None:
        """A verb until it succeeds; it may fail for reasons that pass by themselves."""
        until = time.monotonic() + GIVE_UP_SECONDS
        while not (answer := self.call(command, pod, **variables)).ok:
            assert answer.json["code"] in self._passing, answer.stdout
            assert time.monotonic() < until, f"{command} does not succeed: {answer.stdout}"
            time.sleep(PAUSE_SECONDS)

    def call(self, command: str, pod: Pod, **variables: str) -> CniAnswer:
        """A verb once. Raises AssertionError when it neither succeeds nor says why in the words of the spec."""
        conf = pod.conf if command == "ADD" else with_result(pod.conf, pod.result)
        return self._call(command, conf, {**pod.variables, **variables})

    def ask(self, command: str, **changes: Any) -> CniAnswer:
        """The same with a verb that is about no pod; `changes` are made to the configuration."""
        return self._call(command, {**self._conf, **changes}, {})

    def _call(self, command: str, conf: Json, variables: Mapping[str, str]) -> CniAnswer:
        started = time.monotonic()
        answer = self._lab.runtime().call(command, conf, variables)
        self.slowest = max(self.slowest, time.monotonic() - started)
        if not answer.ok:
            assert_error(answer, conf["cniVersion"])
            self.failures.append(answer)
        return answer

    @contextmanager
    def load(self, workers: int, chance: random.Random) -> Iterator[Load]:
        """Pods that come and go, each on a thread of its own, in the body of a `with` block."""
        load = Load(self)
        with ThreadPoolExecutor(workers) as pool:
            try:
                load.running = [pool.submit(load.come_and_go, random.Random(chance.random())) for _ in range(workers)]
                yield load
            finally:
                load.over.set()
        load.raise_failures()


class Load:
    """Pods that come and go."""

    def __init__(self, kubelet: Kubelet) -> None:
        self._kubelet = kubelet
        self.over = threading.Event()
        self.running: list[Future[None]] = []
        self.rounds = 0

    def come_and_go(self, chance: random.Random) -> None:
        """Make, check and remove one pod after the other; the last one stays."""
        while True:
            pod = self._kubelet.make()
            for _ in range(chance.randrange(3)):
                self._kubelet.repeat("CHECK", pod)
            if self.over.is_set():
                return
            self._kubelet.remove(pod)
            if chance.random() < 0.3:  # containerd asks once more, and does not know the namespace any more
                pod.result = {}
                self._kubelet.repeat("DEL", pod, CNI_NETNS="")
            self.rounds += 1

    def raise_failures(self) -> None:
        """Raise what a thread has ended with."""
        for each in self.running:
            each.result()


def note(pod: Pod, answer: CniAnswer) -> None:
    """Remember the result of an ADD as a runtime does."""
    pod.result = answer.json
    addresses = [ip["address"].partition("/")[0] for ip in pod.result["ips"]]
    pod.address = next((address for address in addresses if ":" not in address), "")
    pod.address6 = next((address for address in addresses if ":" in address), "")


def assert_error(answer: CniAnswer, version: str) -> None:
    """A failed call has said so in the words of the spec: an error object on stdout, and exit status 1."""
    assert answer.status == 1, answer
    error = answer.json
    assert error["cniVersion"] == version, answer
    assert isinstance(error["code"], int), answer
    assert error["code"] not in (0, INTERNAL), answer
    assert error["msg"], answer
    assert "Traceback" not in answer.stderr, answer


# --- the census --------------------------------------------------------------------------------------------------


def addresses(pod: Pod) -> set[str]:
    """The global addresses in a pod's namespace; none when that is gone."""
    # Of a namespace that goes away the file stays for a moment, and is no namespace any more.
    with (
        suppress(FileNotFoundError, NetnsUnusable),
        open(pod.netns) as file,
        closing(Namespace(file.fileno())) as namespace,
    ):
        return {str(address.ip) for _, address in namespace.addresses()}
    return set()


class Census:
    """Looks again and again which addresses the sandboxes have, and notes those that two of them have."""

    def __init__(self, sandboxes: set[Pod]) -> None:
        self._sandboxes = sandboxes
        self.looks = 0
        self.held_twice: list[str] = []

    @contextmanager
    def going_on(self) -> Iterator[Census]:
        """Look as long as the body of a `with` block takes."""
        over = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            looking = pool.submit(self._look_until, over.is_set)
            try:
                yield self
            finally:
                over.set()
        looking.result()

    def _look_until(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            held = {pod: addresses(pod) for pod in self._sandboxes.copy()}
            holders = Counter(address for found in held.values() for address in found)
            for address in (address for address, pods in holders.items() if pods > 1):
                # They were looked at one after the other: who was first may have lost it before the next one got it.
                first, *others = (pod for pod, found in held.items() if address in found)
                if address in addresses(first):
                    self.held_twice.append(f"{address}: {first} and {others}")
            self.looks += 1
            time.sleep(0.01)
