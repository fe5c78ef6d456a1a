"""IPAM plugins other than ours: found in CNI_PATH and executed as the spec says (section 4, "Plugin Delegation")."""

from __future__ import annotations

import os

from cni import quickjson
from cni.attachment import Delegation
from cni.errors import CniError, DelegateFailed
from cni.protocol import NEWEST, decode, parse_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cni.protocol import Call, Result


# Less than runtimes and the client wait for us; a delegate that asks a DHCP server may need a minute.
TIMEOUT_SECONDS = 90


class DelegateError(CniError):
    """A delegate's own error, passed on with its code, message and details."""

    def __init__(self, code: int, msg: str, details: str) -> None:
        super().__init__(msg, details)
        self.code = code


def delegation(kind: str, conf: dict[str, Any], call: Call) -> Delegation:
    """How to call the delegate `kind` on behalf of a call of ours."""
    args = ";".join(f"{key}={value}" for key, value in (call.args or {}).items())
    return Delegation(kind, quickjson.dumps(conf), call.path, args)


def add(delegate: Delegation, call: Call) -> Result:
    """ADD; raises DelegateFailed, DelegateError or DecodingFailure."""
    return parse_result(_answer(delegate, "ADD", call))


def delete(delegate: Delegation, call: Call) -> None:
    """DEL; raises DelegateFailed or DelegateError."""
    _execute(delegate, "DEL", call)


def check(delegate: Delegation, call: Call) -> None:
    """CHECK; raises DelegateFailed or DelegateError."""
    _execute(delegate, "CHECK", call)


def forward(delegate: Delegation, command: str, call: Call) -> None:
    """STATUS or GC, for delegates that speak a version in which these exist."""
    versions = _answer(delegate, "VERSION", call).get("supportedVersions")
    if isinstance(versions, list) and NEWEST in versions:
        _execute(delegate, command, call)


def require(delegate: Delegation) -> None:
    """Raise DelegateFailed when the delegate is not installed."""
    _find(delegate)


def _answer(delegate: Delegation, command: str, call: Call) -> dict[str, Any]:
    return decode(_execute(delegate, command, call) or "{}", f"the answer of {delegate.type} to {command}")


def _execute(delegate: Delegation, command: str, call: Call) -> str:
    import signal  # here and below: 4 ms, which networks with our own IPAM need not pay
    import subprocess

    program = _find(delegate)
    environ = os.environ | {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": call.container_id,
        "CNI_NETNS": call.netns,
        "CNI_IFNAME": call.ifname,
        "CNI_ARGS": delegate.args,
        "CNI_PATH": delegate.path,
    }
    try:
        process = subprocess.Popen(
            [program],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # so that its children can be ended with it
        )
    except OSError as error:
        raise DelegateFailed(f"ipam.type: cannot execute {program}: {error.strerror}") from error
    with process:
        try:
            output, _ = process.communicate(delegate.conf, TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)
            raise DelegateFailed(f"{delegate.type} {command} was not done in {TIMEOUT_SECONDS} s: killed") from error
    if process.returncode != 0:
        raise _failure(delegate, command, process.returncode, output)
    return output


def _find(delegate: Delegation) -> str:
    directories = [directory for directory in delegate.path.split(os.pathsep) if directory]
    for directory in directories:
        program = os.path.join(directory, delegate.type)
        if os.path.isfile(program) and os.access(program, os.X_OK):
            return program
    where = ", ".join(directories) or "CNI_PATH, which is empty"
    raise DelegateFailed(f"ipam.type: there is no plugin {delegate.type} in {where}: install it or correct the type")


def _failure(delegate: Delegation, command: str, status: int, output: str) -> CniError:
    try:
        answer = decode(output)
        return DelegateError(int(answer["code"]), str(answer["msg"]), str(answer.get("details") or ""))
    except (CniError, ValueError, KeyError, TypeError):
        return DelegateFailed(f"{delegate.type} {command} ended with status {status} and no CNI error", output[:2000])
