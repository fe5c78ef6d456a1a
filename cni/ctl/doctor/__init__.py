"""`shimlanctl doctor`: can this host, this parent and this configuration carry pods, and if not, what is to be done?

This is the command. What is looked at, and in which order, is told by `examination`; what it means, by `checks`.
"""

from __future__ import annotations

import argparse
import json
import os

from cni.agent.settings import DEFAULT_SOCKET
from cni.ctl.doctor.configuration import DIRECTORY
from cni.ctl.doctor.findings import as_json, as_text, exit_status
from cni.ctl.runtime import PLUGIN_DIRECTORIES
from cni.ctl.store import add_output

EPILOG = """examples:
  shimlanctl doctor
  shimlanctl doctor --master eth1
  shimlanctl doctor /etc/cni/net.d/10-lan.conflist -o json

Nothing is changed. The LAN is asked by ARP or neighbour solicitation, once from a MAC that is not the NIC's, as a pod
would; --no-probe keeps it quiet. The exit status is 0 if all is ok, 1 with warnings, 2 with failures.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `doctor`."""
    parser.epilog = EPILOG
    parser.add_argument("conf", nargs="?", metavar="CONF", help="a conf or conflist (default: the first in --conf-dir)")
    parser.add_argument(
        "--conf-dir", metavar="DIR", default=DIRECTORY, help="where runtimes look (default: %(default)s)"
    )
    parser.add_argument("--master", metavar="IF", default="", help="the parent, instead of the configuration's")
    parser.add_argument("--state-dir", metavar="DIR", default="", help="instead of the configuration's dataDir")
    socket = os.environ.get("SHIMLAN_SOCKET") or DEFAULT_SOCKET
    parser.add_argument("--socket", metavar="PATH", default=socket, help="of the agent (default: %(default)s)")
    places = ", ".join(PLUGIN_DIRECTORIES)
    parser.add_argument(
        "--bin-dir",
        metavar="DIR",
        action="append",
        help=f"where runtimes look for plugins; may be repeated (default: {places})",
    )
    parser.add_argument("--no-probe", action="store_true", help="send nothing to the LAN")
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Print the report; its worst finding is the exit status."""
    from cni.ctl.doctor.examination import Question, examine  # most of the program: not for --help

    question = Question(
        path=args.conf,
        directory=args.conf_dir,
        master=args.master,
        state_dir=args.state_dir,
        socket=args.socket,
        bin_dirs=args.bin_dir or PLUGIN_DIRECTORIES,
        probe=not args.no_probe,
    )
    report = examine(question)
    if args.output == "json":
        subject = {"configuration": report.configuration, "parent": report.parent}
        print(json.dumps(as_json(subject, report.findings), indent=2))
    else:
        print("\n".join(as_text(report.findings)))
    return exit_status(report.findings)
