"""What the documents say is so: examples are valid, files, tests, keys, codes and modules are those that exist."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

import cni.config
from cni import errors
from cni.attachment import Facts, InterfaceAddress, Key, Parent, View, plan
from cni.ctl.main import COMMANDS
from cni.ctl.validate import validate
from cni.diff import diff
from cni.protocol import IpConfig, Result, RouteConfig

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").iterdir())
MODULES = sorted(path.relative_to(ROOT).as_posix() for top in ("cni", "ipam") for path in (ROOT / top).rglob("*.py"))
LAYERS = ("words", "core", "doors", "stories", "executables", "agent", "operator")
SOURCE = re.compile(r"`((?:cni|ipam|tests|docs|examples|bench|bin)/[\w./-]+)(?:::([\w.:]+))?`")
LINK = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


# --- examples ----------------------------------------------------------------------------------------------------


def configurations() -> Iterator[tuple[str, str]]:
    """Every example with its name: the files, and the JSON in documents."""
    yield from ((name_of(path), path.read_text()) for path in EXAMPLES)
    for document in DOCUMENTS:
        for number, block in enumerate(re.findall(r"^```json\n(.*?)^```", document.read_text(), re.M | re.S)):
            yield f"{name_of(document)} [{number}]", block


@pytest.mark.parametrize(("name", "text"), [pytest.param(name, text, id=name) for name, text in configurations()])
def test_examples_are_valid(name: str, text: str) -> None:
    report = validate(text, name)
    assert (report.problems, report.warnings) == ((), ())


@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_a_plugin_takes_the_example(path: Path) -> None:
    conflist = json.loads(path.read_text())
    for plugin in conflist["plugins"]:
        if plugin["type"] == "shimlan":
            assert cni.config.parse({**plugin, "name": conflist["name"]}, {}).name == conflist["name"]


@pytest.mark.parametrize("name", ["containerd", "podman"])
def test_the_readme_shows_the_file(name: str) -> None:
    assert (ROOT / f"examples/{name}.conflist").read_text() in (ROOT / "README.md").read_text()


# --- names of things ---------------------------------------------------------------------------------------------


@each_document
def test_links_lead_somewhere(document: Path) -> None:
    for target, _ in LINK.findall(document.read_text()):
        assert (document.parent / target).exists(), target


@each_document
def test_files_and_tests_exist(document: Path) -> None:
    for path, test in SOURCE.findall(document.read_text()):
        assert (ROOT / path).exists(), path
        if test:
            assert test in defined_in(path), f"{path}::{test}"


@cache
def defined_in(path: str) -> set[str]:
    """The tests of a file, by the names that pytest has for them."""
    tree = ast.parse((ROOT / path).read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    methods = {f"{node.name}::{name}" for node in classes for name in functions(node.body)}
    return functions(tree.body) | methods | {node.name for node in classes}


def functions(body: list[ast.stmt]) -> set[str]:
    return {node.name for node in body if isinstance(node, ast.FunctionDef)}


def test_every_behaviour_names_its_test() -> None:
    rows = [row for table in tables("docs/behaviour.md") for row in table]
    assert rows
    for row in rows:
        assert any(test for _, test in SOURCE.findall(row[-1])), row[0]


@each_document
def test_no_path_of_a_developers_machine(document: Path) -> None:
    assert not re.search(r"/(work|home|root|Users|tmp|var/tmp)/", document.read_text())


def test_every_decision_has_its_parts() -> None:
    for path in sorted((ROOT / "docs/decisions").iterdir()):
        assert re.findall(r"^\*\*(\w+)\.\*\*", path.read_text(), re.M) == [
            "Context",
            "Choice",
            "Rejected",
            "Consequence",
        ], path.name


# --- tables ------------------------------------------------------------------------------------------------------


def tables(document: str, heading: str = "") -> list[list[list[str]]]:
    """The tables of a document, or of the section below a heading, as rows of cells without their heads."""
    text = (ROOT / document).read_text()
    if heading:
        level, _, _ = heading.partition(" ")
        (text,) = re.findall(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.M | re.S)
    blocks = re.findall(r"^\|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.M)
    return [[[cell.strip() for cell in row.strip("|").split(" | ")] for row in block.splitlines()] for block in blocks]


def test_error_codes_are_those_of_the_code() -> None:
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.CniError)]
    (table,) = tables("README.md", "## Error codes")
    codes = {cls.code for cls in classes if cls is not errors.CniError}
    assert [int(code.strip("| ")) for code, *_ in table] == sorted(codes)


def test_configuration_keys_are_those_of_the_schema() -> None:
    *supported, refused = tables("README.md", "## Configuration")
    documented = [key for table in supported for row in table for key in keys_of(row[0])]
    schema = json.loads((ROOT / "cni/schema.json").read_text())
    ipam_keys = {f"ipam.{key}" for key in keys_in(schema["$defs"]["shimlanIpam"], schema)}
    ours = {key for key in keys_in(schema, schema) if not key.startswith("args.")}
    assert len(documented) == len(set(documented))
    assert {*documented, *(key for row in refused for key in keys_of(row[0]))} == ours | ipam_keys | {
        "cni.dev/attachments",
        "runtimeConfig.ips",
        "runtimeConfig.ipRanges",
    }


def keys_of(cell: str) -> list[str]:
    """The keys that a row is about: "`routes`: `dst`, `gw`" are routes, routes.dst and routes.gw."""
    first, *below = re.findall(r"`([^`]+)`", cell)
    return [first, *(f"{first}.{key}" for key in below)]


def keys_in(section: Any, schema: dict[str, Any]) -> Iterator[str]:
    """The dotted keys below an object of the schema; lists do not show."""
    while "$ref" in section or "items" in section:
        section = schema["$defs"][section["$ref"].rpartition("/")[2]] if "$ref" in section else section["items"]
    for key, value in section.get("properties", {}).items():
        yield key
        if not key.startswith("cni.dev/"):
            yield from (f"{key}.{below}" for below in keys_in(value, schema))


def test_every_command_of_shimlanctl_is_told() -> None:
    (table,) = tables("README.md", "## The operator's command")
    assert {row[0].split()[1].strip("`") for row in table} == set(COMMANDS)


def test_the_recipe_is_that_of_the_plan() -> None:
    """Every command of docs/host-shim.md is what the plan makes of its example, and the other way round."""
    text = (ROOT / "docs/host-shim.md").read_text()
    told = re.findall(r"^    ((?:ip|sysctl) .*?)(?: +#.*)?$", text, re.M)
    assert sorted(told) == sorted(recipe())


def recipe() -> Iterator[str]:
    """What is done on the host and in the pod, as commands."""
    raw = {
        "name": "lan",
        "master": "eth0",
        "shim": {"routes": ["10.96.0.0/12"]},
        "ipam": {"type": "shimlan-ipam", "subnet": "192.168.1.0/24"},
    }
    conf = cni.config.parse(raw, {})
    parent = Parent("eth0", index=2, mac="9a:df:c4:40:d6:fd", mtu=1500)
    own = (InterfaceAddress(ip_address("192.168.1.10"), 24),)
    leased = Result(
        ips=(IpConfig(ip_address("192.168.1.100"), 24, ip_address("192.168.1.1")),),
        routes=(RouteConfig(ip_network("0.0.0.0/0")),),
    )
    key = Key("lan", "container", "eth0")
    attachment = plan(key, conf, Facts(parent, own, own), "02:42:c0:a8:01:64", leased, ("", "", 0))
    return (str(change) for view in (attachment.host, attachment.sandbox) for change in diff(view, View()))


# --- the map -----------------------------------------------------------------------------------------------------


@cache
def layers() -> dict[str, str]:
    """The layer of each module that docs/architecture.md names."""
    found: dict[str, str] = {}
    for layer in LAYERS:
        (table,) = tables("docs/architecture.md", f"### {layer.capitalize()}")
        found |= {row[0].strip("| `"): layer for row in table}
    return found


@cache
def may_import() -> dict[str, set[str]]:
    """The layers that each layer may import."""
    text = (ROOT / "docs/architecture.md").read_text()
    rules = re.findall(r"^### (\w+)\n\nMay import: ([\w, ]+)\.", text, re.M)
    return {layer.lower(): set(allowed.split(", ")) for layer, allowed in rules}


def test_the_map_shows_every_module() -> None:
    assert sorted(layers()) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_what_its_layer_may(module: str) -> None:
    allowed = may_import()[layers()[module]]
    for imported in imports(module):
        assert layers()[imported] in allowed, f"{module} imports {imported}"


def imports(module: str) -> set[str]:
    """The files of ours that a module imports at run time, at once or when needed."""
    return {path for node in running(ast.parse((ROOT / module).read_text())) for path in imported_by(node)}


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from running(node)


def imported_by(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        names += [node.module or ""]
    else:
        return
    for name in names:
        path = f"{name.replace('.', '/')}.py"
        if path in MODULES:
            yield path
