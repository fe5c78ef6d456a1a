"""Configurations and environments that no sane runtime sends, grown from sane ones. What they refer to is named by
placeholders, so that a failing one can be replayed in another lab.

Nothing here points outside of a lab: files are those below TMP or cannot be written, namespaces are the lab's.
"""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from tests.unit.configurations import DUAL_STACK, FULL, places

Json = dict[str, Any]
Case = dict[str, Any]  # "environ": the CNI_* variables, "stdin": text, undecodable octets as in PEP 383

TMP, POD, HOST, SWITCH = "@TMP@", "@POD@", "@HOST@", "@SWITCH@"
# Values that are too deep to be handled here; the text has them in the place of these words.
DEEP = {
    "@LISTS@": "[" * 90 + "]" * 90,
    "@MORE LISTS@": "[" * 400 + "]" * 400,
    "@OBJECTS@": '{"a":' * 900 + "1" + "}" * 900,
}
VERBS = ("ADD", "ADD", "ADD", "ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION")
CONTAINER_ID = "victim-0123456789abcdef"

SUBNET = "192.0.2.0/24"
RANGE4: Json = {"subnet": SUBNET, "rangeStart": "192.0.2.100", "rangeEnd": "192.0.2.199", "gateway": "192.0.2.1"}
RANGE6: Json = {"subnet": "2001:db8::/64", "rangeStart": "2001:db8::100", "gateway": "2001:db8::1"}
SANE: Json = {
    "cniVersion": "1.0.0",
    "name": "lan",
    "type": "shimlan",
    "master": "eth0",
    "dataDir": f"{TMP}/data",
    "ipam": {
        "type": "shimlan-ipam",
        "ranges": [[RANGE4], [RANGE6]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    },
}
RESULT: Json = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth9", "mac": "02:00:00:00:00:09", "sandbox": "/run/netns/x"}, {"name": "br9"}],
    "ips": [{"address": "198.51.100.7/24", "gateway": "198.51.100.1", "interface": 0}],
    "routes": [{"dst": "198.51.100.0/24", "gw": "198.51.100.1", "mtu": 1400, "priority": 5}],
    "dns": {"nameservers": ["198.51.100.1"]},
}
EVERYTHING: Json = {
    **copy.deepcopy(FULL),
    "dataDir": f"{TMP}/data",
    "logFile": f"{TMP}/log",
    "logLevel": "debug",
    "shim": {"hostAddresses": ["auto"], "routes": ["10.96.0.0/12", "fd00:96::/108"], "snat": True},
    "detectConflicts": {"timeoutMs": 1, "retries": 1},
    "runtimeConfig": {"ips": ["10.0.0.17/24"], "mac": "02:00:00:00:00:11"},
    "args": {"cni": {"ips": ["fd00::77"]}},
    "prevResult": RESULT,
}
EVERYTHING["vlan"] = 0  # which needs a kernel with 8021q; one of the bases tries
EVERYTHING["ipam"] |= {"dataDir": f"{TMP}/data", "resolvConf": f"{TMP}/resolv.conf", "subnet": None}
BASES: tuple[Json, ...] = (
    SANE,
    {**SANE, "cniVersion": "0.3.1", "shim": {"routes": ["10.96.0.0/12"]}},
    {**SANE, "cniVersion": "1.1.0", "mode": "private", "macPolicy": "random", "prevResult": RESULT},
    {**SANE, "ipam": None},
    {**SANE, "linkInContainer": True},
    {**SANE, "mode": "passthru", "master": None, "shim": False},
    {**SANE, "mode": "source", "sourceMacs": ["02:00:00:00:00:01", "02:00:00:00:00:02"]},
    {**SANE, "linkType": "macvtap", "cniVersion": "1.1.0"},
    {**SANE, "vlan": 100},
    {**SANE, "ipam": {"type": "sound"}},
    {**SANE, "ipam": {"type": "babbling"}},
    {**SANE, "cniVersion": "0.4.0", "cni.dev/valid-attachments": []},
    EVERYTHING,
    {**DUAL_STACK, "dataDir": f"{TMP}/data"},
)
# All of them let go of what they gave, or a failed ADD could not be undone.
DELEGATES = {
    "sound": """printf '{"cniVersion":"1.0.0","ips":[{"address":"192.0.2.77/24"}]}'""",
    "babbling": "echo this is not JSON",
    "listing": "echo '[1, 2]'",
    "silent": ":",
    "failing": """echo '{"cniVersion":"1.0.0","code":77,"msg":"no luck"}'; exit 1""",
    "confused": """echo '{"code":"x"}'; exit 3""",
    "dying": "kill -9 $$",
    "binary": r"printf '\377\000\376'",
    "deep": "printf '[%.0s' $(seq 5000)",
    "infinite": """echo '{"ips":[{"address":"192.0.2.78/24","interface":1e999}],"dns":{"x":NaN}}'""",
    "huge": """echo '{"ips":[{"address":"192.0.2.79/24"}],"routes":[{"dst":"192.0.2.128/25","priority":1e30}]}'""",
    "foreign": """echo '{"ips":[{"address":"192.0.2.79/24"}],"routes":[{"dst":"::/0","gw":"192.0.2.1"}]}'""",
}


