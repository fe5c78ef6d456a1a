"""The data directories that an agent looks after: its own, and those of other networks that it has served.

A network may have a `dataDir` of its own, and nobody tells the agent before the first call comes. So it notes them
beside its own store, for the agents after it: the pods of such a network are to be kept though no call comes for weeks.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from cni import database, quickjson

if TYPE_CHECKING:
    from cni.log import Log

FILE = "data-dirs"


class Directories:
    """Which they are; any thread may ask, and add one."""

    def __init__(self, state_dir: str, log: Log) -> None:
        """`state_dir` is the agent's own."""
        self._own = state_dir
        self._log = log
        self._adding = threading.Lock()
        self._all = (state_dir, *others(state_dir))

    def __call__(self) -> tuple[str, ...]:
        """All of them, the agent's own first."""
        return self._all

    def add(self, data_dir: str) -> bool:
        """One more; whether it was not known."""
        with self._adding:
            if data_dir in self._all:
                return False
            self._all = (*self._all, data_dir)
            self._note()
            return True

    def _note(self) -> None:
        """Write them down, with what another agent may have noted meanwhile."""
        path = f"{self._own}/{FILE}"
        noted = dict.fromkeys((*others(self._own), *self._all[1:]))
        try:
            with open(f"{path}.new", "w", encoding="utf-8") as file:
                file.write(quickjson.dumps([*noted]) + "\n")
            os.replace(f"{path}.new", path)
        except OSError as error:
            self._log.warning(
                f"cannot note {self._all[-1]} in {path}: {error.strerror}; after a restart its pods are looked after "
                "only once one of its networks is used"
            )


def others(state_dir: str) -> list[str]:
    """The directories besides an agent's own that agents have noted there, as far as they still hold a store."""
    try:
        with open(f"{state_dir}/{FILE}", "rb") as file:
            noted = quickjson.loads(file.read())
    except (OSError, ValueError, RecursionError):  # there is none, or it is damaged: then calls tell of them anew
        return []
    texts = [each for each in noted if isinstance(each, str)] if isinstance(noted, list) else []
    return [each for each in texts if each != state_dir and os.path.exists(f"{each}/{database.FILE}")]
