"""`shimlanctl agent`: the command line of the agent. What it does stands in `cni.agent.main`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from cni.agent import settings
from cni.agent.settings import KEYS, Settings
from cni.values import Unfit

EXAMPLES = """examples:
  shimlanctl agent
  shimlanctl agent --config /etc/shimlan/agent.yaml
  shimlanctl agent --metrics 127.0.0.1:9113 --log-format json

Options win over the file, the file over the defaults.
"""
DEFAULTS = Settings()
OPTIONS = ("socket", "state_dir", "metrics", "log_format", "log_level", "take_over")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `agent`. An option that is not given is None, so that the file can say it."""
    parser.epilog = EXAMPLES

    def option(name: str, key: str, metavar: str, purpose: str, default: object) -> None:
        parser.add_argument(name, type=_converter(KEYS[key]), metavar=metavar, help=f"{purpose} (default: {default})")

    option("--socket", "socket", "PATH", "where the client finds the agent", DEFAULTS.socket)
    option("--state-dir", "stateDir", "DIR", "dataDir of the configuration", DEFAULTS.state_dir)
    parser.add_argument("--config", metavar="FILE", help="settings of the agent, in YAML")
    option("--metrics", "metrics", "ADDR:PORT", "serve metrics and health by HTTP; :PORT is all addresses", "off")
    option("--log-format", "logFormat", "FORMAT", "text or json", DEFAULTS.log_format)
    option("--log-level", "logLevel", "LEVEL", "error, warning, info or debug", DEFAULTS.log_level)
    parser.add_argument(
        "--take-over", action="store_true", help="take the place of an agent that is running on the same socket"
    )


def run(args: argparse.Namespace) -> int:
    """Run the agent in the foreground until it is told to stop."""
    from cni.agent import main  # most of the program: not for --help

    return main.run(settings_of(args))


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that a command line means. Raises what `cni.agent.settings.load` does."""
    return settings.load(args.config, {name: getattr(args, name) for name in OPTIONS})


def _converter(convert: Callable[[object], object]) -> Callable[[str], object]:
    """The converter of a key for argparse, which keeps no other message than this kind of error's."""

    def parse(text: str) -> object:
        try:
            return convert(text)
        except Unfit as unfit:
            raise argparse.ArgumentTypeError(str(unfit)) from None

    return parse
