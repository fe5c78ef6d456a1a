"""What is wrong with a conf or conflist, told without a host: the judgement behind `shimlanctl validate`.

It reads a file's content as libcni does and asks the parsers that the plugins themselves use, and the published JSON
Schema, which has a say where the parsers are silent.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import jsonschema

import cni.config
import ipam.config
from cni.errors import InvalidConfig
from cni.protocol import VERSIONS
from cni.section import Problem, Section
from cni.values import file_name, network_name, one_of, show

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

    from cni.section import Path

PLUGIN = "shimlan"
SCHEMA_FILE = os.path.join(os.path.dirname(cni.config.__file__), "schema.json")
# What shimlan-ipam looks at when it serves another main plugin.
IPAM_KEYS = ("name", "ipam", "args", "runtimeConfig")
INHERITED = ("name", "cniVersion")
# containerd 1.6 and podman 4.3 accept results up to this version.
WIDELY_ACCEPTED = "1.0.0"


def problems(document: object) -> list[Problem]:
    """Everything that a runtime or a plugin of ours would refuse in a decoded conf or conflist."""
    if not isinstance(document, dict):
        return [Problem((), f"must be an object, not {show(document)}")]
    if "plugins" not in document:
        return [*_version_problems(document), *_plugin_problems(document)]
    found = [*_version_problems(document), *_list_problems(document)]
    for index, plugin in _plugins(document):
        found += [_in_list(index, problem) for problem in _plugin_problems(_as_executed(plugin, document))]
    return found


def _in_list(index: int, problem: Problem) -> Problem:
    """A plugin's problem, told where the file has the value."""
    inherited = problem.path and problem.path[0] in INHERITED
    return problem if inherited else Problem(("plugins", index, *problem.path), problem.text)


def warnings(document: object) -> list[Problem]:
    """What works, but perhaps not as meant or not everywhere."""
    if not isinstance(document, dict):
        return []
    plugins: list[tuple[Path, dict[str, Any]]] = [(("plugins", i), plugin) for i, plugin in _plugins(document)]
    if "plugins" not in document:
        plugins = [((), document)]
    ours = [(path, plugin) for path, plugin in plugins if plugin.get("type") == PLUGIN or _uses_our_ipam(plugin)]
    found = []
    if document.get("cniVersion") in VERSIONS[VERSIONS.index(WIDELY_ACCEPTED) + 1 :]:
        text = f"containerd 1.6 and podman 4.3 accept {WIDELY_ACCEPTED} at most"
        found.append(Problem(("cniVersion",), text))
    if not ours:
        found.append(Problem((), f"nothing here is of type {PLUGIN} or {ipam.config.TYPE}"))
    for path, plugin in ours:
        found += [Problem((*path, "ipam", key), "has no effect without a subnet beside it") for key in _orphans(plugin)]
    return found


def uses_us(document: object) -> bool:
    """Whether a decoded conf or conflist has a plugin of ours."""
    if not isinstance(document, dict):
        return False
    plugins = [plugin for _, plugin in _plugins(document)] or [document]
    return any(plugin.get("type") == PLUGIN or _uses_our_ipam(plugin) for plugin in plugins)


def data_dirs(document: object) -> Iterator[str]:
    """Where the plugins of type shimlan in a decoded conf or conflist keep records and leases."""
    if not isinstance(document, dict):
        return
    for plugin in [_as_executed(plugin, document) for _, plugin in _plugins(document)] or [document]:
        if plugin.get("type") == PLUGIN:
            with suppress(InvalidConfig):  # nor would a call of the plugin have found one
                conf = cni.config.parse_for_delete(plugin, {})
                yield conf.data_dir
                yield from (conf.ipam.data_dir,) if conf.ipam else ()


def _orphans(plugin: dict[str, Any]) -> list[str]:
    """Keys of ipam's short form that are there without the one that they need."""
    if not _uses_our_ipam(plugin) or plugin["ipam"].get("subnet") is not None:
        return []
    return [key for key in ("rangeStart", "rangeEnd", "gateway") if plugin["ipam"].get(key)]


def _version_problems(document: dict[str, Any]) -> list[Problem]:
    conf = Section(document, (), [])
    conf.required("cniVersion", one_of(*VERSIONS))
    return conf.problems


def _list_problems(document: dict[str, Any]) -> list[Problem]:
    """What is wrong with a conflist itself; its plugins are looked at one by one."""
    chain = Section(document, (), [])
    chain.required("name", network_name)
    plugins = chain.items("plugins", needed=True)
    for index in plugins:
        plugins.section(index)
    return chain.problems


def _plugins(document: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    chain = document.get("plugins")
    items = chain if isinstance(chain, list) else []
    return [(index, plugin) for index, plugin in enumerate(items) if isinstance(plugin, dict)]


def _as_executed(plugin: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """The plugin's configuration as libcni hands it over: with the list's name and version."""
    own = {key: value for key, value in plugin.items() if key not in INHERITED}
    return {**own, **{key: document[key] for key in INHERITED if key in document}}


def _uses_our_ipam(plugin: dict[str, Any]) -> bool:
    section = plugin.get("ipam")
    return isinstance(section, dict) and section.get("type") == ipam.config.TYPE


def _plugin_problems(plugin: dict[str, Any]) -> list[Problem]:
    if plugin.get("type") == PLUGIN:
        return _with_schema(plugin, cni.config.check(plugin), _validator())
    conf = Section(plugin, (), [])
    conf.required("type", file_name)
    if not _uses_our_ipam(plugin):
        return conf.problems
    return [*conf.problems, *_with_schema(plugin, ipam.config.check(plugin), _ipam_validator())]


def _with_schema(plugin: dict[str, Any], found: list[Problem], validator: Validator) -> list[Problem]:
    by_both = merged(found, _schema_problems(plugin, validator))
    return [problem for problem in by_both if not _comes_with_runtime(problem, plugin)]


def merged(by_parser: list[Problem], by_schema: Iterable[Problem]) -> list[Problem]:
    """The parser's problems, and the schema's about values in which the parser sees nothing wrong."""
    told = {problem.path[:length] for problem in by_parser for length in range(len(problem.path) + 1)}
    return [*by_parser, *(problem for problem in by_schema if problem.path not in told)]


def _comes_with_runtime(problem: Problem, plugin: dict[str, Any]) -> bool:
    """Ranges that the file lacks because the runtime is to give them."""
    capabilities = plugin.get("capabilities")
    expected = isinstance(capabilities, dict) and capabilities.get("ipRanges") is True
    return expected and problem == ipam.config.NO_RANGES


def _schema_problems(plugin: dict[str, Any], validator: Validator) -> Iterator[Problem]:
    for error in validator.iter_errors(plugin):
        path = tuple(error.absolute_path)
        if error.validator == "required":
            keys: Any = error.validator_value
            instance: Any = error.instance
            yield from (Problem((*path, key), "missing") for key in keys if key not in instance)
        else:
            yield Problem(path, error.message)


@functools.cache
def _schema() -> dict[str, Any]:
    with open(SCHEMA_FILE, encoding="utf-8") as file:
        schema: dict[str, Any] = json.load(file)
    return schema


def _validator() -> Validator:
    return jsonschema.Draft202012Validator(_schema())


def _ipam_validator() -> Validator:
    keys = {key: value for key, value in _schema()["properties"].items() if key in IPAM_KEYS}
    return jsonschema.Draft202012Validator({**_schema(), "properties": keys})
