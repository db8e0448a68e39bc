"""The middleware every request passes first: who asks, whether it may, how often, and a line in the access log.

Belongs here: HTTP's side of access (headers in, 401, 403 and 429 out, security headers). It is plain ASGI, so that it
costs microseconds and also guards what is not a FastAPI route. Does not belong here: how keys, tokens and limits work.
"""

import base64
import binascii
import itertools
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bike_assets.core.errors import PermanentError
from bike_serving import logs
from bike_serving.problems import problem
from bike_serving.security.access import Meter, Role, Rule, rule_of
from bike_serving.security.audit import AuditLog
from bike_serving.security.keys import KEY_PREFIX, Caller, KeyRing, create_key, read_keys, write_private
from bike_serving.security.limits import RateLimiter, Verdict
from bike_serving.security.tokens import ProviderAwayError, TokenRefusedError, TokenVerifier
from bike_serving.settings import Settings

PERIODS: Final[Mapping[Meter, int]] = {Meter.PREDICT: 60, Meter.TRAIN: 3600}
"""Seconds over which each limit is counted."""

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_DOCUMENTATION: Final = frozenset({"/", "/docs", "/openapi.json"})
_DOCUMENTATION_POLICY: Final = (
    b"default-src 'none'; connect-src 'self'; img-src 'self' data:; script-src 'self' 'unsafe-inline'; "
    b"style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    b"x-content-type-options": b"nosniff",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}
"""What every answer tells a browser, unless the answer says otherwise itself."""
_ALL: Final = tuple(_HEADERS.items())

SECURITY_HEADERS: Final = b"".join(b"%b: %b\r\n" % header for header in _ALL)
"""The same as it is sent."""

RawHeaders = Sequence[tuple[bytes, bytes]]


class Credentials(NamedTuple):
    """What a request shows of its sender: an API key, an Authorization header, an id that it gave itself."""

    key: str | None
    authorization: str | None
    request_id: str | None


class NotConfiguredError(PermanentError):
    """The service would start with nobody able to ask it."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a request is not passed on."""

    response: Response
    caller: Caller | None = None


class Access:
    """What the guard asks: the keys, the tokens' verifier, the counts and the log of one process."""

    def __init__(self, settings: Settings) -> None:
        """Open everything; a local service without keys makes its first ones.

        Raises:
            NotConfiguredError: in prod there is neither a key nor an identity provider.
            KeyFileError: the file of keys cannot be used.
        """
        ensure_keys(settings)
        self.keys = KeyRing(settings.keys_path)
        self.tokens = (
            TokenVerifier(
                settings.oidc_issuer,
                settings.oidc_audience or "",
                settings.oidc_jwks,
                settings.oidc_role_claim,
            )
            if settings.oidc_issuer
            else None
        )
        self.limiter = RateLimiter(settings.state_folder / "limits.bin", shared=settings.workers > 1)
        self.audit = AuditLog(settings.state_folder / "audit.jsonl")
        self.audit_reads = settings.audit_reads
        self.limits = {Meter.PREDICT: settings.predict_per_minute, Meter.TRAIN: settings.train_per_hour}
        self._process = secrets.token_hex(6)
        self._numbers = itertools.count()

    def new_request_id(self) -> str:
        """An id for a request that brought none."""
        return f"{self._process}-{next(self._numbers):x}"

    def known(self, shown: Credentials) -> Caller | None:
        """Who shows a key, or a token that was verified before; None where nobody does or it takes longer to say."""
        key = _presented(shown.key, shown.authorization)
        if not key:
            return None
        if key.startswith(KEY_PREFIX):
            return self.keys.find(key)
        return self.tokens.remembered(key) if self.tokens else None

    def count(self, caller: Caller, meter: Meter) -> tuple[Verdict, RawHeaders] | None:
        """Count a request; None where the caller has no limit.

        Returns:
            Whether it may pass, and what the answer tells of the limit (RateLimit headers, a draft of the IETF).
        """
        limit = caller.limits.get(meter, self.limits[meter])
        if not limit:
            return None
        verdict = self.limiter.take(f"{caller.id} {meter}", limit, PERIODS[meter])
        left = b'"%s";r=%d;t=%d' % (meter.encode(), verdict.remaining, verdict.wait_seconds)
        return verdict, ((b"ratelimit-policy", _policy(meter, limit)), (b"ratelimit", left))

    def note(
        self,
        request_id: str,
        caller: Caller | None,
        client: str | None,
        method: str,
        path: str,
        status: int,
        seconds: float,
    ) -> None:
        """Write a line of the access log."""
        self.audit.write(
            request_id=request_id,
            caller=caller.id if caller else None,
            client=client,
            method=method[:16],
            path=path[:200],
            status=status,
            ms=round(seconds * 1000, 2),
        )

    def close(self) -> None:
        """Give files back."""
        self.limiter.close()
        self.audit.close()


def ensure_keys(settings: Settings) -> list[str]:
    """Keys for a first start: on a laptop and in compose one of each role, in files only their owner can read.

    Returns:
        What to tell the operator, a line each; nothing when there are keys already.

    Raises:
        NotConfiguredError: in prod there is neither a key nor an identity provider.
        KeyFileError: the file of keys cannot be used.
    """
    if read_keys(settings.keys_path) or settings.oidc_issuer:
        return []
    if settings.env == "prod":
        raise NotConfiguredError(
            f"there is no API key in {settings.keys_path} and no identity provider; make a key with "
            "`bike-serving keys create --name NAME --role admin` or set BIKE_SERVING_OIDC_ISSUER"
        )
    told = []
    for role in Role:
        _, key = create_key(settings.keys_path, f"first {role}", role)
        file = settings.keys_path.with_name(f"{role}.key")
        write_private(file, key + "\n")
        told.append(f"made a key for the role {role}: it is in {file}")
    return told


class Guard:
    """ASGI middleware: passes on what the rules allow, and answers everything else itself."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # a web socket is closed by the server when nobody answers it
        path: str = scope["path"]
        rule = rule_of(path)
        began = time.perf_counter()
        status = 0
        extra: list[tuple[bytes, bytes]] = []

        async def with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), *extra]
                told = {name for name, _ in headers} & _HEADERS.keys()
                headers += [header for header in _HEADERS.items() if header[0] not in told] if told else _ALL
                message["headers"] = headers
            await send(message)

        if path == "/docs":
            extra.append((b"content-security-policy", _DOCUMENTATION_POLICY))
        if rule.role is None:
            await self._app(scope, receive, with_headers)
            return
        shown = credentials(scope["headers"])
        request_id = shown.request_id or self._access.new_request_id()
        scope["request_id"] = request_id
        logs.request_id.set(request_id)
        extra.append((b"x-request-id", request_id.encode()))
        caller: Caller | None = None
        try:
            found = await self._judge(path, rule, shown, extra)
            if isinstance(found, _Refusal):
                caller = found.caller
                await found.response(scope, receive, with_headers)
            else:
                caller = scope["caller"] = found
                await self._app(scope, receive, with_headers)
        finally:
            if self._access.audit_reads or status >= 400 or rule.role is Role.ADMIN:
                client = scope.get("client")
                seconds = time.perf_counter() - began
                self._access.note(
                    request_id, caller, client[0] if client else None, scope["method"], path, status, seconds
                )

    async def _judge(
        self,
        path: str,
        rule: Rule,
        shown: Credentials,
        extra: list[tuple[bytes, bytes]],
    ) -> Caller | _Refusal:
        """The caller whose request may pass, or the answer in its place."""
        try:
            caller = await self._identify(shown)
        except TokenRefusedError as error:
            return _unauthorised(path, str(error), "invalid_token")
        except ProviderAwayError as error:
            return _Refusal(problem(503, "identity-provider-away", str(error), {"Retry-After": "30"}))
        if caller is None:
            return _unauthorised(
                path, "give an API key in the header X-API-Key, or a key or token in Authorization: Bearer"
            )
        if not rule.allows(caller.role):
            return _Refusal(
                problem(403, "forbidden", f"this needs the role admin; yours is {caller.role}"), caller
            )
        if rule.meter is not None and (counted := self._access.count(caller, rule.meter)):
            verdict, told = counted
            extra.extend(told)
            if verdict.allowed:
                return caller
            return _Refusal(
                problem(
                    429,
                    "too-many-requests",
                    f"the limit of {rule.meter} requests is used up; ask again in {verdict.wait_seconds} s",
                    {"Retry-After": str(verdict.wait_seconds)},
                ),
                caller,
            )
        return caller

    async def _identify(self, shown: Credentials) -> Caller | None:
        key = _presented(shown.key, shown.authorization)
        if not key:
            return None
        if caller := self._access.known(shown):
            return caller
        if key.startswith(KEY_PREFIX):
            raise TokenRefusedError("the API key is not known here, or was revoked")
        tokens = self._access.tokens
        if tokens is None:
            raise TokenRefusedError("that is no API key of this service, which takes no other tokens")
        return await run_in_threadpool(tokens.verify, key)


@lru_cache(maxsize=256)
def _policy(meter: Meter, limit: int) -> bytes:
    return b'"%s";q=%d;w=%d' % (meter.encode(), limit, PERIODS[meter])


def credentials(headers: RawHeaders) -> Credentials:
    """What a request shows of its sender; an odd request id is not taken over."""
    key = authorization = request_id = None
    for name, value in headers:
        if name == b"x-api-key":
            key = value.decode("latin-1").strip()
        elif name == b"authorization":
            authorization = value.decode("latin-1")
        elif name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            request_id = value.decode()
    return Credentials(key, authorization, request_id)


def _presented(key: str | None, authorization: str | None) -> str | None:
    """The key or token that a request shows, wherever it does."""
    if key is not None or authorization is None:
        return key
    scheme, _, value = authorization.partition(" ")
    scheme, value = scheme.lower(), value.strip()
    if scheme == "bearer":
        return value
    # What a browser sends for /docs: any name, the key as password.
    return _basic_password(value) if scheme == "basic" else None


def _basic_password(value: str) -> str | None:
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return None


def _unauthorised(path: str, detail: str, error: str | None = None) -> _Refusal:
    challenge = 'Bearer realm="bike-serving"' + (f', error="{error}"' if error else "")
    if path in _DOCUMENTATION or path.startswith("/docs/"):
        challenge = 'Basic realm="any name, an API key as password", ' + challenge
    return _Refusal(problem(401, "unauthorised", detail, {"WWW-Authenticate": challenge}))
