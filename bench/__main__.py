"""The command line: measure, print the table, write it where asked.

Exit status 0 also when a limit is missed (1 with --check); 2 when something could not run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import experiments, imports, machine, report
from bench.plugin import Plugin, inspect
from bench.process import Failed
from bench.samples import Row, missed
from bench.stage import find_peer, find_plugin, staged, tell
from cni.ctl import sandbox

ROUNDS, QUICK_ROUNDS = 31, 9


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status."""
    options = _options(arguments)
    peer = find_peer()
    try:
        plugin = inspect(options.plugin)
        remarks = _remarks(plugin, peer)
        sandbox.enter()
        with staged(options.plugin, peer, options.rounds, options.quick) as stage:
            if options.imports:
                print(imports.render(imports.profile(stage, plugin)))
                return 0
            rows = experiments.measure(stage, options.only)
    except (OSError, ValueError, Failed, sandbox.NotAllowed, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    _publish(options, rows, machine.describe(plugin, peer), remarks)
    return 1 if options.check and missed(rows) else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench", description="Compare shimlan with the reference plugins.")
    parser.add_argument("--plugin", default=find_plugin(), help="the shimlan to measure (default: the installed one)")
    parser.add_argument("--rounds", type=_positive, help=f"rounds per row (default: {ROUNDS}, quick: {QUICK_ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and no 60,000 leases")
    parser.add_argument("--only", type=_keys, default=experiments.KEYS, metavar="KEY,...", help=f"of {_known()}")
    parser.add_argument("--output", type=Path, help="write the table, as a document, to this file")
    parser.add_argument("--json", type=Path, help="write the rows as JSON to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a limit is missed")
    parser.add_argument("--imports", action="store_true", help="print what an ADD imports, and how long that takes")
    options = parser.parse_args(arguments)
    if not options.plugin:
        parser.error("shimlan is not installed beside this Python: run `pip install .`, or give --plugin")
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _keys(text: str) -> list[str]:
    keys = text.upper().split(",")
    if unknown := sorted(set(keys) - set(experiments.KEYS)):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known are {_known()}")
    return keys


def _known() -> str:
    return ",".join(experiments.KEYS)


def _remarks(plugin: Plugin, peer: str) -> list[str]:
    remarks = []
    if uncompiled := plugin.uncompiled():
        remarks.append(f"not as pip installs: no up-to-date .pyc of {', '.join(sorted(uncompiled))}")
    if not peer:
        remarks.append("the reference plugins are absent, so all comparisons with them are skipped: set CNI_PEER_DIR")
    for remark in remarks:
        tell(f"note: {remark}")
    return remarks


def _publish(options: argparse.Namespace, rows: Sequence[Row], facts: dict[str, str], remarks: Sequence[str]) -> None:
    print(report.render_table(rows))
    print(f"\n{report.conclusion(rows)}")
    if options.output:
        options.output.write_text(report.render_document(rows, facts, remarks, options.rounds))
    if options.json:
        options.json.write_text(json.dumps(report.as_json(rows, facts, remarks, options.rounds), indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
