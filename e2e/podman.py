"""podman with its network back end `cni`: with storage, locks and networks of its own, apart from those of the user."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from e2e.machine import SERVER, execute
from e2e.runtime import Pod, Refused, Runtime

# default_ulimits: podman asks for more than a container without CAP_SYS_RESOURCE may have.
# lock_type: shm locks are shared by all podmans of a machine, whatever their storage.
CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
[engine]
events_logger = "file"
lock_type = "file"
tmp_dir = "{directory}/tmp"
[network]
network_backend = "cni"
network_config_dir = "{conf_dir}"
cni_plugin_dirs = ["{bin_dir}"]
"""


class Podman(Runtime):
    """A podman whose files are all in one directory."""

    def __init__(self, command: Sequence[str], image: str, directory: Path) -> None:
        self.bin_dir, self.conf_dir = directory / "bin", directory / "net.d"
        for each in (self.bin_dir, self.conf_dir, directory / "tmp"):
            each.mkdir()
        conf = directory / "containers.conf"
        conf.write_text(CONFIGURATION.format(directory=directory, conf_dir=self.conf_dir, bin_dir=self.bin_dir))
        places = ("--root", f"{directory}/root", "--runroot", f"{directory}/run", "--storage-driver", "overlay")
        self.command = ["env", f"CONTAINERS_CONF={conf}", *command, *places]
        self._image = image

    def call(self, *words: str) -> str:
        """What a command of podman writes. Raises Refused."""
        done = execute([*self.command, *words])
        if done.status:
            raise Refused(f"podman {' '.join(words)}: {done.complaint}")
        return done.output

    def pull(self) -> None:
        """Have the image of our pods there."""
        self._image = self.call("pull", "--quiet", self._image).split()[-1]

    def start(self, name: str, *, ip: str = "", mac: str = "") -> Pod:
        """A container. Raises Refused; then nothing is left of it."""
        wishes = [*(("--ip", ip) if ip else ()), *(("--mac-address", mac) if mac else ())]
        try:
            self.call("run", "--detach", "--name", name, "--network", "e2e", *wishes, self._image, *SERVER)
        except Refused:
            self.call("rm", "--force", "--ignore", name)
            raise
        return PodmanPod(self, name)

    def sees(self, conflist: dict[str, Any]) -> bool:
        """Whether the network is listed."""
        return conflist["name"] in self.call("network", "ls", "--quiet").split()

    def pods(self) -> list[Pod]:
        """All containers."""
        return [PodmanPod(self, name) for name in self.call("ps", "--all", "--format", "{{.Names}}").split()]

    def unmount(self) -> None:
        """Take back the mount of its storage, which outlives the last container."""
        execute(["umount", str(self.conf_dir.parent / "root/overlay")])


class PodmanPod(Pod):
    """A container."""

    def __init__(self, podman: Podman, name: str) -> None:
        (known,) = json.loads(podman.call("inspect", name))
        network = known["NetworkSettings"]["Networks"]["e2e"]
        found = (network["IPAddress"], network["GlobalIPv6Address"])
        super().__init__(name, [*podman.command, "exec", name], [address for address in found if address])
        self.netns = known["NetworkSettings"]["SandboxKey"]
        self._podman = podman

    def stop(self) -> None:
        """podman stop."""
        self._podman.call("stop", "--ignore", "--time", "0", self.name)

    def remove(self) -> None:
        """podman rm."""
        self._podman.call("rm", "--force", "--ignore", "--time", "0", self.name)
