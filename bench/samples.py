"""Rows of the benchmark's tables: what the measured values come to, and whether that is within the project's limits.

Pure; how values are taken is the business of `bench.process` and its users, how rows look that of `bench.report`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from cni.frozen import frozen

# The contenders.
AGENT, IN_PROCESS, PEER = "client + agent", "in-process", "reference plugins"
# Who else is measured.
DATA_PATH, HARNESS = "macvlan + shim", "processes that do nothing"

Series = Mapping[str, Sequence[float]]  # values of each contender


@frozen
class Limit:
    """What the project allows itself at most and what it would like, as ratios; 0 for none."""

    most: float
    aim: float = 0.0


Limits = Mapping[str, Limit]  # of contenders
NO_LIMIT = Limit(0)


@frozen
class Row:
    """One comparison. `who` was measured, `other` is None when there was nothing to compare with.

    `key` is what `--only` calls it, `against` says what the other is, `unit` is that of both values. `short` is what
    a plot calls it, "" when it is in none.
    """

    who: str
    key: str
    what: str
    ours: float
    other: float | None = None
    against: str = ""
    limit: Limit = NO_LIMIT
    unit: str = "ms"
    short: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times the other it is."""
        if self.other is None:
            return None
        if self.other == 0:
            return math.inf if self.ours else 1.0
        return self.ours / self.other

    @property
    def over(self) -> bool:
        """Whether a limit is missed."""
        return bool(self.limit.most and self.ratio is not None and self.ratio > self.limit.most)

    @property
    def verdict(self) -> str:
        """The limit in a word: "" without any, else how the ratio stands to it."""
        if not self.limit.most or self.ratio is None:
            return ""
        if self.over:
            return "**over**"
        return "ok, aim met" if self.ratio <= self.limit.aim else "ok"


def median_ms(seconds: Sequence[float]) -> float:
    """The median, in milliseconds; raises ValueError when there is nothing."""
    return statistics.median(seconds) * 1000


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed (nearest rank). Raises ValueError."""
    if not values:
        raise ValueError("no values")
    rank = -(-len(values) * percent // 100)  # rounded up
    return sorted(values)[max(0, int(rank) - 1)]


def compared(key: str, what: str, series: Series, limits: Limits | None = None, short: str = "") -> list[Row]:
    """A row for each contender but the reference plugins, against these if they were measured, too.

    The values are medians; `series` are times in seconds.
    """
    medians = {who: median_ms(times) for who, times in series.items()}
    other = medians.get(PEER)
    against = "" if other is None else PEER
    limits = limits or {}
    return [
        Row(who, key, what, ours, other, against, limits.get(who, NO_LIMIT), short=short)
        for who, ours in medians.items()
        if who != PEER
    ]


def missed(rows: Sequence[Row]) -> list[Row]:
    """The rows whose limit is missed."""
    return [row for row in rows if row.over]
