"""Who may ask what, how often, and what is noted: every route with every kind of credential, and the parts alone."""

import base64
import json
import multiprocessing
import os
import time
import types
from datetime import UTC, datetime

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fastapi import FastAPI
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from bike_serving import routes
from bike_serving.__main__ import main
from bike_serving.security import tokens
from bike_serving.security.access import Meter, Role, rule_of
from bike_serving.security.audit import AuditLog
from bike_serving.security.guard import NotConfiguredError, ensure_keys
from bike_serving.security.keys import KeyFileError, KeyRing, create_key, read_keys, revoke_key
from bike_serving.security.limits import RateLimiter
from bike_serving.security.tokens import ProviderAwayError, TokenRefusedError, TokenVerifier
from bike_serving.settings import Settings

ISSUER, AUDIENCE = "https://login.example.org/", "bike-serving"
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
STRANGER = rsa.generate_private_key(65537, 2048)
PUBLIC_PEM = RSA_KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def token(key=RSA_KEY, algorithm="RS256", kid="rsa", **claims):
    body = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "someone",
        "exp": int(time.time()) + 600,
        "roles": ["reader"],
        **claims,
    }
    return jwt.encode({k: v for k, v in body.items() if v is not None}, key, algorithm, headers={"kid": kid})


def by_hand(header, claims, signature=b"x"):
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def hmac_with_public_key():
    """The classic confusion: the public key taken for a shared secret."""
    import hashlib
    import hmac

    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": 9999999999, "roles": ["admin"]}
    head, body, _ = by_hand({"alg": "HS256", "kid": "rsa"}, claims).split(".")
    signature = hmac.new(PUBLIC_PEM, f"{head}.{body}".encode(), hashlib.sha256).digest()
    return f"{head}.{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


ADMIN_CLAIMS = {"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": 9999999999, "roles": ["admin"]}
WORTHLESS = {
    "expired": lambda: token(exp=int(time.time()) - 3600, roles=["admin"]),
    "of the future": lambda: token(nbf=int(time.time()) + 3600, roles=["admin"]),
    "for others": lambda: token(aud="another-service", roles=["admin"]),
    "of another issuer": lambda: token(iss="https://evil.example.org/", roles=["admin"]),
    "signed by a stranger": lambda: token(STRANGER, roles=["admin"]),
    "of an unknown key": lambda: token(STRANGER, kid="mine", roles=["admin"]),
    "unsigned": lambda: by_hand({"alg": "none", "kid": "rsa"}, ADMIN_CLAIMS, b""),
    "HMAC with the public key": hmac_with_public_key,
    "RS256 for an EC key": lambda: token(kid="ec", roles=["admin"]),
    "RS512": lambda: token(algorithm="RS512", roles=["admin"]),
    "bringing its own key": lambda: jwt.encode(
        ADMIN_CLAIMS,
        STRANGER,
        "RS256",
        headers={
            "jwk": json.loads(RSAAlgorithm.to_jwk(STRANGER.public_key())),
            "jku": "https://evil.example.org",
        },
    ),
    "without expiry": lambda: token(exp=None, roles=["admin"]),
    "without subject": lambda: token(sub=None, roles=["admin"]),
    "without a role": lambda: token(roles=["owner"]),
    "with roles that are none": lambda: token(roles={"admin": True}),
    "altered": lambda: token()[:-4] + "AAAA",
    "no token": lambda: "a.b.c",
    "empty": lambda: "",
    "long": lambda: "a" * 10_000,
    "of odd characters": lambda: "bike_é",
    "an unknown API key": lambda: "bike_00000000_" + "x" * 43,
    "half an API key": lambda: "bike_",
}


def keys_of_provider():
    public = {
        "rsa": RSAAlgorithm.to_jwk(RSA_KEY.public_key()),
        "ec": ECAlgorithm.to_jwk(EC_KEY.public_key()),
    }
    found = [{**json.loads(key), "kid": kid, "use": "sig"} for kid, key in public.items()]
    return {"keys": [*found, {"kty": "oct", "kid": "rsa", "k": base64.urlsafe_b64encode(b"s" * 32).decode()}]}


@pytest.fixture(scope="module")
def guarded(in_process, tmp_path_factory):
    """The application with keys and an identity provider."""
    state = tmp_path_factory.mktemp("guarded")
    (state / "jwks.json").write_text(json.dumps(keys_of_provider()))
    return in_process(state, oidc_issuer=ISSUER, oidc_audience=AUDIENCE, oidc_jwks=str(state / "jwks.json"))