def words(text: str) -> tuple[str, ...]:
    """What stands between white space."""
    return tuple(text.split())


NUMBERS = (0, 1, -1, 68, 1500, 65536, 2**31, 2**32, 2**63, 2**64, 10**400, -(10**30), 0.0, 1.5, -0.0, 1e308)
NOT_IN_JSON = (float("inf"), float("-inf"), float("nan"), {"dns": {"x": float("nan")}})
TEXTS = ("", " ", "x", "\0", "a\0b", "\ud800", "\udc00x", "ünïcödé", "日本", "\u202e", "x" * 15, "x" * 16, "y" * 5000)
WORDS = words(
    "auto none pod bridge vepa private passthru source macvlan macvtap random true 1 0.1.0 0.3.0 0.4.0 1.1.0 9.9.9"
)
LINKS = (*words("eth0 lo shim2 nope eth%d all default . .. a/b ../../x a:b"), "a b")
ADDRESSES = words(
    "192.0.2.10 192.0.2.1 192.0.2.150 192.0.2.150/24 0.0.0.0 255.255.255.255 127.0.0.1 224.0.0.1 169.254.20.10"
    " :: ::1 fe80::1 fe80::1%eth0 ff02::1 2001:db8::10 ::ffff:1.2.3.4"
)
NETWORKS = words(
    "0.0.0.0/0 ::/0 192.0.2.0/24 192.0.2.0/30 192.0.2.0/31 192.0.2.1/24 10.0.0.0/8 224.0.0.0/4 127.0.0.0/8"
    " fe80::/10 2001:db8::/64 2001:db8::/126 ::/127 1.2.3.4/99 1.2.3.4/-1 1/2/3"
)
MACS = words(
    "02:00:00:00:00:01 01:00:5e:00:00:01 00:00:00:00:00:00 ff:ff:ff:ff:ff:ff 02-00-00-00-00-02 02:00:00:00:00:0g"
)
PATHS = (
    *(f"{TMP}/{name}" for name in ("data", "new/and/deeper", "file", "file/below", "read-only", "d" * 300)),
    *words("relative /nope /proc/nope /sys"),
)
CONTAINERS: tuple[Any, ...] = (
    [],
    {},
    [None],
    [[]],
    [{}],
    {"": 1},
    {"type": "x"},
    [1, "a", None],
    [[[[[[[[[[1]]]]]]]]]],
    RESULT,
)
RANGES = ([RANGE4], [[RANGE4, RANGE4]], [RANGE4, RANGE6])
VALUES: tuple[Any, ...] = (
    *(None, True, False, *NUMBERS, *NOT_IN_JSON, *TEXTS, *WORDS, *LINKS, *ADDRESSES, *NETWORKS, *MACS, *PATHS),
    *(*CONTAINERS, *RANGES, *DEEP, *DELEGATES, "not-executable", "../sound"),
)
KEYS = (*sorted({str(place[-1]) for place in places(EVERYTHING) if place}), "", "\0", "x", "\ud800")

