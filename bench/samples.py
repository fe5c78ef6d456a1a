"""Rows of the benchmark's table: what the measured times come to, and whether that is within the project's limits.

Pure; how times are taken is the business of `bench.process`, how rows look that of `bench.report`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from cni.frozen import frozen

PEER = "reference plugins"


@frozen
class Row:
    """One comparison. Times are in milliseconds; `other` is None when there was nothing to compare with.

    `key` is what `--only` calls it, `against` says what the other is, `limit` and `aim` are ratios, 0 for none.
    """

    key: str
    what: str
    ours: float
    other: float | None = None
    against: str = ""
    limit: float = 0.0
    aim: float = 0.0

    @property
    def ratio(self) -> float | None:
        """How many times as long as the other it takes."""
        return self.ours / self.other if self.other else None

    @property
    def over(self) -> bool:
        """Whether a limit is missed."""
        return bool(self.limit and self.ratio is not None and self.ratio > self.limit)

    @property
    def verdict(self) -> str:
        """The limit in a word: "" without any, else how the ratio stands to it."""
        if not self.limit or self.ratio is None:
            return ""
        if self.over:
            return "**over**"
        return "ok, aim met" if self.ratio <= self.aim else "ok"


def median_ms(seconds: Sequence[float]) -> float:
    """The median, in milliseconds; raises ValueError when there is nothing."""
    return statistics.median(seconds) * 1000


def percentile_ms(seconds: Sequence[float], percent: float) -> float:
    """The smallest time that at least `percent` of all do not exceed (nearest rank), in milliseconds."""
    if not seconds:
        raise ValueError("no times")
    rank = -(-len(seconds) * percent // 100)  # rounded up
    return sorted(seconds)[max(0, int(rank) - 1)] * 1000


def compared(
    key: str, what: str, ours: Sequence[float], peer: Sequence[float], limit: float = 0, aim: float = 0
) -> Row:
    """The row of two series of times, in seconds; `peer` is empty when there is none."""
    return Row(
        key=key,
        what=what,
        ours=median_ms(ours),
        other=median_ms(peer) if peer else None,
        against=PEER if peer else "",
        limit=limit,
        aim=aim,
    )


def missed(rows: Sequence[Row]) -> list[Row]:
    """The rows whose limit is missed."""
    return [row for row in rows if row.over]
