"""The manifests: what Kubernetes says to them, and that they fit each other and the agent."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import cni
from cni.agent.settings import DEFAULT_SOCKET, load
from cni.ctl import install, wares
from cni.ctl.netfile import problems
from cni.kernel import SYSCTLS, SYSCTLS_OF_HOST
from ipam.config import DEFAULT_DATA_DIR

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
KUSTOMIZATIONS = sorted(path.parent for path in MANIFESTS.rglob("kustomization.yaml"))
RELEASES = ("1.25", "1.28", "1.31", "1.34", kubernetes_validate.latest_version())
OF_OTHERS = "NetworkAttachmentDefinition"  # Multus brings its definition

each_kustomization = pytest.mark.parametrize("directory", KUSTOMIZATIONS, ids=lambda path: path.name)


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def read(path: Path) -> dict[str, Any]:
    (document,) = documents(path)
    return document


def resources() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every resource that stands in a file as a whole, by its file and name."""
    for path in sorted(MANIFESTS.rglob("*.yaml")):
        for document in documents(path):
            if "kind" in document and document["kind"] != "Kustomization" and path.name != "conflists.yaml":
                yield f"{path.relative_to(MANIFESTS)}:{document['metadata']['name']}", document


@cache
def daemonset() -> dict[str, Any]:
    return read(MANIFESTS / "base/daemonset.yaml")


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = daemonset()["spec"]["template"]["spec"]
    return spec


def agent() -> dict[str, Any]:
    (container,) = pod()["containers"]
    return dict(container)


def patched(target: Any, patch: Any) -> Any:
    """A strategic merge patch as far as ours go: like RFC 7396, and lists of what has a name are merged by it."""
    if isinstance(patch, list) and all(isinstance(item, dict) and "name" in item for item in patch):
        changes = {item["name"]: item for item in patch}
        return [patched(item, changes.get(item["name"], {})) for item in target]
    if not isinstance(patch, dict):
        return patch
    result = dict(target or {})
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = patched(result.get(key), value)
    return result


def uninstalling() -> dict[str, Any]:
    outcome: dict[str, Any] = patched(daemonset(), read(MANIFESTS / "uninstall.yaml"))
    return outcome


def uninstalling_container() -> dict[str, Any]:
    (container,) = uninstalling()["spec"]["template"]["spec"]["containers"]
    return dict(container)


# --- what Kubernetes says ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    "resource",
    [
        *(pytest.param(document, id=name) for name, document in resources() if document["kind"] != OF_OTHERS),
        pytest.param(uninstalling(), id="uninstall.yaml"),
    ],
)
def test_kubernetes_knows_every_field(resource: dict[str, Any], release: str) -> None:
    kubernetes_validate.validate(resource, release, strict=True)


def test_the_schemas_refuse_what_is_wrong() -> None:
    wrong = patched(daemonset(), {"spec": {"template": {"spec": {"hostNetworking": True}}}})
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, RELEASES[0], strict=True)


