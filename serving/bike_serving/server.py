"""What uvicorn speaks HTTP with: its own protocol, where a common question is answered as soon as it has been read.

Belongs here: bytes on their way in and out of a connection. Does not belong here: what they mean (`fast_path`).
"""

import asyncio
from typing import Any, Final

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from bike_serving.fast_path import Question, ShortWay

SHORT_WAY: Final = "short_way"
"""What the application's state calls its short way; without one every request takes uvicorn's way."""

_COPIED: Final = 65536
"""Up to so many bytes are copied behind what is held; more are handed over beside it."""

_WAITED_SECONDS: Final = 1.0
"""For the rest of a body; then the request takes uvicorn's way, where the time of a body is limited."""


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol over httptools, with a short way, and writes that are joined.

    A request that may be a common question is held back until its body is whole. Then it is answered on the spot, or
    takes uvicorn's way as if it had just come: without a task, a scope and a chain of middleware, an answer costs a
    third. A request behind one that is still being answered takes uvicorn's way, so answers keep their order.
    """

    def __init__(self, config: Any, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        """Begin with what uvicorn gives every protocol; the application's state holds its short way."""
        app_state = dict(app_state)
        self._short_way: ShortWay | None = app_state.pop(SHORT_WAY, None)
        self._question: Question | None = None
        self._body: list[bytes] = []
        self._patience: asyncio.TimerHandle | None = None
        super().__init__(config, server_state, app_state, _loop)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        super().connection_made(Joined(transport, self.loop))  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection; what was held back is nobody's any more."""
        self._release()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        super().data_received(data)
        if self._question is not None and self._patience is None:  # the body is not whole yet
            self._patience = self.loop.call_later(_WAITED_SECONDS, self._give_way)

    def on_headers_complete(self) -> None:
        """Hold a question back, send every other request uvicorn's way."""
        if self._short_way is not None and self._is_next() and self._is_plain():
            self._question = self._short_way.question(self.parser.get_method(), self.url, self.headers)
        if self._question is None:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keep the body of a question with it."""
        if self._question is None:
            super().on_body(body)
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """Answer a question."""
        question = self._question
        if question is None or self._short_way is None:
            super().on_message_complete()
            return
        answer = self._short_way.answer(question, b"".join(self._body), self._client_host())
        if answer is None:
            self._give_way()
            super().on_message_complete()
            return
        self._release()
        head = b"".join([b"%b: %b\r\n" % header for header in self.server_state.default_headers])
        self.transport.write(STATUS_LINE[200] + head + answer)
        self.on_response_complete()

    def shutdown(self) -> None:
        """Answer what is being read, then close."""
        if self._question is not None:
            self._give_way()
        super().shutdown()

    def _is_next(self) -> bool:
        """Whether nothing before this request is still to be answered or sent."""
        done = self.cycle is None or self.cycle.response_complete
        return done and not self.pipeline and not self.flow.write_paused and self.limit_concurrency is None

    def _is_plain(self) -> bool:
        """Whether the connection stays open and stays HTTP, and no leave to send a body is asked for."""
        parser = self.parser
        if self.expect_100_continue or parser.should_upgrade() or not parser.should_keep_alive():
            return False
        return bool(parser.get_http_version() == "1.1")

    def _give_way(self) -> None:
        """Send what is held back uvicorn's way."""
        body = b"".join(self._body)
        self._release()
        super().on_headers_complete()
        if body:
            super().on_body(body)

    def _release(self) -> None:
        self._question, self._body = None, []
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _client_host(self) -> str | None:
        """The address that asks, as uvicorn's middleware tells it: a trusted proxy says for whom it does."""
        host = self.client[0] if self.client else None
        proxies = self.app
        if isinstance(proxies, ProxyHeadersMiddleware) and host in proxies.trusted_hosts:
            told = [value for name, value in self.headers if name == b"x-forwarded-for"]
            if told:
                behind, _ = proxies.trusted_hosts.get_trusted_client_address(
                    b", ".join(told).decode("latin1")
                )
                return behind or host
        return host


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
