"""A lease store of one's own, and the clock that it goes by."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipam.store import LeaseStore
from tests.unit.leases import Clock, a_store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> LeaseStore:
    return a_store(tmp_path, clock)
