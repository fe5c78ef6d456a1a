"""What the commands on a data directory have in common: the options, and opening what exists without making it."""

from __future__ import annotations

import argparse
import os
import sys

from cni.database import FILE
from cni.errors import IOFailure
from cni.log import Log
from cni.node import Node
from ipam.config import DEFAULT_DATA_DIR


def add_state_dir(parser: argparse.ArgumentParser) -> None:
    """The option `--state-dir`."""
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        default=DEFAULT_DATA_DIR,
        help="dataDir of the configuration (default: %(default)s)",
    )


def add_output(parser: argparse.ArgumentParser) -> None:
    """The option `-o`."""
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text", help="how to print it")


def open_existing(state_dir: str) -> Node | None:
    """The node of a data directory that holds a store, else None: looking must not make one. Raises IOFailure."""
    try:
        os.stat(f"{state_dir}/{FILE}")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise IOFailure(f"cannot read {state_dir}: {error.strerror}; run it as root") from error
    return Node(state_dir, Log(sys.stderr, "warning"))


def nothing_in(state_dir: str) -> str:
    """What to say when there is no store."""
    return f"no state in {state_dir}: no pod was ever attached with this dataDir"
