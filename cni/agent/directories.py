"""The data directories that an agent looks after: its own, and those of other networks that it has served.

Each of them gets to know of the others (`cni.directories`): for the next agent, and for whoever works on one alone.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from cni import directories

if TYPE_CHECKING:
    from cni.log import Log


class Directories:
    """Which they are; any thread may ask, and add one."""

    def __init__(self, state_dir: str, log: Log) -> None:
        """`state_dir` is the agent's own."""
        self._log = log
        self._adding = threading.Lock()
        self._all = (state_dir, *directories.others(state_dir))

    def __call__(self) -> tuple[str, ...]:
        """All of them, the agent's own first."""
        return self._all

    def add(self, data_dir: str) -> bool:
        """One more, which exists; whether it was not known."""
        with self._adding:
            if data_dir in self._all:
                return False
            self._all = (*self._all, data_dir)
            for each in self._all:
                self._note_in(each)
            return True

    def _note_in(self, data_dir: str) -> None:
        try:
            directories.note(data_dir, self._all)
        except OSError as error:
            self._log.warning(f"cannot note in {data_dir} which other data directories there are: {error.strerror}")
