"""What every fake service has in common: a real HTTP server in a thread, and faults drawn by chance.

Belongs here: sockets, and answers that go wrong. Does not belong here: what a service answers.
"""

import contextlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

SLOW_SECONDS = 0.02


@dataclass(frozen=True)
class Answer:
    """Status, type, body and headers of one answer."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = 200, **headers: str) -> Self:
        """An answer in JSON."""
        body = json.dumps(value, ensure_ascii=False, default=str).encode()
        return cls(status, "application/json; charset=utf-8", body, headers)


@dataclass(frozen=True)
class Faults:
    """Faults by chance: each request meets one of `kinds` with that probability."""

    probability: float = 0.0
    seed: int = 0
    kinds: tuple[str, ...] = ("429", "500", "cut", "truncated", "slow")
    """`cut` breaks the connection inside the body, `truncated` ends it early without saying how long it is."""


class FakeService:
    """A server on a free port of this machine while the context is open.

    A subclass answers in `respond`. `set_faults` starts the draws anew.

    Attributes:
        requests: how many there were, by path.
        queries: path and query of each, in order.
        stall: requests for which this is true get half an answer and then wait as long as it stays true.
    """

    def __init__(self, faults: Faults | None = None, port: int = 0) -> None:
        """A server that does not listen yet; port 0 takes a free one."""
        self.requests: Counter[str] = Counter()
        self.queries: list[tuple[str, dict[str, str]]] = []
        self.stall: Callable[[str, dict[str, str]], bool] | None = None
        self._lock = threading.Lock()
        self.set_faults(faults or Faults())
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                service._serve(self)

            def do_POST(self) -> None:
                service._serve(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  http.server's name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """Its address, without a path."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def set_faults(self, faults: Faults) -> None:
        """From now on these faults."""
        self.faults = faults
        self._chance = random.Random(faults.seed)

    def respond(self, path: str, query: dict[str, str], headers: Mapping[str, str]) -> Answer:
        """The right answer to a request."""
        raise NotImplementedError

    def receive(self, path: str, query: dict[str, str], headers: Mapping[str, str], body: bytes) -> Answer:
        """The right answer to something that is sent."""
        del path, query, headers, body
        return Answer.json({"error": "Method not allowed"}, 405)

    def spoil(self, kind: str, path: str, query: dict[str, str], answer: Answer) -> Answer:
        """The answer with a fault of the service's own kinds."""
        del kind, path, query
        return answer

    def serve_forever(self) -> None:
        """Serve in this thread until interrupted."""
        with contextlib.suppress(KeyboardInterrupt):
            self._server.serve_forever()

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: BaseHTTPRequestHandler, sent: bytes | None = None) -> None:
        split = urlsplit(handler.path)
        query = dict(parse_qsl(split.query))
        with self._lock:
            self.requests[split.path] += 1
            self.queries.append((split.path, query))
            fault = None
            if self.faults.kinds and self._chance.random() < self.faults.probability:
                fault = self._chance.choice(self.faults.kinds)
            share = self._chance.random()
        if fault == "429":
            text = {"errorcode": 10002, "error": "Too many requests"}
            answer = Answer.json(text, 429, **{"Retry-After": "1"})
        elif fault == "500":
            answer = Answer(500, "text/html", b"<h1>Server Error (500)</h1>")
        else:
            if sent is None:
                answer = self.respond(split.path, query, handler.headers)
            else:
                answer = self.receive(split.path, query, handler.headers, sent)
            if fault and answer.status == 200:
                answer = self.spoil(fault, split.path, query, answer)
        with contextlib.suppress(ConnectionError):  # Whoever asked may have gone.
            self._send(
                handler, answer, fault, share, lambda: bool(self.stall and self.stall(split.path, query))
            )

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        answer: Answer,
        fault: str | None,
        share: float,
        is_stalled: Callable[[], bool],
    ) -> None:
        handler.send_response(answer.status)
        handler.send_header("Content-Type", answer.content_type)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        body = answer.body
        broken = fault in ("cut", "truncated")
        if fault != "truncated":
            handler.send_header("Content-Length", str(len(body)))
        if broken:
            handler.send_header("Connection", "close")
            body = body[: int(len(body) * share)]
        handler.end_headers()
        if fault == "slow" or is_stalled():
            handler.wfile.write(body[: len(body) // 2])
            time.sleep(SLOW_SECONDS)
            while is_stalled():
                time.sleep(SLOW_SECONDS)
            body = body[len(body) // 2 :]
        handler.wfile.write(body)
        handler.close_connection = broken
