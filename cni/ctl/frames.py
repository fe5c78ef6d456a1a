"""What passes through a network device: Ethernet frames captured by an AF_PACKET socket.

It keeps frames and names their addresses; it decodes nothing above Ethernet.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable

from cni.frozen import frozen

ETH_P_ALL = 0x0003  # include/uapi/linux/if_ether.h
ETH_P_ARP = 0x0806

_SOL_PACKET, _PACKET_STATISTICS = 263, 6  # include/linux/socket.h, include/uapi/linux/if_packet.h
_QUIET_SECONDS = 0.02  # a socket that stays empty for so long has delivered everything


@frozen
class Frame:
    """One Ethernet frame; `outgoing`: it was sent through the device, not received by it."""

    raw: bytes
    outgoing: bool = False

    @property
    def dst(self) -> str:
        """The destination MAC, lower case with colons."""
        return self.raw[0:6].hex(":")

    @property
    def src(self) -> str:
        """The source MAC, lower case with colons."""
        return self.raw[6:12].hex(":")

    @property
    def ethertype(self) -> int:
        """The EtherType, such as 0x0806 for ARP."""
        return int.from_bytes(self.raw[12:14], "big")

    @property
    def payload(self) -> bytes:
        """What follows the Ethernet header."""
        return self.raw[14:]


Filter = Callable[[Frame], bool]


class FramesLost(Exception):
    """A capture is not complete."""


class Capture:
    """Frames that passed a packet socket and a filter, in their order, while the capture is entered.

    Leaving it raises FramesLost when the kernel could not keep all of them: what is absent then proves nothing.
    """

    def __init__(self, packet_socket: socket.socket, wanted: Filter) -> None:
        self._socket = packet_socket
        self._wanted = wanted
        self._frames: list[Frame] = []
        self._stopping = threading.Event()
        self._receiver = threading.Thread(target=self._receive, daemon=True)

    @property
    def frames(self) -> list[Frame]:
        """The frames so far; all of them once the capture has ended."""
        return list(self._frames)

    def __enter__(self) -> Capture:
        self._socket.settimeout(_QUIET_SECONDS)
        self._receiver.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._receiver.join()
        with self._socket:
            _, lost = struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        if lost:
            raise FramesLost(f"the capture missed {lost} frames")

    def _receive(self) -> None:
        while True:
            try:
                raw, sender = self._socket.recvfrom(65535)
            except TimeoutError:
                if self._stopping.is_set():
                    return
                continue
            frame = Frame(raw, outgoing=sender[2] == socket.PACKET_OUTGOING)
            if self._wanted(frame):
                self._frames.append(frame)
