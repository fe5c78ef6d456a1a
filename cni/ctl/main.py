"""`shimlanctl`, the operator's CLI: finds the command, runs it, and turns what may go wrong into one line.

The commands are modules with `add_arguments(parser)` and `run(args) -> exit status`; only the chosen one is loaded.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from cni import __version__
from cni.errors import CniError

COMMANDS = {
    "agent": "serve the client, and keep the host as it is wanted",
    "demo": "show what shimlan does, on a LAN made of namespaces",
    "status": "attachments, shims and pools, and what is wrong with them",
    "doctor": "whether this host can carry pods on this network, and if not, what to do",
    "pool": "usage of the pools, leases, releasing one",
    "validate": "check a conf or conflist",
    "gc": "clear what is stale; a look before is --dry-run",
    "install": "put the plugin and its network into a runtime's directories",
    "uninstall": "take them away, when no pod needs them any more",
}
EXAMPLES = """examples:
  shimlanctl demo
  shimlanctl validate /etc/cni/net.d/10-lan.conflist
  shimlanctl doctor
  shimlanctl status
  shimlanctl gc --dry-run
  shimlanctl pool leases --network lan -o json

`shimlanctl COMMAND --help` says more.
"""

FAILED, INTERRUPTED = 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status, 1 for what failed, 2 for wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads us has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (CniError, OSError, ImportError) as error:
        print(f"shimlanctl: {_one_line(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def _run(arguments: Sequence[str]) -> int:
    chosen = next((argument for argument in arguments if not argument.startswith("-")), "")
    parser = argparse.ArgumentParser(
        prog="shimlanctl",
        description="Look after the CNI plugin shimlan: pods on the LAN by macvlan, reachable from their host.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"shimlanctl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, purpose in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=purpose,
            description=f"{purpose[0].upper()}{purpose[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == chosen:
            module = import_module(f"cni.ctl.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    args = parser.parse_args(arguments)
    status: int = args.run(args)
    return status


def _one_line(error: CniError | OSError | ImportError) -> str:
    from cni.database import CorruptStore  # only here: demo and validate have no store

    text = " ".join(str(error).split())
    if isinstance(error, CorruptStore):
        return f"{text}: the next ADD, or `shimlanctl gc`, puts it aside and rebuilds it from the kernel's state"
    return text
