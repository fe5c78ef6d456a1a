"""The executable `shimlan`: the only place with environment, standard streams and exit status.

Reads the call, picks the story, prints the result or the error. Everything that can go wrong ends as a CNI error on
stdout; tracebacks go to the log.
"""

from __future__ import annotations

import os
import sys

from cni import __version__, protocol, quickjson
from cni.errors import CniError, Internal, IOFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, BinaryIO, TextIO, TypeVar

    from cni.log import Log
    from cni.protocol import Call

    T = TypeVar("T")
    Main = Callable[[Mapping[str, str], BinaryIO, TextIO, TextIO], int]
    Serve = Callable[[Call, dict[str, Any], TextIO], dict[str, Any] | None]

ABOUT = f"CNI plugin shimlan {__version__}: pods on the LAN by macvlan, reachable from their host"


def main(
    environ: Mapping[str, str],
    stdin: BinaryIO,
    stdout: TextIO,
    stderr: TextIO,
    about: str = ABOUT,
    serve: Serve | None = None,
) -> int:
    """Serve one call; returns the exit status (spec, section "Error": 1 with an error on stdout).

    `about` and `serve` are another plugin's that lives in the same frame.
    """
    if not environ.get("CNI_COMMAND"):
        print(f"{about}\nCNI versions: {', '.join(protocol.VERSIONS)}", file=stderr)
        return 0
    version = protocol.NEWEST
    try:
        call = protocol.parse_environ(environ)
        conf = _read(stdin, call)
        if conf.get("cniVersion") in protocol.VERSIONS:
            version = str(conf["cniVersion"])
        answer = (serve or _serve)(call, conf, stderr)
    except CniError as error:
        answer, status = protocol.error_answer(error, version), 1
    except Exception as error:  # noqa: BLE001  (the runtime gets an answer whatever happens)
        answer, status = protocol.error_answer(_bug(error, stderr), version), 1
    else:
        status = 0
    if answer is not None:
        stdout.write(quickjson.dumps(answer) + "\n")
    return status


def run(main: Main = main) -> None:
    """The console entry: serve the call of this process and leave without the interpreter's own clean-up (2 ms)."""
    stdin, stdout, stderr = _standard_streams()
    try:
        status = main(os.environ, stdin, stdout, stderr)
        stdout.flush()
        stderr.flush()
    except OSError:  # a full disk or a reader that has gone: the answer reaches nobody, and neither would the reason
        status = 1
    os._exit(status)


def _standard_streams() -> tuple[BinaryIO, TextIO, TextIO]:
    """The standard streams, /dev/null for those that are closed: else the store could become one of them."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    stdin = sys.stdin.buffer if sys.stdin else open(0, "rb")  # noqa: SIM115  (for as long as the process lives)
    return stdin, sys.stdout or open(1, "w"), sys.stderr or open(2, "w")


def _read(stdin: BinaryIO, call: Call) -> dict[str, Any]:
    try:
        data = stdin.read(protocol.MAX_STDIN + 1)
    except OSError as error:
        raise IOFailure(f"stdin: cannot read the network configuration: {error.strerror}") from error
    try:
        return protocol.decode(data)
    except CniError:
        if call.command == "VERSION":  # some runtimes send nothing, and the answer does not depend on it
            return {}
        raise


def _serve(call: Call, raw: dict[str, Any], stderr: TextIO) -> dict[str, Any] | None:
    if call.command == "VERSION":
        return protocol.version_answer(raw)
    version = protocol.version_of(raw)
    # VERSION is asked often, and answered without what follows.
    from cni import commands, config
    from cni.log import Log
    from cni.node import Node

    parse = config.parse_for_delete if call.command == "DEL" else config.parse
    conf = parse(raw, call.args or {})
    context = f"{call.command} {conf.name} {call.container_id[:13]} {call.ifname}".rstrip() + ": "
    node = Node(conf.data_dir, Log(stderr, conf.log_level, conf.log_file, context))
    lease_dir = conf.ipam.data_dir if conf.ipam else conf.data_dir
    if call.command == "ADD":
        result = recovering(lambda: commands.add(node, call, conf), node.log, conf.data_dir, lease_dir)
        return protocol.render_result(result, version)
    stories = {
        "DEL": commands.delete,
        "CHECK": commands.check,
        "STATUS": commands.status,
        "GC": commands.collect,
    }
    recovering(lambda: stories[call.command](node, call, conf), node.log, conf.data_dir, lease_dir)
    return None


def recovering(story: Callable[[], T], log: Log, data_dir: str, lease_dir: str) -> T:
    """A story, told again if a store turned out to be damaged, once that has been rebuilt."""
    from cni.database import CorruptStore

    try:
        return story()
    except CniError as error:
        if not (isinstance(error, CorruptStore) or isinstance(error.__cause__, CorruptStore)):
            raise
        from cni import rebuild  # only for what hardly ever happens

        rebuild.recover(data_dir, log, lease_dir=lease_dir)
        if lease_dir != data_dir:
            rebuild.recover(lease_dir, log, attachments=False)
    return story()


def _bug(error: Exception, stderr: TextIO) -> CniError:
    import traceback  # only for what must not happen

    traceback.print_exception(error, file=stderr)
    return Internal(f"internal error: {type(error).__name__}: {error}; please report it with the log of the runtime")
