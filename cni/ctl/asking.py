"""Asking an agent whether it is there, as a client does."""

from __future__ import annotations

from socket import AF_UNIX, SOCK_STREAM, socket

from cni.agent.wire import AnswerDecoder, ProtocolError, Request, encode_request

ANSWER_SECONDS = 5.0


def agent_answers(path: str) -> bool:
    """Whether an agent of this protocol answers at a socket."""
    return not trouble(path)


def trouble(path: str) -> str:
    """Why nobody answers at a socket to the only question that touches nothing, VERSION; "" if somebody does."""
    try:
        with socket(AF_UNIX, SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(path)
            connection.sendall(encode_request(Request({"CNI_COMMAND": "VERSION"}, b"{}")))
            return _trouble_with(connection)
    except TimeoutError:
        return f"it does not answer within {ANSWER_SECONDS:g} s"
    except OSError as error:
        return f"nobody answers ({error.strerror})"


def _trouble_with(connection: socket) -> str:
    decoder = AnswerDecoder()
    try:
        while data := connection.recv(4096):
            if decoder.feed(data):
                return ""
    except ProtocolError as error:
        return f"what answers there is no agent for this client: {error}"
    return "it closes the connection without an answer"
