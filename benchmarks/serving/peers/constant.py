"""What a machine's event loop and network give: an answer of the right size that nobody computed or looked up."""

from typing import Any

_FORECAST = (
    b'{"counter_id":"100000000-353000000","target_ts":"2024-12-31T07:00:00Z","forecast":123.456789},'
    + b" " * 120
)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """One forecast's bytes for a small question, 113 forecasts' for a large one."""
    if scope["type"] != "http":
        return
    question = await receive()
    answer = _FORECAST if len(question["body"]) < 500 else _FORECAST * 113
    headers = [(b"content-length", b"%d" % len(answer)), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
