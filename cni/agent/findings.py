"""What one pass of the reconciliation has to tell: what it mended, what has to wait and why, what it could not mend."""

from __future__ import annotations

from cni.attachment import Key
from cni.frozen import frozen
from cni.sweep import Finding

ON_HOST = "host"


@frozen
class Repair:
    """Something that was put right: where ("host" or an attachment), and how, as `ip` says it."""

    kind: str  # link, address, route, neighbour or nat
    where: str
    how: str

    def __str__(self) -> str:
        return f"{self.where}: {self.how}"


class Findings:
    """What one pass has to tell, and which attachments it is not done with."""

    def __init__(self) -> None:
        self.repairs: list[Repair] = []
        self.cleared: list[Finding] = []
        self.waiting: dict[str, None] = {}  # an ordered set
        self.backed_off: dict[str, float] = {}  # what, and for how many seconds yet
        self.fights: list[str] = []  # what somebody keeps undoing, where that has not been told yet
        self.errors: dict[str, None] = {}
        self.busy = False  # a command is under way somewhere, and may be over in no time
        self.unfinished: set[Key] = set()  # to be looked at again, whatever happens or does not
        self.host_unfinished = False

    def wait(self, key: Key, *reasons: str) -> None:
        """Something of an attachment has to wait for a change of which there will be an event."""
        self.waiting.update(dict.fromkeys(f"{key}: {reason}" for reason in reasons))

    def fail(self, key: Key, error: Exception) -> None:
        """Something of an attachment could not be mended."""
        self.unfinished.add(key)
        self.errors[f"{key}: {error}"] = None
