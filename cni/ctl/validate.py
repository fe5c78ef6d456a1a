"""`shimlanctl validate`: every problem of a network configuration file, with its path and its line.

This is the command: reading, finding lines, printing. What is wrong with a configuration is told by `cni.ctl.netfile`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from cni.ctl.netfile import problems, warnings
from cni.ctl.positions import Positions, locate
from cni.section import Problem, path_text

if TYPE_CHECKING:
    import argparse

OK, PROBLEMS, UNREADABLE = 0, 1, 2


@dataclass(frozen=True)
class Finding:
    """A problem, or a warning, with its place in the file."""

    line: int
    path: str
    message: str
    column: int | None = None


@dataclass(frozen=True)
class Report:
    """All that is to be said about a file."""

    file: str
    problems: tuple[Finding, ...] = ()
    warnings: tuple[Finding, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `validate`."""
    parser.add_argument("file", help='a conf or conflist; "-" is standard input')
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text", help="how to print the findings")


def run(args: argparse.Namespace) -> int:
    """Print the report of a file; 0: no problems, 1: problems, 2: the file cannot be read."""
    try:
        text = _read(args.file)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        print(f"{args.file}: {reason}", file=sys.stderr)
        return UNREADABLE
    report = validate(text, "stdin" if args.file == "-" else args.file)
    print(_as_json(report) if args.output == "json" else _as_text(report))
    return PROBLEMS if report.problems else OK


def _read(path: str) -> str:
    if path == "-":
        return sys.stdin.buffer.read().decode()
    with open(path, encoding="utf-8") as file:
        return file.read()


def validate(text: str, file: str) -> Report:
    """The report on the text of a conf or conflist; `file` is its name in the report."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        return Report(file, (Finding(error.lineno, "", f"not JSON: {error.msg}", error.colno),))
    except (ValueError, RecursionError) as error:
        return Report(file, (Finding(1, "", f"cannot be decoded: {error}"),))
    positions = locate(text)
    odd = [Finding(line, path_text(path), message) for path, line, message in positions.oddities]
    found = sorted([*odd, *_findings(problems(document), positions)], key=lambda finding: finding.line)
    return Report(file, tuple(found), tuple(_findings(warnings(document), positions)))


def _findings(found: Iterable[Problem], positions: Positions) -> list[Finding]:
    unique = {str(problem): problem for problem in found}
    return [Finding(positions.line(p.path), path_text(p.path), p.text) for p in unique.values()]


def _as_text(report: Report) -> str:
    lines = [_line(report.file, warning, "warning: ") for warning in report.warnings]
    lines += [_line(report.file, problem, "") for problem in report.problems]
    return "\n".join(lines if report.problems else [*lines, f"{report.file}: ok"])


def _line(file: str, finding: Finding, kind: str) -> str:
    place = f"{file}:{finding.line}" if finding.column is None else f"{file}:{finding.line}:{finding.column}"
    return f"{place}: {kind}{finding.path + ': ' if finding.path else ''}{finding.message}"


def _as_json(report: Report) -> str:
    return json.dumps({"ok": not report.problems, **asdict(report)}, indent=2)
