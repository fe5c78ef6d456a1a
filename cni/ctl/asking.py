"""Asking an agent whether it is there, as a client does."""

from __future__ import annotations

import json
from socket import AF_UNIX, SOCK_STREAM, socket

from cni.agent.wire import AnswerDecoder, ProtocolError, Request, encode_request
from cni.protocol import NEWEST

ANSWER_SECONDS = 5.0


def agent_answers(path: str) -> bool:
    """Whether an agent of this protocol answers at a socket: it has to tell its version."""
    question = Request({"CNI_COMMAND": "VERSION"}, json.dumps({"cniVersion": NEWEST}).encode())
    decoder = AnswerDecoder()
    try:
        with socket(AF_UNIX, SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(path)
            connection.sendall(encode_request(question))
            while not decoder.feed(data := connection.recv(1 << 16)):
                if not data:
                    return False
    except (OSError, ProtocolError):
        return False
    return decoder.answer().status == 0
