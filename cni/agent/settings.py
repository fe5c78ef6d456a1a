"""What the agent goes by: defaults, above them its configuration file (YAML), above that the command line.

Reads and checks, and does nothing about it. The keys look like those of a network's configuration. Here, however, an
unknown key is an error: nobody else reads this file, so it can only be a slip.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cni.config import LOG_LEVEL
from cni.errors import InvalidConfig, IOFailure
from cni.files import without_waiting
from cni.frozen import frozen, replace
from cni.section import Problem, Section
from cni.values import Unfit, absolute_path, address, integer, one_of, show
from ipam.config import DEFAULT_DATA_DIR

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFAULT_SOCKET = "/run/shimlan/agent.sock"
HIGHEST_PORT = 65535


@frozen
class Endpoint:
    """Where to listen: an IP address, or "" for all addresses of both families, and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@frozen
class Settings:
    """The settings of one agent, checked."""

    socket: str = DEFAULT_SOCKET
    state_dir: str = DEFAULT_DATA_DIR
    metrics: Endpoint | None = None  # None: nobody can ask
    log_format: str = "text"
    log_level: str = "info"
    resync_seconds: int = 30  # between two passes of the reconciliation that no event has called for
    grace_seconds: int = 60  # before an attachment whose pod is gone is cleared
    stop_seconds: int = 30  # for requests under way when the agent is told to stop
    max_workers: int = 256  # requests served at the same time
    take_over: bool = False  # the command line's alone


def endpoint(value: object) -> Endpoint:
    """ADDR:PORT, with an IPv6 address in brackets; without an address it means all of this machine."""
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not colon:
        raise Unfit(f"must be ADDR:PORT such as 127.0.0.1:9113, not {show(value)}")
    if not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) <= HIGHEST_PORT):
        raise Unfit(f"{show(value)}: the port must be between 1 and {HIGHEST_PORT}")
    return Endpoint(_host(host), int(port))


def _host(text: str) -> str:
    bracketed = text.startswith("[") and text.endswith("]")
    host = text[1:-1] if bracketed else text
    if bracketed != (":" in host):
        raise Unfit(f"{show(text)}: an IPv6 address, and no other, stands in brackets, as in [::1]:9113")
    return str(address(host)) if host else ""


def log_level(value: object) -> str:
    """A level as `cni.log.LEVELS` has it; "warn" is understood, as it is in a network's configuration."""
    level = LOG_LEVEL(value)
    return "warning" if level == "warn" else level


# The keys of the file. That of the setting `state_dir` is `stateDir`.
KEYS: dict[str, Callable[[object], object]] = {
    "socket": absolute_path,
    "stateDir": absolute_path,
    "metrics": endpoint,
    "logFormat": one_of("text", "json"),
    "logLevel": log_level,
    "resyncSeconds": integer(1, 86400),
    "graceSeconds": integer(1, 86400),
    "stopSeconds": integer(0, 3600),
    "maxWorkers": integer(1, 4096),
}


def load(path: str | None, options: Mapping[str, Any]) -> Settings:
    """The settings in a file, if one is named, with those of `options` that are not None above them.

    Raises InvalidConfig that lists every problem of the file, IOFailure when it cannot be read.
    """
    settings = _from_file(path) if path is not None else Settings()
    return replace(settings, **{name: value for name, value in options.items() if value is not None})


def _from_file(path: str) -> Settings:
    values, repeated = _parse(path, _contents(path))
    file = Section(values, (), [])
    for key in values:
        if key not in KEYS:
            file.problem(key, _unknown(key))
    for key in repeated:
        file.problem(key, "stands here more than once")
    given = {_field(key): file.read(key, convert, None) for key, convert in KEYS.items() if file.has(key)}
    _refuse(path, file.problems)
    return replace(Settings(), **given)


def _contents(path: str) -> bytes:
    try:
        with open(path, "rb", opener=without_waiting) as file:
            return file.read()
    except OSError as error:
        raise IOFailure(f"cannot read the agent's configuration file {path}: {error.strerror}") from error


def _parse(path: str, text: bytes) -> tuple[dict[str, object], list[str]]:
    """The mapping in the file, and the keys that it has more than once, of which YAML would keep the last."""
    import yaml  # 20 ms and 1 MB that an agent without a file does not spend

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: what looks like a date, and is none
        raise InvalidConfig(f"{path} is not YAML: {error}") from error
    if node is None or value is None:
        return {}, []
    if not isinstance(value, dict):
        raise InvalidConfig(f'{path} must hold lines such as "logLevel: info", not {show(_plain(value))}')
    keys = [key.value for key, _ in node.value]
    repeated = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
    return {str(key): _plain(item) for key, item in value.items()}, repeated


def _plain(value: object) -> object:
    """YAML knows more kinds of values than JSON; dates and the like are read as text."""
    return value if value is None or isinstance(value, (str, int, float, list, dict)) else str(value)


def _unknown(key: str) -> str:
    from difflib import get_close_matches  # only for what is about to end the agent

    near = get_close_matches(key, KEYS, n=1)
    return f"there is no such setting; did you mean {near[0]}?" if near else f"must be one of {', '.join(KEYS)}"


def _field(key: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in key)


def _refuse(path: str, problems: list[Problem]) -> None:
    if problems:
        lines = [str(problem) for problem in problems]
        raise InvalidConfig(f"{path}: {'; '.join(lines)}", "\n".join(lines))
