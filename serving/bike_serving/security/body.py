"""Limits on what a request may send: size and time.

Belongs here: refusing a body before it fills the memory or holds a connection. Does not belong here: what a body means.
"""

import asyncio
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bike_serving.problems import problem


class BodyLimit:
    """ASGI middleware that refuses bodies which are too large, announced or not, or take too long to arrive."""

    def __init__(self, app: ASGIApp, limit_of: Callable[[str], int], seconds: float) -> None:
        """What it allows.

        Args:
            app: what answers.
            limit_of: bytes that a path's requests may send.
            seconds: for a body to arrive whole.
        """
        self._app, self._limit_of, self._seconds = app, limit_of, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit_of(scope["path"])
        too_large = f"the body exceeds {limit:,} bytes; send smaller batches"
        for name, value in scope["headers"]:
            # A length that is no number is the server's to refuse.
            if name == b"content-length" and value.isdigit() and int(value[:20]) > limit:
                await problem(413, "http-413", too_large)(scope, receive, send)
                return
        received = 0
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._seconds
        complete = late = False

        def interrupt(reader: asyncio.Task[None]) -> None:
            nonlocal late
            late = True
            reader.cancel()

        async def counted() -> Message:
            nonlocal received, complete
            if complete:  # waiting for the client to leave
                return await receive()
            reader = asyncio.current_task()
            assert reader is not None  # noqa: S101  a coroutine that runs is a task's
            # What `asyncio.timeout_at` does, at a third of its price: every request pays it.
            alarm = loop.call_at(deadline, interrupt, reader)
            try:
                message = await receive()
            except asyncio.CancelledError as error:
                if not late or reader.uncancel() > 0:  # somebody else ends the request
                    raise
                raise HTTPException(408, f"the body did not arrive within {self._seconds:g} s") from error
            finally:
                alarm.cancel()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if received > limit:
                    raise HTTPException(413, too_large)
            return message

        started = False

        async def noting_start(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, counted, noting_start)
        except (
            HTTPException
        ) as error:  # whoever read the body stands outside of what turns errors into answers
            if started or error.status_code not in (408, 413):
                raise
            await problem(error.status_code, f"http-{error.status_code}", error.detail)(scope, receive, send)
