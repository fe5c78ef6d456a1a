"""What the modules may know of each other, and what a call of the executable may load: held by tests, not by habit."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PURE = (
    "cni.attachment",
    "cni.diff",
    "cni.protocol",
    "cni.config",
    "cni.section",
    "cni.values",
    "cni.errors",
    "cni.frozen",
    "cni.inet",
    "ipam.config",
    "ipam.pools",
    "ipam.allocate",
)
PURE_LIBRARY = {"__future__", "bisect", "collections.abc", "contextlib", "ipaddress", "json", "typing"}
# Loaded by our own modules they would cost more than the kernel's whole part of an ADD.
SLOW = {
    "dataclasses",
    "typing",
    "enum",
    "socket",
    "logging",
    "pathlib",
    "subprocess",
    "pyroute2",
    "jsonschema",
    "yaml",
    "asyncio",
    "re",
    "sqlite3",
}
# Loaded only for what happens once in a while: the store is damaged, somebody asks for a clean-up.
RARE = {"cni.rebuild", "cni.survey", "cni.sweep"}
ENTRIES = {"cni.plugin", "ipam.plugin"}


def modules() -> dict[str, ast.Module]:
    """The modules that a call of a plugin may load, parsed; the operator's tools are none of them."""
    files = [*ROOT.glob("cni/*.py"), *ROOT.glob("ipam/*.py")]
    return {f"{file.parent.name}.{file.stem}": ast.parse(file.read_text()) for file in files}


def imports(tree: ast.AST, everywhere: bool = False) -> set[str]:
    """The modules that are imported when this one is, or at any time; not those that only the type checker sees."""
    return {name for node in _run(tree, everywhere) for name in _names(node)}


def _run(tree: ast.AST, everywhere: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for other in node.orelse:
                yield other
                yield from _run(other, everywhere)
            continue
        if isinstance(node, ast.FunctionDef) and not everywhere:
            continue
        yield node
        yield from _run(node, everywhere)


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        inside = [f"{module}.{alias.name}" for alias in node.names] if module in ("cni", "ipam") else []
        return inside or [module]
    return []


@pytest.mark.parametrize("name", PURE)
def test_the_core_is_pure(name: str) -> None:
    allowed = {*PURE, *PURE_LIBRARY, "cni.quickjson"}
    assert imports(modules()[name], everywhere=True) - allowed == set()


def test_nobody_imports_what_is_slow() -> None:
    usual = {name: imports(tree) for name, tree in modules().items() if name not in RARE}
    assert {(name, slow) for name, imported in usual.items() for slow in imported & (SLOW | RARE)} == set()


def test_only_the_entries_know_the_process() -> None:
    for name, tree in modules().items():
        known = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and (node.value.id, node.attr) in {("os", "environ"), ("sys", "stdin"), ("sys", "stdout"), ("sys", "argv")}
        }
        # A delegate is a process that we make: its environment is ours and some variables.
        assert known == set() or name in ENTRIES or (name, known) == ("cni.delegate", {"environ"}), name


def test_one_module_frames_netlink_and_few_open_sockets() -> None:
    users = {name for name, tree in modules().items() if "_socket" in imports(tree, everywhere=True)}
    assert users == {"cni.netlink", "cni.probe"}


@pytest.mark.parametrize("command", ["VERSION", "STATUS", "DEL"])
def test_a_call_loads_only_what_it_needs(command: str, tmp_path: Path) -> None:
    conf = f'{{"cniVersion": "1.1.0", "name": "lan", "type": "shimlan", "master": "nope", "dataDir": "{tmp_path}"}}'
    loaded = loaded_by(command, conf, CNI_CONTAINERID="a", CNI_IFNAME="eth0")
    assert "cni.protocol" in loaded
    assert (
        loaded & {"pyroute2", "jsonschema", "yaml", "typing", "dataclasses", "socket", "subprocess", "logging"} == set()
    )
    assert ("cni.commands" in loaded) == (command != "VERSION")


def loaded_by(command: str, conf: str, **variables: str) -> set[str]:
    """The modules that a call of the executable imports; without `site`, whose .pth files load what they like."""
    done = subprocess.run(
        [sys.executable, "-S", "-X", "importtime", str(ROOT / "bin" / "shimlan")],
        input=conf,
        env={"PATH": os.defpath, "PYTHONPATH": str(ROOT), "CNI_COMMAND": command, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip() for line in lines}