def all_routes():
    app = FastAPI()
    routes.install(app)
    found = [
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
        ("GET", "/nowhere"),
        ("POST", "/v1/nowhere"),
    ]
    for path, methods in app.openapi()["paths"].items():
        shown = path.replace("{", "").replace("}", "")
        found += [(method.upper(), shown) for method in methods]
        if path.startswith("/v1/"):
            found += [(method.upper(), shown.removeprefix("/v1")) for method in methods]
    return found


ROUTES = all_routes()
OPEN = {"/health", "/ready", "/v2/health/live", "/v2/health/ready", "/webhooks/mlflow"}
OPEN |= {"/webhooks/mlflow"}  # believed by its signature, see test_webhooks
CHANGES = {"/train", "/promote_champion", "/rollback", "/approve", "/reject"}


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=lambda value: value)
def test_every_route_asks_for_a_role(guarded, method, path):
    def status(role=None, **headers):
        return guarded.client(role).request(method, path, headers=headers).status_code

    if path in OPEN:
        assert status() not in (401, 403)
        return
    assert status() == 401
    for name, made in WORTHLESS.items():
        headers = {"Authorization": b"Bearer " + made().encode("latin-1")}
        assert status(**headers) == 401, name
    assert status(Authorization="Basic !!!") == status(Authorization="Digest x") == 401
    change = path.removeprefix("/v1") in CHANGES
    reader = {status(Role.READER), status(Authorization=f"Bearer {token()}")}
    assert reader == {403} if change else not reader & {401, 403}
    assert not {
        status(Role.ADMIN),
        status(Authorization=f"Bearer {token(roles=['reader', 'admin'])}"),
        status(Authorization=f"Bearer {token(EC_KEY, 'ES256', 'ec', roles='admin')}"),
    } & {401, 403}


def test_a_path_that_nobody_named_is_closed():
    for path in ("/x", "/v1/x", "//health", "/health/", "/v1/v1/health", "/HEALTH", "/v3/infer"):
        assert rule_of(path).role is not None, path


def test_refusals_say_what_to_do_and_nothing_about_the_credential(guarded):
    answer = guarded.client(None).get("/v1/model", headers={"X-API-Key": "bike_00000000_secret"})
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == 'Bearer realm="bike-serving", error="invalid_token"'
    assert "secret" not in answer.text
    assert "X-API-Key" in guarded.client(None).get("/v1/model").json()["detail"]
    # A browser asks for the key where a person reads, and nowhere else.
    assert guarded.client(None).get("/docs").headers["www-authenticate"].startswith("Basic ")
    assert guarded.client(None).get("/docs", auth=("anyone", guarded.keys[Role.READER])).status_code == 200


