"""Length-prefixed frames on stream sockets, with a bound on size and on time.

Owns framing only; what is in a frame is `codec`'s. Runs inside the isolated processes too.
"""

from __future__ import annotations

import select
import socket
import struct
import time

HEADER = struct.Struct("!Q")
MAX_FRAME = 64 * 1024 * 1024
"""Bytes; a longer frame from a program or worker ends the conversation."""


class Closed(Exception):
    """The other side is gone, or sent what is no frame."""


class TooLong(Closed):
    """The other side sends a frame beyond the limit."""


class Late(Exception):
    """The deadline passed first."""


def pack(payload: bytes) -> bytes:
    """`payload` as a frame."""
    return HEADER.pack(len(payload)) + payload


def send(sock: socket.socket, payload: bytes) -> None:
    """Send one frame; blocks while the other side does not read.

    Raises:
        Closed: the other side is gone.
    """
    try:
        sock.sendall(pack(payload))
    except OSError as error:
        raise Closed(str(error)) from None


def _read(sock: socket.socket, count: int, deadline: float | None) -> bytes:
    chunks: list[bytes] = []
    while count:
        if deadline is not None and not _readable(sock, deadline):
            raise Late
        try:
            chunk = sock.recv(min(count, 1 << 20))
        except OSError as error:
            raise Closed(str(error)) from None
        if not chunk:
            raise Closed("end of stream")
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)


def _readable(sock: socket.socket, deadline: float) -> bool:
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))


def receive(sock: socket.socket, deadline: float | None = None, limit: int = MAX_FRAME) -> bytes:
    """Receive one frame.

    Args:
        sock: a stream socket.
        deadline: `time.monotonic()` by which the whole frame must be there; None waits for ever.
        limit: bytes of the frame.

    Raises:
        Closed: end of stream.
        TooLong: a frame beyond the limit.
        Late: the deadline passed.
    """
    (size,) = HEADER.unpack(_read(sock, HEADER.size, deadline))
    if size > limit:
        raise TooLong(f"{size} bytes, {limit} allowed")
    return _read(sock, size, deadline)


Line = socket.socket
"""A connected stream socket that carries frames."""


def wrap(fd: int) -> Line:
    """The socket of a descriptor that was inherited."""
    return socket.socket(fileno=fd)
