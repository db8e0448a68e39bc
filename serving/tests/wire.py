"""An application behind the server's own protocol, without a socket: bytes in, bytes out.

Belongs here: what stands where a network would. In-process tests ask through it, so that they meet the short way of
common questions and uvicorn's way of all others as a client does.
"""

import asyncio
from typing import Any

import httptools
import httpx
from fastapi import FastAPI
from uvicorn import Config
from uvicorn.server import ServerState

from bike_serving.fast_path import ShortWay
from bike_serving.server import SHORT_WAY, Protocol

TRUSTED_PROXY = "192.0.2.9"


class FarEnd(asyncio.Transport):
    """The client's end of a connection: keeps what it is sent."""

    def __init__(self, client: tuple[str, int] = ("192.0.2.7", 5000)) -> None:
        super().__init__({"peername": client, "sockname": ("192.0.2.1", 8000)})
        self.sent = b""
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.sent += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        """Whoever sends waits for no leave."""

    def resume_reading(self) -> None:
        """Whoever sends waits for no leave."""


class Connection:
    """A connection to an application on the running event loop."""

    def __init__(self, app: FastAPI, short_way: ShortWay | None, **far_end: Any) -> None:
        config = Config(app, http=Protocol, ws="none", log_config=None, forwarded_allow_ips=TRUSTED_PROXY)
        config.load()
        self.state = ServerState()
        self.transport = FarEnd(**far_end)
        loop = asyncio.get_running_loop()
        self.protocol = Protocol(config, self.state, {SHORT_WAY: short_way}, loop)
        self.protocol.connection_made(self.transport)

    async def send(self, *parts: bytes) -> bytes:
        """Send parts one after the other; what was answered when nothing is being answered any more."""
        for part in parts:
            self.protocol.data_received(part)
            await self.settle()
        return self.transport.sent

    async def settle(self) -> None:
        """Wait until nothing is being answered."""
        for _ in range(3):
            await asyncio.sleep(0)
        while self.state.tasks:
            await asyncio.wait(self.state.tasks)
            await asyncio.sleep(0)

    def close(self) -> None:
        """Leave."""
        self.protocol.connection_lost(None)


class _Reader:
    """What httptools tells of the answers on a connection."""

    def __init__(self) -> None:
        self.found: list[httpx.Response] = []
        self._parser = httptools.HttpResponseParser(self)

    def read(self, sent: bytes) -> list[httpx.Response]:
        self._parser.feed_data(sent)
        return self.found

    def on_message_begin(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._body = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        self.found.append(httpx.Response(status, headers=self._headers, content=self._body))


def answers(sent: bytes) -> list[httpx.Response]:
    """The answers in what a server sent over a connection."""
    return _Reader().read(sent)


class Wire(httpx.AsyncBaseTransport):
    """Takes an httpx client's requests to an application, each on a connection of its own."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        content = await request.aread()
        headers = request.headers.raw
        if "transfer-encoding" in request.headers:
            content = b"".join(
                b"%x\r\n%b\r\n" % (len(part), part) for part in ([content, b""] if content else [b""])
            )
        lines = [b"%b %b HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
        lines += [b"%b: %b" % header for header in headers]
        connection = Connection(self._app, self._app.state.short_way)
        sent = await connection.send(b"\r\n".join([*lines, b"", b""]) + content)
        connection.close()
        [answer] = answers(sent)
        return answer