def test_answers_carry_the_headers_that_keep_browsers_careful(local):
    for path in ("/health", "/v1/model", "/nowhere"):
        headers = local.client().get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in headers
    preflight = {"Origin": "https://evil.example.org", "Access-Control-Request-Method": "POST"}
    assert local.client(None).request("OPTIONS", "/v1/predict", headers=preflight).status_code == 401
    assert (
        local.client().get("/v1/model", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    )
    assert local.client().get("/v1/model", headers={"X-Request-Id": "a b"}).headers["x-request-id"] != "a b"


def test_only_origins_that_were_named_may_ask_from_a_page(in_process, tmp_path):
    service = in_process(tmp_path, cors_origins="https://map.example.org")
    for origin, allowed in (("https://map.example.org", True), ("https://evil.example.org", False)):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        answer = service.client(None).request("OPTIONS", "/v1/predict", headers=headers)
        assert ("access-control-allow-origin" in answer.headers) == allowed


# --- limits -----


def test_the_hundred_and_first_forecast_of_a_minute_is_refused_to_that_caller_alone(
    in_process, tmp_path, monkeypatch
):
    service = in_process(tmp_path)
    keys = [create_key(tmp_path / "keys.json", f"app {n}", Role.READER)[1] for n in range(2)]
    time.sleep(1.1)  # the ring looks at its file once a second

    now = time.monotonic()  # stands still, so that a slow machine gives no token back meanwhile
    monkeypatch.setattr("bike_serving.security.limits.time", types.SimpleNamespace(monotonic=lambda: now))

    def ask(key, path="/v1/predict"):
        return service.client(key=key).post(path, content=b"{}")

    answers = [ask(keys[0], "/predict" if n % 2 else "/v1/predict") for n in range(100)]
    assert {answer.status_code for answer in answers} == {422}
    assert answers[0].headers["ratelimit-policy"] == '"predict";q=100;w=60'
    assert answers[0].headers["ratelimit"].startswith('"predict";r=99;')
    refused = ask(keys[0])
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 2
    assert refused.json()["type"] == "urn:bike-serving:too-many-requests"
    assert ask(keys[1]).status_code == 422
    # Looking at the model costs nothing.
    assert service.client(key=keys[0]).get("/v1/model").status_code == 200


def test_a_bucket_refills_evenly_and_never_beyond_its_size(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("bike_serving.security.limits.time.monotonic", lambda: now)
    limiter = RateLimiter(tmp_path / "limits.bin")
    assert [limiter.take("a", 10, 60).allowed for _ in range(11)] == [True] * 10 + [False]
    assert limiter.take("a", 10, 60).wait_seconds == 6
    now += 6
    assert [limiter.take("a", 10, 60).allowed for _ in range(2)] == [True, False]
    now += 10_000
    assert [limiter.take("a", 10, 60).allowed for _ in range(11)] == [True] * 10 + [False]
    # The machine was started again: its clock begins anew, and nobody is locked out.
    now = 5.0
    verdict = limiter.take("a", 10, 60)
    assert (verdict.allowed, verdict.remaining) == (True, 9)


def _take(path, times, results):
    limiter = RateLimiter(path)
    results.put(sum(limiter.take("shared", 1000, 3600).allowed for _ in range(times)))


def test_worker_processes_share_a_limit(tmp_path):
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    results = context.Queue()
    workers = [context.Process(target=_take, args=(tmp_path / "limits.bin", 700, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    passed = sum(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    assert passed in (1000, 1001)  # a token may come back while they run


def test_limits_that_cannot_be_shared_are_kept_alone(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    limiter = RateLimiter(tmp_path / "file" / "limits.bin")
    assert [limiter.take("a", 1, 60).allowed for _ in range(2)] == [True, False]
    assert "counts rate limits for itself" in caplog.text


def test_more_callers_than_slots_only_forget_the_quietest(tmp_path):
    limiter = RateLimiter(tmp_path / "limits.bin")
    for _ in range(5):
        limiter.take("busy", 5, 3600)
    for n in range(20_000):
        limiter.take(f"caller {n}", 1000, 60)
    assert not limiter.take("busy", 5, 3600).allowed


# --- keys -----


def test_a_key_is_kept_as_a_hash_that_only_its_owner_reads(tmp_path):
    path = tmp_path / "keys.json"
    key_id, key = create_key(path, "app", Role.READER, {Meter.PREDICT: 5})
    assert path.stat().st_mode & 0o777 == 0o600
    assert key.split("_", 2)[2] not in path.read_text()
    caller = KeyRing(path).find(key)
    assert (caller.id, caller.role, caller.limits) == (f"key:{key_id}", Role.READER, {Meter.PREDICT: 5})
    assert KeyRing(path).find(key[:-1] + ("A" if key[-1] != "A" else "B")) is None


def test_a_running_service_follows_the_file_of_keys(tmp_path, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr("bike_serving.security.keys.time.monotonic", lambda: now)
    path = tmp_path / "keys.json"
    key_id, key = create_key(path, "app", Role.ADMIN)
    ring = KeyRing(path)
    revoke_key(path, key_id)
    now += 2
    assert ring.find(key) is None
    _, other = create_key(path, "app", Role.ADMIN)
    now += 2
    assert ring.find(other)
    path.write_text("{")  # a hand slipped: those who work go on working
    now += 2
    assert ring.find(other)
    path.unlink()
    now += 2
    assert ring.find(other) is None


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        '{"format": 2, "keys": []}',
        '{"format": 1, "keys": [{}]}',
        '{"format": 1, "keys": [{"id": "a", "role": "king", "limits": {}}]}',
    ],
)
def test_a_damaged_file_of_keys_is_told(tmp_path, content):
    (tmp_path / "keys.json").write_text(content)
    (tmp_path / "keys.json").chmod(0o600)
    with pytest.raises(KeyFileError, match=r"keys\.json"):
        read_keys(tmp_path / "keys.json")


def test_keys_that_others_may_write_are_not_trusted(tmp_path):
    create_key(tmp_path / "keys.json", "app", Role.READER)
    (tmp_path / "keys.json").chmod(0o666)
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_keys(tmp_path / "keys.json")


def test_a_laptop_makes_its_first_keys_and_prod_refuses_to_start(tmp_path):
    told = ensure_keys(Settings(home=tmp_path))
    for role in Role:
        file = tmp_path / "serving" / f"{role}.key"
        assert file.stat().st_mode & 0o777 == 0o600
        key = file.read_text().strip()
        assert any(str(file) in line for line in told)
        assert not any(key in line for line in told)
        assert KeyRing(tmp_path / "serving" / "keys.json").find(key).role is role
    assert ensure_keys(Settings(home=tmp_path)) == []
    assert ensure_keys(Settings(home=tmp_path, env="prod")) == []
    with pytest.raises(NotConfiguredError, match="bike-serving keys create"):
        ensure_keys(Settings(home=tmp_path / "other", env="prod"))
    provider = Settings(home=tmp_path / "other", env="prod", oidc_issuer=ISSUER, oidc_audience=AUDIENCE)
    assert ensure_keys(provider) == []


def test_the_command_makes_lists_and_revokes_keys(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BIKE_SERVING_HOME", str(tmp_path))
    main(["keys", "create", "--name", "app", "--role", "admin", "--train-per-hour", "3"])
    key = capsys.readouterr().out.strip()
    path = tmp_path / "serving" / "keys.json"
    caller = KeyRing(path).find(key)
    assert (caller.role, caller.limits) == (Role.ADMIN, {Meter.TRAIN: 3})
    main(["keys", "list"])
    listed = capsys.readouterr().out
    assert listed.split("\t")[0] == key.split("_")[1]
    assert "train=3" in listed
    assert key.split("_", 2)[2] not in listed
    main(["keys", "revoke", key.split("_")[1]])
    assert KeyRing(path).find(key) is None
    for wrong in (["revoke", "nobody"], ["create", "--name", "a\tb"]):
        with pytest.raises(SystemExit, match="bike-serving: "):
            main(["keys", *wrong])


def test_the_service_does_not_start_in_prod_without_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("BIKE_SERVING_ENV", "prod")
    with pytest.raises(SystemExit, match="bike-serving: there is no API key"):
        main(["--home", str(tmp_path)])
    monkeypatch.setenv("BIKE_SERVING_OIDC_ISSUER", ISSUER)
    with pytest.raises(SystemExit, match="oidc_audience must be set"):
        main(["--home", str(tmp_path)])


# --- tokens -----


def verifier(tmp_path, **changes):
    (tmp_path / "jwks.json").write_text(json.dumps(keys_of_provider()))
    settings = {"jwks": str(tmp_path / "jwks.json"), "role_claim": "roles", **changes}
    return TokenVerifier(ISSUER, AUDIENCE, **settings)


def test_a_token_is_verified_once_and_remembered_until_it_expires(tmp_path, monkeypatch):
    judge, shown = verifier(tmp_path), token(roles=["admin"])
    assert judge.remembered(shown) is None
    assert judge.verify(shown).role is Role.ADMIN
    assert judge.remembered(shown).id == "oidc:someone"
    later = time.time() + 3600
    monkeypatch.setattr(tokens.time, "time", lambda: later)
    assert judge.remembered(shown) is None


def test_the_role_may_lie_in_an_object_or_a_sentence(tmp_path):
    judge = verifier(tmp_path, role_claim="realm_access.roles")
    assert judge.verify(token(realm_access={"roles": ["x", "admin"]})).role is Role.ADMIN
    with pytest.raises(TokenRefusedError, match=r"realm_access\.roles"):
        judge.verify(token(realm_access="admin"[:0]))
    assert verifier(tmp_path, role_claim="scope").verify(token(scope="openid reader")).role is Role.READER


def test_keys_come_from_the_issuer_and_new_ones_are_found(monkeypatch, tmp_path):
    asked, now = [], 1000.0
    monkeypatch.setattr(tokens.time, "monotonic", lambda: now)
    served = {"keys": keys_of_provider()["keys"][1:]}

    def get(url):
        asked.append(url)
        if url.endswith("openid-configuration"):
            return {"issuer": ISSUER, "jwks_uri": "https://login.example.org/keys"}
        return served

    monkeypatch.setattr(tokens, "_get", get)
    judge = TokenVerifier(ISSUER, AUDIENCE, None, "roles")
    with pytest.raises(TokenRefusedError, match="not signed with a key of the issuer"):
        judge.verify(token())
    assert len(asked) == 2
    served = keys_of_provider()
    with pytest.raises(TokenRefusedError):  # whoever makes up key ids does not make us ask each time
        judge.verify(token())
    assert len(asked) == 2
    now += 31
    assert judge.verify(token()).role is Role.READER


def test_a_provider_that_is_away_is_not_the_callers_fault(in_process, tmp_path):
    with pytest.raises(ProviderAwayError):
        verifier(tmp_path, jwks=str(tmp_path / "none.json")).verify(token())
    service = in_process(
        tmp_path, oidc_issuer=ISSUER, oidc_audience=AUDIENCE, oidc_jwks=str(tmp_path / "none.json")
    )
    answer = service.client(None).get("/v1/model", headers={"Authorization": f"Bearer {token()}"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")


@pytest.mark.parametrize(
    "url", ["http://login.example.org/keys", "file:///etc/passwd", "ftp://x/y", "https//x"]
)
def test_keys_are_taken_over_tls_only(url):
    with pytest.raises(ValueError, match="https"):
        tokens.require_trustworthy(url)
    tokens.require_trustworthy("http://127.0.0.1:8080/keys")


# --- access log -----


def test_the_access_log_says_who_did_what_and_holds_no_secret(in_process, tmp_path):
    service = in_process(tmp_path)
    began = datetime.now(UTC)
    service.client().get("/v1/model?token=hush", headers={"X-Request-Id": "mine"})
    service.client().post("/v1/train", json={})
    service.client(None).get("/v1/model", headers={"Authorization": f"Bearer {token()}"})
    service.client(None).get("/health")
    text = (tmp_path / "audit.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/v1/model", 200),
        ("/v1/train", 403),
        ("/v1/model", 401),
    ]
    reader = f"key:{service.keys[Role.READER].split('_')[1]}"
    assert [line["caller"] for line in lines] == [reader, reader, None]
    assert lines[0]["request_id"] == "mine"
    assert datetime.fromisoformat(lines[0]["at"]) >= began.replace(microsecond=0)
    assert "hush" not in text
    assert not any(key.split("_", 2)[2] in text for key in service.keys.values())
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600


def test_reads_may_be_left_out_of_the_access_log(in_process, tmp_path):
    service = in_process(tmp_path, audit_reads=False)
    service.client().get("/v1/model")
    service.client().get("/nowhere")
    assert [json.loads(line)["status"] for line in (tmp_path / "audit.jsonl").read_text().splitlines()] == [
        404
    ]


def test_a_full_access_log_makes_room_and_an_unwritable_one_stops_nobody(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("bike_serving.security.audit._LOOK_EVERY", 1)
    one, other = (AuditLog(tmp_path / "audit.jsonl", max_bytes=2000) for _ in range(2))
    for n in range(400):
        (one if n % 2 else other).write(n=n, text="x" * 43)
    kept = sorted(path.name for path in tmp_path.glob("audit*"))
    assert kept == ["audit.jsonl", *(f"audit.jsonl.{n}" for n in range(1, 5))]
    numbers = [
        json.loads(line)["n"]
        for name in reversed(kept)
        for line in (tmp_path / name).read_text().splitlines()
    ]
    assert numbers[-1] == 399
    assert len(set(numbers)) == len(numbers)
    (tmp_path / "file").write_text("")
    broken = AuditLog(tmp_path / "file" / "audit.jsonl")
    for _ in range(3):
        broken.write(n=1)
    assert len([record for record in caplog.records if "cannot be written" in record.message]) == 1


# --- bodies -----


@pytest.mark.parametrize(("length", "status"), [("99999999", 413), ("9" * 30, 400)])
def test_a_body_that_announces_too_much_is_not_read(local, length, status):
    answer = local.client().post("/v1/predict", content=b"{}", headers={"Content-Length": length})
    assert answer.status_code == status
