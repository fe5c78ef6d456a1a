"""Configurations that were read before: a runtime sends the same text for each pod of a network.

Whatever belongs to one call or one container alone (prevResult, GC's list, the pod's name) is not kept: what DEL and
CHECK bring is what ADD brought, but for the result.
"""

from __future__ import annotations

from typing import Any

from cni import config, protocol, quickjson
from cni.config import NetConf
from cni.protocol import Call

LONGEST = 64 << 10  # bytes of a text that is kept
MOST_BYTES = 512 << 10  # of all texts together; what is made of them takes some ten times as much
MOST = 256  # texts, and configurations; a node has some ten, but a runtime may add what it wants for each pod

OF_GC = frozenset({"cni.dev/valid-attachments", "cni.dev/attachments"})
OF_THE_CALL = OF_GC | {"prevResult"}

# What CNI_ARGS tell of the pod alone (Kubernetes runtimes); everything else may change the configuration.
OF_THE_POD = frozenset(
    {"K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID", "K8S_POD_INFRA_CONTAINER_ID", "IgnoreUnknown"}
)


class Configurations:
    """Reads and parses what clients send; threads may share it, at worst something is read twice."""

    def __init__(self) -> None:
        self._raw: dict[bytes, dict[str, Any]] = {}
        self._parsed: dict[tuple[object, ...], NetConf] = {}
        self._bytes = 0  # of the texts in both

    def read(self, text: bytes) -> dict[str, Any]:
        """The JSON object; nobody may change it. Raises DecodingFailure."""
        known = self._raw.get(text)
        if known is not None:
            return known
        raw = protocol.decode(text)
        if len(text) <= LONGEST and OF_THE_CALL.isdisjoint(raw):
            self._make_room(len(text))
            self._raw[text] = raw
        return raw

    def parse(self, text: bytes, raw: dict[str, Any], call: Call) -> NetConf:
        """The configuration in a text that was read as `raw`, for a call. Raises InvalidConfig."""
        args = call.args or {}
        lenient = call.command == "DEL"
        parse = config.parse_for_delete if lenient else config.parse
        lasting = self._lasting(text, raw)
        # What is no name of a pod is for the parser to refuse.
        if lasting is None or not "".join(args.values()).isascii():
            return parse(raw, args)
        key = (lasting, lenient, *(pair for pair in args.items() if pair[0] not in OF_THE_POD))
        known = self._parsed.get(key)
        if known is None:
            known = parse(_without_result(raw), args)
            self._make_room(len(lasting))
            self._parsed[key] = known
        return config.for_call(known, raw, args)

    def _lasting(self, text: bytes, raw: dict[str, Any]) -> bytes | str | None:
        """A text without what is of the call alone; None for one that is not worth keeping."""
        if text in self._raw:
            return text
        if len(text) > LONGEST or not isinstance(raw.get("prevResult"), dict) or not OF_GC.isdisjoint(raw):
            return None
        return quickjson.dumps(_without_result(raw), compact=True)

    def _make_room(self, octets: int) -> None:
        """Forget everything if one more text of that length would be too much."""
        self._bytes += octets
        if self._bytes > MOST_BYTES or max(len(self._raw), len(self._parsed)) >= MOST:
            self._raw, self._parsed, self._bytes = {}, {}, octets


def _without_result(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key != "prevResult"}
