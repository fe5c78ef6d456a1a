"""Configurations that were read before: a runtime sends the same text for each pod of a network.

Whatever belongs to one call or one container alone (prevResult, GC's list, the pod's name) is not kept.
"""

from __future__ import annotations

from typing import Any

from cni import config, protocol
from cni.config import NetConf
from cni.protocol import Call

LONGEST = 64 << 10  # bytes of a text that is kept
MOST_BYTES = 512 << 10  # of all texts together; what is made of them takes some ten times as much
MOST = 256  # texts, and configurations; a node has some ten, but a runtime may add what it wants for each pod

OF_THE_CALL = frozenset({"prevResult", "cni.dev/valid-attachments", "cni.dev/attachments"})

# What CNI_ARGS tell of the pod alone (Kubernetes runtimes); everything else may change the configuration.
OF_THE_POD = frozenset(
    {"K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID", "K8S_POD_INFRA_CONTAINER_ID", "IgnoreUnknown"}
)


class Configurations:
    """Reads and parses what clients send; threads may share it, at worst something is read twice."""

    def __init__(self) -> None:
        self._raw: dict[bytes, dict[str, Any]] = {}
        self._bytes = 0  # of these texts
        self._parsed: dict[tuple[object, ...], NetConf] = {}

    def read(self, text: bytes) -> dict[str, Any]:
        """The JSON object; nobody may change it. Raises DecodingFailure."""
        known = self._raw.get(text)
        if known is not None:
            return known
        raw = protocol.decode(text)
        if len(text) <= LONGEST and OF_THE_CALL.isdisjoint(raw):
            self._bytes += len(text)
            if self._bytes > MOST_BYTES or len(self._raw) >= MOST:
                self._raw, self._parsed, self._bytes = {}, {}, len(text)
            self._raw[text] = raw
        return raw

    def parse(self, text: bytes, raw: dict[str, Any], call: Call) -> NetConf:
        """The configuration in a text that was read as `raw`, for a call. Raises InvalidConfig."""
        args = call.args or {}
        lenient = call.command == "DEL"
        parse = config.parse_for_delete if lenient else config.parse
        # What is no name of a pod is for the parser to refuse.
        if text not in self._raw or not "".join(args.values()).isascii():
            return parse(raw, args)
        key = (text, lenient, *(pair for pair in args.items() if pair[0] not in OF_THE_POD))
        known = self._parsed.get(key)
        if known is None:
            known = parse(raw, args)
            if len(self._parsed) >= MOST:
                self._parsed = {}
            self._parsed[key] = known
        return config.for_pod(known, args)
