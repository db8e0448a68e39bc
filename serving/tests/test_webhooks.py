"""MLflow's webhooks: signed by MLflow's own code, believed once, and nothing else believed."""

import time

import pytest
from mlflow.webhooks.delivery import _generate_hmac_signature

from bike_serving.webhooks import WebhookRefusedError, Webhooks

SIGNER = "open sesame"
NOW = 1_700_000_000
BODY = '{"entity":"model_version_alias","action":"created"}'


def headers(signer=SIGNER, body=BODY, timestamp=str(NOW), delivery="one"):
    return {
        "X-MLflow-Signature": _generate_hmac_signature(signer, delivery, timestamp, body),
        "X-MLflow-Timestamp": timestamp,
        "X-MLflow-Delivery-Id": delivery,
    }


def test_what_mlflow_signs_is_believed_once():
    webhooks = Webhooks(SIGNER)
    webhooks.verify(headers(), BODY.encode(), NOW + 200)
    webhooks.verify(headers(delivery="two"), BODY.encode(), NOW - 200)
    with pytest.raises(WebhookRefusedError, match="before"):
        webhooks.verify(headers(), BODY.encode(), NOW)


@pytest.mark.parametrize(
    ("given", "body", "said"),
    [
        ({}, BODY, "not signed"),
        (headers(signer="other"), BODY, "not signed"),
        (headers(), BODY + " ", "not signed"),
        ({**headers(), "X-MLflow-Timestamp": str(NOW + 1)}, BODY, "not signed"),
        ({**headers(), "X-MLflow-Delivery-Id": "two"}, BODY, "not signed"),
        ({**headers(), "X-MLflow-Signature": "v1,é"}, BODY, "not signed"),
        (headers(timestamp=str(NOW - 301)), BODY, "300 s"),
        (headers(timestamp=str(NOW + 301)), BODY, "300 s"),
        (headers(timestamp="-1"), BODY, "300 s"),
        (headers(timestamp=""), BODY, "300 s"),
    ],
)
def test_nothing_else_is_believed(given, body, said):
    webhooks = Webhooks(SIGNER)
    with pytest.raises(WebhookRefusedError, match=said):
        webhooks.verify(given, body.encode(), NOW)
    webhooks.verify(headers(), BODY.encode(), NOW)  # and a refused delivery uses nothing up


def test_the_memory_of_deliveries_is_bounded():
    webhooks = Webhooks(SIGNER)
    for number in range(5000):
        webhooks.verify(headers(delivery=str(number)), BODY.encode(), NOW)
    assert len(webhooks._delivered) == 4096


def test_a_believed_webhook_makes_the_service_look_at_once(in_process, tmp_path, monkeypatch):
    service = in_process(tmp_path, webhook_secret=SIGNER)
    client, looks = service.client(None), []
    monkeypatch.setattr(service.app.state.holder, "look_soon", lambda: looks.append(True))
    now = str(int(time.time()))
    refused = client.post("/webhooks/mlflow", content=BODY, headers=headers(signer="other", timestamp=now))
    assert refused.status_code == 401
    assert refused.json()["type"] == "urn:bike-serving:webhook-refused"
    assert looks == []
    assert client.post("/webhooks/mlflow", content=BODY, headers=headers(timestamp=now)).status_code == 204
    assert looks == [True]
    counts = service.client().get("/metrics").text
    assert 'bike_serving_webhooks_total{result="refused"} 1.0' in counts
    assert 'bike_serving_webhooks_total{result="taken"} 1.0' in counts


def test_without_a_secret_there_are_no_webhooks(in_process, tmp_path):
    answer = in_process(tmp_path).client(None).post("/webhooks/mlflow", content=BODY, headers=headers())
    assert answer.status_code == 404
    assert "BIKE_SERVING_WEBHOOK_SECRET" in answer.json()["detail"]
