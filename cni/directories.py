"""The data directories of one host: which others there are beside one, noted in it by the agent that knows.

A network may have a `dataDir` of its own. Its pods share the host with those of other directories: shims, and the one
nftables table. And the next agent has to know whose pods to keep, although no call may come for weeks.
"""

from __future__ import annotations

import os

from cni import quickjson
from cni.database import FILE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

NOTE = "data-dirs"  # in a data directory: a list in JSON


def others(data_dir: str) -> list[str]:
    """The directories noted in one, as far as they hold a store."""
    return [each for each in _noted(data_dir) if os.path.exists(f"{each}/{FILE}")]


def note(data_dir: str, all_of_them: Iterable[str]) -> None:
    """Note in one directory which others there are, with what is noted there already. Raises OSError."""
    path = f"{data_dir}/{NOTE}"
    known = _noted(data_dir)
    wanted = [*dict.fromkeys((*others(data_dir), *(each for each in all_of_them if each != data_dir)))]
    if wanted != known:
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            file.write(quickjson.dumps(wanted) + "\n")
        os.replace(f"{path}.new", path)


def _noted(data_dir: str) -> list[str]:
    try:
        with open(f"{data_dir}/{NOTE}", "rb") as file:
            noted = quickjson.loads(file.read())
    except (OSError, ValueError, RecursionError):  # there is none, or it is damaged: the agent learns of them anew
        return []
    texts = [each for each in noted if isinstance(each, str)] if isinstance(noted, list) else []
    return [each for each in texts if each != data_dir]
