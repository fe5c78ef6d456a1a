"""Kernel tests run in namespaces of their own, root or not, and say what the network looked like when they fail.

With SHIMLAN_TEST_AGENT=1 an agent serves the host of each lab, and the plugin is the client.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from cni.ctl import sandbox
from cni.ctl.lab import Lab, missing_tools
from tests.client import compile_client
from tests.kernel.agents import Agent, Serve

WITH_AGENT = bool(os.environ.get("SHIMLAN_TEST_AGENT"))
FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session", autouse=True)
def _sandboxed() -> None:
    if missing := missing_tools():
        pytest.skip(f"not installed: {', '.join(missing)}")
    try:
        sandbox.enter()
    except sandbox.NotAllowed as reason:
        pytest.skip(str(reason))


def pytest_configure(config: pytest.Config) -> None:
    """Tell pytest of our markers."""
    config.addinivalue_line("markers", "without_agent(reason): skipped with SHIMLAN_TEST_AGENT=1, for that reason")
    config.addinivalue_line("markers", "undisturbed: has a limit of time, so it runs while no other test does")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what an agent is no part of, or has a part of its own in."""
    if not WITH_AGENT:
        return
    if marker := item.get_closest_marker("without_agent"):
        pytest.skip(f"without an agent only: {marker.args[0]}")
    if "client" in getattr(item, "fixturenames", ()):
        pytest.skip("it starts an agent of its own")


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native client, with shimlan-ipam beside it."""
    path = compile_client(tmp_path_factory.mktemp("client"))
    path.with_name("shimlan-ipam").symlink_to(Path(sys.executable).with_name("shimlan-ipam"))
    return path


@pytest.fixture(scope="session")
def serve(request: pytest.FixtureRequest) -> Serve:
    """What has an agent serve a lab for the time of a block, if all labs shall have one."""
    if not WITH_AGENT:
        return lambda _: nullcontext()
    client = request.getfixturevalue("client")
    return lambda lab: Agent(lab, client)


@pytest.fixture
def lab(request: pytest.FixtureRequest, serve: Serve) -> Iterator[Lab]:
    """A lab of its own for one test."""
    with Lab() as lab, serve(lab):
        yield lab
        if request.node.stash.get(FAILED, False):
            print(lab.dump())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the `lab` fixture know whether its test failed."""
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report
