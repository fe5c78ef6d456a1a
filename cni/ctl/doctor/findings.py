"""What doctor has to say: findings, how bad they are, and how they are told. Pure."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

OK, WARNING, FAILURE = "ok", "warning", "failure"
LEVELS = (OK, WARNING, FAILURE)  # the exit status of a level is its place here
WIDTH = 120


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `id` never changes its meaning; `remedy` is empty when nothing is to be done."""

    id: str
    level: str
    evidence: str
    remedy: str = ""


def ok(id: str, evidence: str) -> Finding:
    """All is well, or it does not matter."""
    return Finding(id, OK, evidence)


def warning(id: str, evidence: str, remedy: str) -> Finding:
    """Pods can be attached, but something may not be as it is meant."""
    return Finding(id, WARNING, evidence, remedy)


def failure(id: str, evidence: str, remedy: str) -> Finding:
    """Pods cannot be attached, or cannot be reached."""
    return Finding(id, FAILURE, evidence, remedy)


def refused(id: str, sentence: str) -> Finding:
    """A failure in the plugin's own words, "what is wrong: what to do"."""
    evidence, _, remedy = sentence.partition(": ")
    return failure(id, evidence, remedy or "try again, and look into the kernel's log if it stays so")


def exit_status(findings: Iterable[Finding]) -> int:
    """0: all ok, 1: warnings, 2: failures."""
    return max((LEVELS.index(finding.level) for finding in findings), default=0)


def as_json(subject: dict[str, str], findings: Sequence[Finding]) -> dict[str, Any]:
    """The report for programs; `subject` is what was looked at."""
    worst = LEVELS[exit_status(findings)]
    return {**subject, "worst": worst, "findings": [asdict(finding) for finding in findings]}


def as_text(findings: Sequence[Finding]) -> list[str]:
    """The report for people: the worst first, else in the order in which it was looked at, and a line that sums up."""
    worst_first = sorted(findings, key=lambda finding: -LEVELS.index(finding.level))
    width = max((len(finding.id) for finding in findings), default=0)
    return [*(line for finding in worst_first for line in _lines(finding, width)), "", _summary(findings)]


def _lines(finding: Finding, width: int) -> list[str]:
    head = f"{finding.level:<7}  {finding.id:<{width}}  "
    lines = _wrapped(head, finding.evidence)
    return [*lines, *_wrapped(" " * len(head) + "-> ", finding.remedy)] if finding.remedy else lines


def _wrapped(head: str, text: str) -> list[str]:
    indent = " " * len(head)
    return textwrap.wrap(
        text, WIDTH, initial_indent=head, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _summary(findings: Iterable[Finding]) -> str:
    counts = Counter(finding.level for finding in findings)
    parts = (f"{counts[FAILURE]} failure(s)", f"{counts[WARNING]} warning(s)", f"{counts[OK]} ok")
    return f"{LEVELS[max(map(LEVELS.index, counts), default=0)]}: {', '.join(parts)}"
