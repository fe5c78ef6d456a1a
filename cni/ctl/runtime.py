"""Plugins called as a container runtime calls them: environment, JSON on stdin, an answer on stdout.

Knows the protocol (CNI spec 1.1.0, sections 2 to 4) and nothing of the networks that the plugins make. It negotiates no
version and caches no result on disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cni.frozen import frozen

Json = dict[str, Any]

PLUGIN_DIRECTORIES = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")


class CniFailed(Exception):
    """A plugin answered with an error; `code`, `msg` and `details` are those of the spec's error object."""

    def __init__(self, answer: CniAnswer) -> None:
        error = answer.json or {"msg": f"exit status {answer.status} and no error object", "details": answer.stderr}
        self.answer = answer
        self.code = int(error.get("code", 0))
        self.msg = str(error.get("msg", ""))
        self.details = str(error.get("details", ""))
        story = (f"{answer.plugin} {answer.command} (code {self.code})", self.msg, self.details)
        super().__init__(": ".join(part for part in story if part))


@frozen
class CniAnswer:
    """What one call of a plugin gave back; `plugin` is its type, `status` its exit status."""

    plugin: str
    command: str
    status: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        """Whether the plugin reports success."""
        return self.status == 0

    @property
    def json(self) -> Json:
        """The object on stdout; empty when there is none. Raises ValueError when it is no JSON."""
        answer: Json = json.loads(self.stdout) if self.stdout.strip() else {}
        return answer

    def or_raise(self) -> CniAnswer:
        """Itself when it is a success; else raises CniFailed, also for a plugin that did not say why."""
        if not self.ok:
            raise CniFailed(self)
        return self


class Runtime:
    """Calls plugins on one host; `prefix` is put before each call, to enter that host's network namespace.

    `environ` is what the runtime itself has in its environment, besides PATH.
    """

    def __init__(
        self, plugin: str | None = None, prefix: tuple[str, ...] = (), environ: Mapping[str, str] | None = None
    ) -> None:
        self.plugin = plugin or installed_shimlan()
        ours = (str(Path(self.plugin).parent),) if self.plugin else ()
        self.directories = (*ours, *filter(os.path.isdir, PLUGIN_DIRECTORIES))
        self._prefix = prefix
        self._environ = environ or {}

    def executable(self, plugin_type: str) -> str:
        """The path of the plugin of a type. Raises FileNotFoundError when no directory has it."""
        ours = plugin_type == "shimlan"
        found = self.plugin if ours else shutil.which(plugin_type, path=":".join(self.directories))
        if not found:
            advice = "run `pip install .`, or set SHIMLAN_PLUGIN" if ours else f"not in {', '.join(self.directories)}"
            raise FileNotFoundError(f"the CNI plugin {plugin_type} is not installed: {advice}")
        return found

    def call(self, command: str, conf: Json | str, variables: Mapping[str, str], executable: str = "") -> CniAnswer:
        """Run one verb of one plugin. `conf` goes to stdin, as it is when it is text; failures are in the answer."""
        plugin_type = "shimlan" if isinstance(conf, str) else str(conf.get("type", "shimlan"))
        path, directories = os.environ.get("PATH", os.defpath), ":".join(self.directories)
        done = subprocess.run(
            [*self._prefix, executable or self.executable(plugin_type)],
            input=conf if isinstance(conf, str) else json.dumps(conf),
            env={"PATH": path, **self._environ, "CNI_PATH": directories, "CNI_COMMAND": command, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        return CniAnswer(plugin_type, command, done.returncode, done.stdout, done.stderr)

    def add(self, conf: Json, variables: Mapping[str, str]) -> Json:
        """ADD of every plugin of a conf or conflist in turn; the last one's result. Raises CniFailed."""
        result: Json = {}
        for plugin in plugins(conf):
            result = self.call("ADD", with_result(plugin, result), variables).or_raise().json
        return result

    def check(self, conf: Json, variables: Mapping[str, str], result: Json) -> None:
        """CHECK of every plugin in turn. Raises CniFailed with the first difference."""
        for plugin in plugins(conf):
            self.call("CHECK", with_result(plugin, result), variables).or_raise()

    def delete(self, conf: Json, variables: Mapping[str, str], result: Json) -> None:
        """DEL of every plugin, the last one first. Raises CniFailed."""
        for plugin in reversed(list(plugins(conf))):
            self.call("DEL", with_result(plugin, result), variables).or_raise()


def installed_shimlan() -> str | None:
    """The executable to try: $SHIMLAN_PLUGIN, else the one installed beside this Python, else the one in PATH."""
    beside = shutil.which("shimlan", path=str(Path(sys.executable).parent))
    return os.environ.get("SHIMLAN_PLUGIN") or beside or shutil.which("shimlan")


def plugins(conf: Json) -> Iterator[Json]:
    """The configurations that a runtime makes of a conf or conflist, one for each plugin (CNI spec, section 3)."""
    inherited = {key: conf[key] for key in ("cniVersion", "name") if key in conf}
    for plugin in conf.get("plugins", [conf]):
        yield {**plugin, **inherited}


def with_result(conf: Json, result: Json) -> Json:
    """A configuration with the result of the plugin before it, or of the ADD long ago."""
    return {**conf, "prevResult": result} if result else conf
