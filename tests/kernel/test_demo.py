"""The demo, as a user runs it: it holds with the real plugin, and it tells when a plugin does not keep its word."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cni.ctl.runtime import installed_shimlan

pytestmark = pytest.mark.without_agent("the demo is its own runtime")

PROGRAM = """
import argparse, sys
from cni.ctl import demo
parser = argparse.ArgumentParser()
demo.add_arguments(parser)
sys.exit(demo.run(parser.parse_args()))
"""

# shimlan as it would be if it forgot about the shim: the same pods, and silence from the host.
FORGETFUL = """#!{python}
import json, os, subprocess, sys
conf = json.load(sys.stdin)
if os.environ["CNI_COMMAND"] == "ADD":
    conf["shim"] = False
sys.exit(subprocess.run(["{shimlan}"], input=json.dumps(conf), text=True).returncode)
"""


def demo(*args: str, prefix: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-c", PROGRAM, *args],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def told() -> subprocess.CompletedProcess[str]:
    """One run of the demo."""
    return demo()


def test_every_claim_holds(told: subprocess.CompletedProcess[str]) -> None:
    assert told.returncode == 0, told.stdout + told.stderr
    assert "claims, all of them so, in" in told.stdout.splitlines()[-1]
    assert told.stderr == ""


def test_it_shows_what_it_promises(told: subprocess.CompletedProcess[str]) -> None:
    rows = [" ".join(line.split()) for line in told.stdout.splitlines()]
    assert rows.count("pod → host no no") == 1  # without the shim
    assert rows.count("pod → host yes yes") == 1  # with it
    assert rows.count("host → pod yes yes") == 1
    assert "private no yes yes no no" in rows
    assert "vepa, hairpin switch yes yes yes yes yes" in rows
    assert "none came from the shim" in told.stdout


def test_there_is_no_colour_in_a_pipe(told: subprocess.CompletedProcess[str]) -> None:
    assert "\033" not in told.stdout


def test_it_can_be_told_without_ticks_and_arrows() -> None:
    done = demo("--plugin", "/nonexistent/shimlan", PYTHONIOENCODING="ascii")
    assert "Traceback" not in done.stderr
    assert "host ? outside" in done.stdout


def test_it_works_for_root_of_a_user_namespace() -> None:
    done = demo(prefix=("unshare", "--user", "--map-root-user"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_fails_and_says_why_when_the_plugin_forgets_the_shim(tmp_path: Path) -> None:
    shimlan = installed_shimlan()
    assert shimlan
    forgetful = tmp_path / "shimlan"
    forgetful.write_text(FORGETFUL.format(python=sys.executable, shimlan=shimlan))
    forgetful.chmod(0o755)
    (tmp_path / "shimlan-ipam").symlink_to(Path(shimlan).with_name("shimlan-ipam"))
    done = demo("--plugin", str(forgetful))
    assert done.returncode == 1
    assert "claims are not so" in done.stdout
    assert "with the shim: host → pod, IPv4: no, not yes" in done.stdout


def test_a_missing_plugin_is_said_to_be_missing() -> None:
    done = demo("--plugin", "/nonexistent/shimlan")
    assert done.returncode == 1
    assert "/nonexistent/shimlan" in done.stdout


def test_it_says_what_to_do_where_namespaces_are_not_allowed() -> None:
    done = demo(prefix=("unshare", "--user"))  # nobody in particular may not make another one in there
    assert done.returncode == 1
    assert "run it as root, or let users make them" in done.stdout


def test_nothing_remains_when_it_is_killed() -> None:
    def traces() -> list[str]:
        return sorted(os.listdir("/run/netns") + os.listdir("/dev/shm") + os.listdir("/sys/class/net"))

    before = traces()
    running = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    assert running.stdout
    while "shimlan ADD answers" not in running.stdout.readline():
        assert running.poll() is None
    running.kill()
    running.wait()
    running.stdout.close()
    time.sleep(0.5)  # the kernel takes namespaces down in its own time
    assert traces() == before
