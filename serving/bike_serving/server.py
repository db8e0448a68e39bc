"""What uvicorn speaks HTTP with: its own protocol, on a connection that sends the head of an answer with its body.

Belongs here: bytes on their way out. Does not belong here: requests and answers.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_COPIED: Final = 65536
"""Up to so many bytes are copied behind what is held; more are handed over beside it."""


class JoinedProtocol(HttpToolsProtocol):
    """uvicorn's protocol over httptools, whose writes are joined."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        super().connection_made(Joined(transport, self.loop))  # type: ignore[arg-type]


class Joined:
    """A transport that holds a write back until the next one or the next turn of the loop, whichever is first.

    uvicorn writes head and body one after the other, and uvloop sends what it is given at once: as two packets, which
    cost the server and its client a system call each.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held = b""

    def write(self, data: bytes) -> None:
        """Send the data, or hold it back for a moment."""
        held = self._held
        if not held:
            self._held = data
            self._loop.call_soon(self._send)
            return
        self._held = b""
        if len(data) <= _COPIED:
            self._transport.write(held + data)
        else:
            self._transport.writelines((held, data))

    def close(self) -> None:
        """Send what is held and close."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        held, self._held = self._held, b""
        if held:
            self._transport.write(held)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the transport's."""
        return getattr(self._transport, name)
