"""Kernel tests run in namespaces of their own, root or not, and say what the network looked like when they fail."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from cni.ctl import sandbox
from cni.ctl.lab import Lab, missing_tools

FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session", autouse=True)
def _sandboxed() -> None:
    if missing := missing_tools():
        pytest.skip(f"not installed: {', '.join(missing)}")
    try:
        sandbox.enter()
    except sandbox.NotAllowed as reason:
        pytest.skip(str(reason))


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab of its own for one test."""
    with Lab() as lab:
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
