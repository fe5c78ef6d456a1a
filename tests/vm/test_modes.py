"""The table of docs/modes.md on a NIC that forwards in hardware: it is the same, but for what the document says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel import test_mode_table as table
from tests.vm.conftest import Nic, VmLab, wait_until

IN_HARDWARE = [row for row in table.rows() if row.mode in ("`bridge`", "`private`", "`vepa`")]


@pytest.fixture
def lab(nic: Nic, monkeypatch: pytest.MonkeyPatch) -> Iterator[VmLab]:
    """The lab with the NIC, whose feature is on."""
    monkeypatch.setattr(table, "WAIT", 2.0)
    nic.switch("on")
    yield nic.lab
    nic.lab.clear()
    wait_until(nic.is_left_alone)
    nic.switch("off")


@pytest.mark.parametrize("row", IN_HARDWARE, ids=lambda row: f"{row.mode}-shim:{row.shim}-{row.switch}")
def test_with_offload(lab: VmLab, nic: Nic, row: table.Row) -> None:
    found = table.tried(lab, row)
    assert nic.stations == 2
    assert found == row.told