@each_kustomization
def test_kustomize_builds_it(directory: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed, which has kustomize")
    built = subprocess.run(["kubectl", "kustomize", directory], capture_output=True, check=True, text=True)
    for resource in yaml.safe_load_all(built.stdout):
        if resource["kind"] != OF_OTHERS:
            kubernetes_validate.validate(resource, RELEASES[-1], strict=True)
    kinds = [resource["kind"] for resource in yaml.safe_load_all(built.stdout)]
    assert {"Namespace", "ServiceAccount", "ConfigMap", "DaemonSet"} <= set(kinds)


@each_kustomization
def test_a_kustomization_names_files_that_exist(directory: Path) -> None:
    kustomization = read(directory / "kustomization.yaml")
    generated = [name for generator in kustomization.get("configMapGenerator", []) for name in generator["files"]]
    patches = [patch["path"] for patch in kustomization.get("patches", [])]
    named = {*kustomization["resources"], *generated, *patches}
    assert [name for name in named if not (directory / name).exists()] == []
    assert {path.name for path in directory.iterdir()} - {"kustomization.yaml"} <= named


# --- how they fit the agent --------------------------------------------------------------------------------------


def test_the_image_has_our_version() -> None:
    (image,) = read(MANIFESTS / "base/kustomization.yaml")["images"]
    assert (image["name"], image["newTag"]) == (agent()["image"], cni.__version__)


def test_the_probes_ask_where_the_agent_answers() -> None:
    endpoint = load(str(MANIFESTS / "base/agent.yaml"), {}).metrics
    assert endpoint is not None
    for kind, page in [("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")]:
        asked = agent()[kind]["httpGet"]
        assert (asked["host"], asked["port"], asked["path"]) == (endpoint.host, endpoint.port, page)


def test_the_agent_works_where_hook_and_uninstall_look() -> None:
    settings = load(str(MANIFESTS / "base/agent.yaml"), {})
    assert (settings.socket, settings.state_dir) == (DEFAULT_SOCKET, DEFAULT_DATA_DIR)
    commands = (*agent()["lifecycle"]["postStart"]["exec"]["command"], *uninstalling_container()["command"])
    assert not any(option in word for word in commands for option in ("--socket", "--state-dir"))
    for name in ("socket", "stateDir"):
        assert re.search(rf"^#.*\b{name}\b", (MANIFESTS / "base/agent.yaml").read_text(), re.M), "it says so"


def test_requests_may_be_finished_when_the_agent_is_stopped() -> None:
    settings = load(str(MANIFESTS / "base/agent.yaml"), {})
    assert pod()["terminationGracePeriodSeconds"] > settings.stop_seconds


def test_the_container_has_no_more_than_it_needs() -> None:
    """Which capabilities it needs is for tests/kernel/test_capabilities.py to say."""
    context = agent()["securityContext"]
    assert context["capabilities"]["drop"] == ["ALL"]
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    assert "privileged" not in context
    assert not {"hostPID", "hostIPC"} & set(pod())
    assert pod()["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert not pod()["automountServiceAccountToken"]
    assert not any(document["kind"].endswith(("Role", "RoleBinding")) for _, document in resources())


def test_directories_have_the_same_path_in_the_container() -> None:
    mounts = {mount["name"]: mount for mount in agent()["volumeMounts"]}
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod()["volumes"] if "hostPath" in volume}
    assert {mounts[name]["mountPath"] for name, path in paths.items() if name != "sysctl"} == {
        path for name, path in paths.items() if name != "sysctl"
    }
    for needed in (install.BIN_DIR, install.CONF_DIR, str(Path(DEFAULT_DATA_DIR).parent), "/run/netns", "/run/cni"):
        assert needed in paths.values()
    assert (paths["sysctl"], mounts["sysctl"]["mountPath"]) == (SYSCTLS, SYSCTLS_OF_HOST)
    assert paths["shimlan-run"] == str(Path(DEFAULT_SOCKET).parent)
    assert mounts["netns"]["mountPropagation"] == "HostToContainer"


def test_every_volume_is_mounted() -> None:
    assert {mount["name"] for mount in agent()["volumeMounts"]} == {volume["name"] for volume in pod()["volumes"]}


def test_the_hook_installs_what_the_configuration_holds() -> None:
    command = agent()["lifecycle"]["postStart"]["exec"]["command"]
    mounted = next(mount["mountPath"] for mount in agent()["volumeMounts"] if mount["name"] == "config")
    assert command == ["shimlanctl", "install", "--conflist", mounted]
    assert [variable["name"] for variable in agent()["env"]] == ["NODE_NAME"]


def test_uninstalling_serves_nobody_new_and_keeps_the_rest() -> None:
    template, container = uninstalling()["spec"]["template"]["spec"], uninstalling_container()
    assert "shimlanctl uninstall --drain" in container["command"][-1]
    assert not {"args", "lifecycle", "startupProbe", "livenessProbe"} & set(container)
    assert set(container["readinessProbe"]) & {"httpGet", "exec"} == {"exec"}
    for kept in ("image", "securityContext", "volumeMounts"):
        assert container[kept] == agent()[kept]
    assert template["volumes"] == pod()["volumes"]


def test_the_image_finds_compiler_and_flags_where_it_looks() -> None:
    """What the Dockerfile's sed takes out of these files must be there, on one line."""
    (flags,) = re.findall(r"^CLIENT_FLAGS := (.*)$", (ROOT / "Makefile").read_text(), re.M)
    (compiler,) = re.findall(r'^client = \["(.*)"\]$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert "-static" in flags.split()
    assert compiler.startswith("ziglang")


# --- networks ----------------------------------------------------------------------------------------------------


@each_kustomization
def test_each_node_gets_a_network_that_is_valid(directory: Path) -> None:
    for conflist in directory.glob("*.conflist"):
        nodes = sorted(directory.glob("*.json"))
        ranges = [ranges_of(wares.conflist(conflist.read_text(), node.read_text())) for node in nodes]
        assert len({json.dumps(value) for value in ranges}) == len(nodes) > 1, "a range of its own for each node"


def ranges_of(conflist: bytes) -> Any:
    return json.loads(conflist)["plugins"][0]["ipam"]["ranges"]


def test_networks_for_multus_are_valid() -> None:
    networks = [document for _, document in resources() if document["kind"] == OF_OTHERS]
    assert len(networks) == 4
    for network in networks:
        if "spec" in network:
            configuration = json.loads(network["spec"]["config"])
            assert configuration["name"] == network["metadata"]["name"]
            assert problems(configuration) == []
        else:
            (conflist,) = (MANIFESTS / "overlays/secondary-multus").glob("*.conflist")
            assert json.loads(conflist.read_text())["name"] == network["metadata"]["name"]


def test_no_image_names_a_registry() -> None:
    for path in MANIFESTS.rglob("*.yaml"):
        for line in path.read_text().splitlines():
            name = line.partition("image: ")[2]
            assert "/" not in name, line
