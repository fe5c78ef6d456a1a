"""Opening files that an administrator has named: whatever stands there, a named pipe say, nobody waits for it."""

from __future__ import annotations

import os


def without_waiting(path: str, flags: int) -> int:
    """An opener for `open`; new files are their owner's alone."""
    return os.open(path, flags | os.O_NONBLOCK, 0o600)
