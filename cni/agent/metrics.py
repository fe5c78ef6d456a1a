"""What the agent tells of itself in numbers: the words in which its parts say what happened.

This is what they are told while nobody asks for metrics: it counts nothing. `cni.agent.exporter` counts, and costs
10 MB and 0.1 s of imports (prometheus_client), which an agent without `metrics` does not spend. docs/agent.md tells
operators what each number means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cni.offload import Use
    from ipam.ledger import RangeUse


@frozen
class Readings:
    """What is looked up when somebody asks, on his thread. Only the last three may raise a CniError."""

    workers: Callable[[], int]  # threads that serve requests, idle ones included
    requests_in_flight: Callable[[], int]
    waiting_connections: Callable[[], int]  # whose request is not whole yet
    repairs_backed_off: Callable[[], int]  # things that are left broken for a while, having been repaired in vain
    attachments: Callable[[], Mapping[str, int]]  # how many are recorded, by network
    pools: Callable[[], Iterable[RangeUse]]
    nics: Callable[[], Iterable[Use]]  # those that can forward in hardware


class Metrics:
    """What happens, as the agent's parts tell it; any thread may. Seconds are of a monotonic clock."""

    def request(self, command: str, network: str, code: int, seconds: float) -> None:
        """A request was answered; `network` is "" where none was understood, `code` 0 for success."""

    def refused(self, reason: str) -> None:
        """A connection was closed without an answer."""

    def reconciled(self, seconds: float, errors: int = 0) -> None:
        """A pass of the reconciliation has ended, and so many things could not be put right."""

    def repaired(self, kind: str) -> None:
        """Something was not as wanted, and was put right; `kind` is one of a few words."""

    def stale_cleared(self) -> None:
        """Something was cleared because its pod was gone: an attachment, a lease, a link."""
