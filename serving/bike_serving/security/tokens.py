"""Bearer tokens of an identity provider: JWT (RFC 7519) signed with RS256 or ES256, as OpenID Connect has them.

Belongs here: whether a token is genuine, for us, still valid, and which role it carries. Keys come from a place that
the operator named, never from the token (`jku`, `x5u` and embedded keys are not looked at). Does not belong here: our
own API keys.
"""

import hashlib
import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import jwt

from bike_assets.core.errors import PermanentError, TransientError
from bike_serving.security.access import Role
from bike_serving.security.keys import Caller

log = logging.getLogger("bike_serving")

KEY_TYPES: Final = {"RS256": "RSA", "ES256": "EC"}
"""Signatures that are accepted, and the type of key each must be made with: a token cannot choose another."""

_LEEWAY_SECONDS: Final = 30
_MAX_TOKEN_BYTES: Final = 8192
_REMEMBERED: Final = 1024
_FRESH_SECONDS: Final = 3600.0
_AGAIN_SECONDS: Final = 30.0


class TokenRefusedError(PermanentError):
    """The token does not prove a role here."""


class ProviderAwayError(TransientError):
    """The provider's keys cannot be had now, so no token can be judged."""


class TokenVerifier:
    """Judges tokens of one issuer. Safe to use from several threads."""

    def __init__(self, issuer: str, audience: str, jwks: str | None, role_claim: str) -> None:
        """Where tokens come from.

        Args:
            issuer: `iss` of its tokens; without `jwks` also where its discovery document is.
            audience: `aud` that its tokens for this service have.
            jwks: file or URL of its public keys (RFC 7517).
            role_claim: claim with a role or a list of roles; dots lead into objects, as in `realm_access.roles`.
        """
        self._issuer, self._audience, self._role_claim = issuer, audience, role_claim.split(".")
        self._keys = _KeySource(issuer, jwks)
        self._known: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()
        self._lock = threading.Lock()

    def remembered(self, token: str) -> Caller | None:
        """The caller of a token that was verified before and is still valid; costs a look-up."""
        found = self._known.get(hashlib.sha256(token.encode()).digest())
        return found[0] if found and time.time() < found[1] else None

    def verify(self, token: str) -> Caller:
        """The caller that a token proves; may fetch keys, so not for an event loop.

        Raises:
            TokenRefusedError: it proves nothing, and why; the token itself is not repeated.
            ProviderAwayError: the issuer's keys cannot be had.
        """
        if len(token) > _MAX_TOKEN_BYTES:
            raise TokenRefusedError("the token is too long")
        try:
            header = jwt.get_unverified_header(token)
            algorithm = header.get("alg")
            if algorithm not in KEY_TYPES:
                raise TokenRefusedError("the token is not signed with RS256 or ES256")
            key = self._keys.find(header.get("kid"), KEY_TYPES[algorithm])
            claims: dict[str, Any] = jwt.decode(
                token,
                jwt.PyJWK(dict(key), algorithm=algorithm),
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError as error:
            raise TokenRefusedError("the token has expired; get a new one") from error
        except jwt.PyJWTError as error:
            raise TokenRefusedError(f"the token is not valid here ({type(error).__name__})") from error
        caller = Caller(f"oidc:{claims['sub']}"[:120], self._role(claims), {})
        with self._lock:
            self._known[hashlib.sha256(token.encode()).digest()] = (
                caller,
                float(claims["exp"]) + _LEEWAY_SECONDS,
            )
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return caller

    def _role(self, claims: Mapping[str, Any]) -> Role:
        value: Any = claims
        for part in self._role_claim:
            value = value.get(part) if isinstance(value, dict) else None
        names = value.split() if isinstance(value, str) else value
        if isinstance(names, list):
            for role in (Role.ADMIN, Role.READER):
                if role.value in names:
                    return role
        raise TokenRefusedError(
            f"the token's claim {'.'.join(self._role_claim)} names neither reader nor admin"
        )


class _KeySource:
    """The issuer's public keys, fetched when needed and not more often than every half minute."""

    def __init__(self, issuer: str, jwks: str | None) -> None:
        self._issuer, self._place = issuer, jwks
        self._keys: list[dict[str, Any]] = []
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")
        self._lock = threading.Lock()

    def find(self, kid: object, key_type: str) -> Mapping[str, Any]:
        with self._lock:
            now = time.monotonic()
            found = self._matching(kid, key_type)
            stale = now - self._fetched_at > _FRESH_SECONDS
            if (stale or not found) and now - self._tried_at > _AGAIN_SECONDS:
                self._tried_at = now
                self._refresh(now)
                found = self._matching(kid, key_type)
            if not self._keys:
                raise ProviderAwayError("the identity provider's keys cannot be had; try again later")
        if len(found) != 1:
            raise TokenRefusedError("the token is not signed with a key of the issuer")
        return found[0]

    def _matching(self, kid: object, key_type: str) -> list[dict[str, Any]]:
        usable = [key for key in self._keys if key.get("kty") == key_type and key.get("use", "sig") == "sig"]
        return usable if kid is None else [key for key in usable if key.get("kid") == kid]

    def _refresh(self, now: float) -> None:
        try:
            keys = self._fetch()
        except (httpx.HTTPError, OSError, ValueError, KeyError, TypeError) as error:
            log.error("keys of the identity provider cannot be read (%s: %s)", type(error).__name__, error)
            return
        self._keys, self._fetched_at = keys, now

    def _fetch(self) -> list[dict[str, Any]]:
        place = self._place
        if place is None:
            url = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
            document = _get(url)
            if document["issuer"] != self._issuer:
                raise ValueError(f"{url} is of another issuer")
            place = str(document["jwks_uri"])
        stored = _get(place) if "://" in place else json.loads(Path(place).read_bytes())
        return [dict(key) for key in stored["keys"]]


def _get(url: str) -> Any:
    require_trustworthy(url)
    answer = httpx.get(url, timeout=5, follow_redirects=False)
    answer.raise_for_status()
    return answer.json()


def require_trustworthy(url: str) -> None:
    """Keys are only taken over TLS, or from this very machine.

    Raises:
        ValueError: neither.
    """
    parts = urlsplit(url)
    local = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts.scheme != "https" and not (local and parts.scheme == "http"):
        raise ValueError(f"{url} is not an https address")
