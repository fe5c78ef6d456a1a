"""The command line: measure, print the tables, write them where asked.

Exit status 0 also when a limit is missed (1 with --check); 2 when something could not run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import experiments, imports, machine, plots, report, resources
from bench.contenders import OURS, Contender, contenders, find_client, find_peer, find_plugin
from bench.plugin import Plugin, inspect
from bench.process import Failed
from bench.samples import AGENT, PEER, Row, missed
from bench.stage import Options, staged, tell
from cni.ctl import sandbox

ROUNDS, QUICK_ROUNDS = 31, 7


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit status."""
    options = _options(arguments)
    try:
        plugin = inspect(options.plugin)
        taking_part = _contenders(options)
        remarks = _remarks(plugin, taking_part, options)
        facts = machine.describe(plugin, options.client, options.peer)
        sandbox.enter()
        with staged(options.plugin, taking_part, Options(options.rounds, options.quick, options.soak)) as stage:
            if options.imports:
                print(imports.render(imports.profile(stage, plugin)))
                return 0
            rows = experiments.measure(stage, options.only)
    except (OSError, ValueError, Failed, sandbox.NotAllowed, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    _publish(options, rows, facts, remarks)
    return 1 if options.check and missed(rows) else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench", description="Compare shimlan with the reference plugins.")
    parser.add_argument("--plugin", default=find_plugin(), help="the in-process shimlan (default: the installed one)")
    parser.add_argument("--client", default=find_client(), help="the native client (default: what `make client` built)")
    parser.add_argument("--agent", help="command that starts the agent (default: `shimlanctl agent` beside the plugin)")
    parser.add_argument("--contender", choices=(*OURS, "both"), default="both", help="which shimlan (default: both)")
    parser.add_argument("--rounds", type=_positive, help=f"rounds per row (default: {ROUNDS}, quick: {QUICK_ROUNDS})")
    parser.add_argument("--soak", type=_positive, metavar="PAIRS", help="ADD/DEL pairs for the agent's memory")
    parser.add_argument("--quick", action="store_true", help="less of everything: about a minute")
    parser.add_argument("--only", type=_keys, default=experiments.KEYS, metavar="KEY,...", help=f"of {_known()}")
    parser.add_argument("--output", type=Path, help="write the tables, as a document, to this file")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write plots there (default: plots beside --output)")
    parser.add_argument("--json", type=Path, help="write the rows as JSON to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a limit is missed")
    parser.add_argument("--imports", action="store_true", help="print what an ADD imports, and how long that takes")
    options = parser.parse_args(arguments)
    _complete(options, parser)
    return options


def _complete(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Put in what the command line leaves open."""
    if not options.plugin:
        parser.error("shimlan is not installed beside this Python: run `pip install .`, or give --plugin")
    if not options.client and options.contender == "agent":
        parser.error("there is no native client: run `make client`, or give --client")
    options.peer = find_peer()
    options.agent = options.agent or f"{os.path.dirname(options.plugin)}/shimlanctl agent"
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    options.soak = options.soak or (resources.QUICK_SOAK if options.quick else resources.FULL_SOAK)
    if options.output:
        options.plots = options.plots or options.output.parent / "plots"
    if options.plots and not plots.available():
        parser.error("plots need matplotlib: run `pip install '.[bench]'`")


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


def _contenders(options: argparse.Namespace) -> list[Contender]:
    unwanted = {name for word, name in OURS.items() if options.contender not in (word, "both")}
    available = contenders(options.plugin, options.client, options.agent, options.peer)
    return [each for each in available if each.name not in unwanted]


def _remarks(plugin: Plugin, taking_part: Sequence[Contender], options: argparse.Namespace) -> list[str]:
    present = {each.name for each in taking_part}
    remarks = [f"{options.rounds} rounds for what is quick, fewer for bursts, dual stack, the data path and CPU time"]
    if uncompiled := plugin.uncompiled():
        remarks.append(f"not as pip installs: no up-to-date .pyc of {', '.join(sorted(uncompiled))}")
    if PEER not in present:
        remarks.append("the reference plugins are absent, so all comparisons with them are skipped: set CNI_PEER_DIR")
    if AGENT not in present and options.contender == "both":
        remarks.append("the native client is absent, so the agent is not measured: run `make client`")
    for remark in remarks[1:]:
        tell(f"note: {remark}")
    return remarks


def _publish(options: argparse.Namespace, rows: Sequence[Row], facts: dict[str, str], remarks: Sequence[str]) -> None:
    print(report.render_tables(rows))
    print(f"\n{report.conclusion(rows)}")
    drawn = plots.draw(rows, options.plots) if options.plots else {}
    if options.output:
        beside = {title: os.path.relpath(path, options.output.parent) for title, path in drawn.items()}
        options.output.write_text(report.render_document(rows, facts, remarks, beside))
    if options.json:
        options.json.write_text(json.dumps(report.as_json(rows, facts, remarks), indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
