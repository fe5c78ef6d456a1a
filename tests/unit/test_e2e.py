"""What can be said of the end-to-end tests without a runtime: documents, scripts and workflows are of one mind."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from itertools import chain
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPTS = ("e2e/run", "e2e/kind")


def variables(text: str) -> set[str]:
    return set(re.findall(r"SHIMLAN_E2E_\w+|CONTAINER_RUNTIME_ENDPOINT|KUBECONFIG", text))


def test_each_variable_is_documented_and_each_documented_one_is_used() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "e2e").glob("*.py"))
    assert variables((ROOT / "docs/testing.md").read_text()) == variables(sources)


@pytest.mark.parametrize("path", [".github/workflows/ci.yml", *SCRIPTS])
def test_only_variables_are_set_that_the_tests_read(path: str) -> None:
    assert variables((ROOT / path).read_text()) <= variables((ROOT / "docs/testing.md").read_text())


@pytest.mark.parametrize("path", SCRIPTS)
def test_shellcheck_has_nothing_to_say(path: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    subprocess.run(["shellcheck", ROOT / path], check=True)


def test_what_kind_makes_is_taken_down_again() -> None:
    done = subprocess.run([ROOT / "e2e/kind", "--dry-run"], capture_output=True, check=True, text=True)
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    cluster = yaml.safe_load((ROOT / "e2e/kind.yaml").read_text())
    plugged = [words[-1] for words in commands if words[:3] == ["docker", "network", "connect"]]
    assert len(plugged) == len(cluster["nodes"])
    assert all(node.startswith(cluster["name"]) for node in plugged)
    assert [words[:3] for words in commands[-4:-1]] == [
        ["kind", "delete", "cluster"],
        ["docker", "rm", "--force"],
        ["docker", "network", "rm"],
    ]


def test_the_workflow_calls_targets_that_exist() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    steps = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    matrices = [job.get("strategy", {}).get("matrix", {}).get("target", []) for job in jobs.values()]
    called = {*re.findall(r"\bmake ([a-z0-9-]+)", "\n".join(steps)), *chain.from_iterable(matrices)}
    assert {"lint", "unit", "kernel", "e2e-runtimes", "e2e-kind"} <= called
    assert called <= set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