NETNS = (
    *(POD, POD, POD, HOST, SWITCH, "", "netns:1", f"{POD}/", TMP),
    *(f"{TMP}/{name}" for name in ("file", "socket", "fifo", "link-to-pod", "broken-link", "\udcff", "n" * 5000)),
    *words("/nope relative /dev/null /proc/self/ns/net /proc/self/ns/mnt /proc/self/ns/pid /proc/self/fd/0"),
)
NAMES = (
    *(*words("eth0 net1 lo eth%d all default . .. a/b a:b shim2 - --help ' %s"), "", "a b", "a\tb", "eth0\n"),
    *("x" * 15, "x" * 16, "ünïcödé", "\udcff", "日本日本日", "日本日本日本", "😀"),
)
CONTAINER_IDS = (
    *(CONTAINER_ID, *words("x 0 a.b_c-d -x .x _x x/y ../x ünï %n"), "", "\udcfe", "a b", "a\nb", "x" * 200, "x" * 5000),
    "'; DROP TABLE attachments; --",
)
ARGS = (
    *words("IP=192.0.2.150 IP=2001:db8::150,192.0.2.151 IP= IP=x IP=10.1.1.1 IP=192.0.2.10 IP=::ffff:192.0.2.160 IP"),
    *words("MAC=02:00:00:00:00:12 MAC=01:00:00:00:00:00 GATEWAY=192.0.2.1 IgnoreUnknown=1 IgnoreUnknown=1;X=Y X=Y"),
    *words("K8S_POD_NAMESPACE=default;K8S_POD_NAME=db-0 K8S_POD_NAME=\udcff;K8S_POD_NAMESPACE=x ;;; = =x a=b=c"),
    *("", "IP=1.2.3.4;" * 200, "\udcff=\udcfe;IgnoreUnknown=true"),
)
ENVIRON: dict[str, tuple[str, ...]] = {
    "CNI_COMMAND": (*VERBS, "", "add", "ADD ", "NOPE", "\udcff", "ADD\n"),
    "CNI_CONTAINERID": CONTAINER_IDS,
    "CNI_NETNS": NETNS,
    "CNI_IFNAME": NAMES,
    "CNI_ARGS": ARGS,
    "CNI_PATH": (f"{TMP}/bin", "", ":", "/nope", f"{TMP}/file", f"{TMP}/bin:" * 50, "\udcff", "relative"),
    "CNI_NETNS_OVERRIDE": ("", "1", "true", "maybe"),
}
SANE_ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": CONTAINER_ID,
    "CNI_NETNS": POD,
    "CNI_IFNAME": "eth0",
    "CNI_PATH": f"{TMP}/bin",
    "CNI_ARGS": "",
}


def sane(command: str, conf: Json = SANE, **variables: str) -> Case:
    """A case as a runtime would have it; `variables` differ."""
    return {"environ": {**SANE_ENVIRON, "CNI_COMMAND": command, **variables}, "stdin": json.dumps(conf)}


def mutant(chance: random.Random) -> Case:
    """A case with one to four things wrong, or odd, in configuration, its text, or environment."""
    case = sane(chance.choice(VERBS))
    conf: Any = copy.deepcopy(chance.choice(BASES))
    if case["environ"]["CNI_COMMAND"] == "CHECK":
        conf.setdefault("prevResult", copy.deepcopy(RESULT))
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        conf = mutated(chance, conf)
    case["stdin"] = json.dumps(contained(conf))
    for _ in range(chance.choice((0, 0, 1, 1, 2))):
        mutate_environ(chance, case["environ"])
    if chance.random() < 0.06:
        case["stdin"] = garbled(chance, case["stdin"])
    return case


def mutated(chance: random.Random, conf: Any) -> Any:
    """The configuration with something replaced, removed, added, doubled or exchanged at a random place."""
    spots = [place for place in places(conf) if place]
    if not spots:
        return conf
    *way, last = chance.choice(spots)
    parent: Any = conf
    for step in way:
        parent = parent[step]
    match chance.choice(("replace", "replace", "replace", "remove", "add", "double", "exchange")):
        case "replace":
            parent[last] = copy.deepcopy(chance.choice(VALUES))
        case "remove":
            del parent[last]
        case "add" if isinstance(parent, dict):
            parent[chance.choice(KEYS)] = copy.deepcopy(chance.choice(VALUES))
        case "double" if isinstance(parent, list):
            parent.append(copy.deepcopy(chance.choice(parent)))
        case _:
            keys: list[Any] = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
            other = chance.choice(keys)
            parent[last], parent[other] = parent[other], parent[last]
    return conf


def contained(conf: Any) -> Any:
    """The configuration without what may legitimately take long: patience with answers to probes."""
    detection = conf.get("detectConflicts") if isinstance(conf, dict) else None
    if isinstance(detection, dict):
        detection |= {"timeoutMs": 1, "retries": 1}
    elif detection is True:
        conf["detectConflicts"] = {"timeoutMs": 1}
    return conf


def mutate_environ(chance: random.Random, environ: dict[str, str]) -> None:
    """Change or remove one variable."""
    name = chance.choice(tuple(ENVIRON))
    if chance.random() < 0.1:
        environ.pop(name, None)
    else:
        environ[name] = chance.choice(ENVIRON[name])


def garbled(chance: random.Random, text: str) -> str:
    """The text with characters cut off, changed or added, or something else altogether."""
    at = chance.randrange(len(text))
    return chance.choice(
        (
            text[:at],
            text[:at] + chance.choice('{}[],:"\\\0\udcff\n0') + text[at + 1 :],
            text + text,
            "",
            "null",
            "[]",
            '"x"',
            "NaN",
            "\ufeff" + text,
            "[" * 100_000,
            '{"a":' * 100_000,
            "9" * 5000,
            " " * (5 << 20),
            text.replace("1", "1" * 4000, 1),
        )
    )
