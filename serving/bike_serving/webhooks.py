"""Whether a webhook comes from our MLflow, now, and for the first time.

Belongs here: MLflow's signature (mlflow.webhooks.delivery, after the Standard Webhooks convention). Does not belong
here: HTTP, and what a webhook leads to.
"""

import base64
import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Mapping

from bike_assets.core.errors import PermanentError

TOLERANCE_SECONDS = 300
"""How far a webhook's clock may be from ours; MLflow tries three times within seconds."""

_REMEMBERED = 4096
_MAX_HEADER = 200


class WebhookRefusedError(PermanentError):
    """The webhook is not believed."""


class Webhooks:
    """Verifies the webhooks signed with one secret; remembers which were delivered, each process for itself."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._delivered: OrderedDict[str, None] = OrderedDict()

    def verify(self, headers: Mapping[str, str], body: bytes, now: float) -> None:
        """Believe a webhook once.

        Args:
            headers: the request's, with names in any case.
            body: its bytes as they came.
            now: seconds since 1970.

        Raises:
            WebhookRefusedError: it is not signed with the secret, too old, from the future, or was delivered before.
        """
        delivery, timestamp, signature = (
            headers.get(name, "")[:_MAX_HEADER]
            for name in ("X-MLflow-Delivery-Id", "X-MLflow-Timestamp", "X-MLflow-Signature")
        )
        signed = f"{delivery}.{timestamp}.".encode() + body
        digest = base64.b64encode(hmac.new(self._secret, signed, hashlib.sha256).digest())
        if not hmac.compare_digest(b"v1," + digest, signature.encode()):
            raise WebhookRefusedError("the webhook is not signed with this service's secret")
        if not timestamp.isdecimal() or abs(now - int(timestamp)) > TOLERANCE_SECONDS:
            raise WebhookRefusedError(
                f"the webhook's time differs by more than {TOLERANCE_SECONDS} s; set both clocks, or send it anew"
            )
        if delivery in self._delivered:
            raise WebhookRefusedError("this webhook was delivered before")
        self._delivered[delivery] = None
        if len(self._delivered) > _REMEMBERED:
            self._delivered.popitem(last=False)
