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

    from cni.config import NetConf
    from cni.log import Log
    from cni.node import Node
    from cni.protocol import Call

    T = TypeVar("T")
    Main = Callable[[Mapping[str, str], BinaryIO, TextIO, TextIO], int]
    Serve = Callable[[Call, dict[str, Any], str, TextIO], dict[str, Any] | None]

ABOUT = f"CNI plugin shimlan {__version__}: pods on the LAN by macvlan, reachable from their host"


def main(
    environ: Mapping[str, str],
    stdin: BinaryIO,
    stdout: TextIO,
    stderr: TextIO,
    about: str = ABOUT,
    serve: Serve | None = None,
) -> int:
    """Serve one call; returns the exit status.

    `about` and `serve` are another plugin's that lives in the same frame.
    """
    if not environ.get("CNI_COMMAND"):
        print(f"{about}\nCNI versions: {', '.join(protocol.VERSIONS)}", file=stderr)
        return 0
    perform = serve or _serve
    answer, status = respond(
        environ,
        lambda: _read(stdin),
        lambda call, raw, version: perform(call, raw, version, stderr),
        lambda error: _trace(error, stderr),
    )
    stdout.write(render(answer))
    return status


def respond(
    environ: Mapping[str, str],
    read: Callable[[], dict[str, Any]],
    perform: Callable[[Call, dict[str, Any], str], dict[str, Any] | None],
    trace: Callable[[Exception], None],
) -> tuple[dict[str, Any] | None, int]:
    """The answer to one call, None for nothing to say, and the exit status, 1 with an error (spec, section "Error").

    `read` yields the configuration; `perform` serves any verb but VERSION, given call, configuration and cniVersion;
    `trace` is told of exceptions that must not happen.
    """
    version, status = protocol.NEWEST, 0
    answer: dict[str, Any] | None
    try:
        call = protocol.parse_environ(environ)
        conf = _configuration(read, call)
        if conf.get("cniVersion") in protocol.VERSIONS:
            version = str(conf["cniVersion"])
        if call.command == "VERSION":
            answer = protocol.version_answer(conf)
        else:
            answer = perform(call, conf, protocol.version_of(conf))
    except CniError as error:
        answer, status = protocol.error_answer(error, version), 1
    except Exception as error:  # noqa: BLE001  (the runtime gets an answer whatever happens)
        trace(error)
        answer, status = protocol.error_answer(_bug(error), version), 1
    return answer, status


def render(answer: dict[str, Any] | None) -> str:
    """An answer as it is printed."""
    return "" if answer is None else quickjson.dumps(answer) + "\n"


def _configuration(read: Callable[[], dict[str, Any]], call: Call) -> dict[str, Any]:
    try:
        return read()
    except CniError:
        if call.command == "VERSION":  # some runtimes send nothing, and the answer does not depend on it
            return {}
        raise


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


def _read(stdin: BinaryIO) -> dict[str, Any]:
    try:
        data = stdin.read(protocol.MAX_STDIN + 1)
    except OSError as error:
        raise IOFailure(f"stdin: cannot read the network configuration: {error.strerror}") from error
    return protocol.decode(data)


def _serve(call: Call, raw: dict[str, Any], version: str, stderr: TextIO) -> dict[str, Any] | None:
    # VERSION is asked often, and answered without what follows.
    from cni import config
    from cni.log import Log
    from cni.node import Node

    parse = config.parse_for_delete if call.command == "DEL" else config.parse
    conf = parse(raw, call.args or {})
    context = f"{call.command} {conf.name} {call.container_id[:13]} {call.ifname}".rstrip() + ": "
    node = Node(conf.data_dir, Log(stderr, conf.log_level, conf.log_file, context))
    return perform(node, call, conf, version)


def perform(node: Node, call: Call, conf: NetConf, version: str) -> dict[str, Any] | None:
    """Any verb but VERSION; the result of ADD in the shape of `version`. Raises CniError."""
    from cni import commands

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


def _trace(error: Exception, stderr: TextIO) -> None:
    import traceback  # only for what must not happen

    traceback.print_exception(error, file=stderr)


def _bug(error: Exception) -> CniError:
    return Internal(f"internal error: {type(error).__name__}: {error}; please report it with the log of the runtime")
