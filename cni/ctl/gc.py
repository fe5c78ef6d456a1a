"""`shimlanctl gc`: take back what is stale, or with --dry-run say what that is. The rules are those of `cni.sweep`."""

from __future__ import annotations

import argparse
import sys

from cni import rebuild
from cni.ctl.store import add_state_dir, nothing_in, open_existing
from cni.database import CorruptStore
from cni.sweep import Outcome, sweep


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `gc`."""
    parser.add_argument("--dry-run", action="store_true", help="only print what would be done, as commands")
    add_state_dir(parser)


def run(args: argparse.Namespace) -> int:
    """Clear and tell; 1 when something could not be cleared."""
    node = open_existing(args.state_dir)
    if node is None:
        print(nothing_in(args.state_dir))
        return 0
    try:
        outcome = sweep(node, args.dry_run)
    except CorruptStore:
        if args.dry_run:
            raise
        rebuild.recover(args.state_dir, node.log)
        outcome = sweep(node)
    _print(outcome, args.dry_run)
    return 1 if outcome.errors else 0


def _print(outcome: Outcome, dry_run: bool) -> None:
    for finding in outcome.cleared:
        if dry_run:
            print(f"# {finding.what}", *finding.commands, sep="\n")
        else:
            print(f"cleared: {finding.what}")
    for reason in outcome.left:
        print(f"# left alone: {reason}")
    for error in outcome.errors:
        print(f"shimlanctl: {error}", file=sys.stderr)
    if not outcome.cleared and not outcome.errors:
        print("# nothing is stale")
