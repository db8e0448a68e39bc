"""Starts the emulator of Cloud Storage with the one thing it lacks: `ifGenerationMatch`, which it ignores.

Belongs here: refusing a write of an object that is not of the generation its writer named (0: that there is none), as
https://cloud.google.com/storage/docs/request-preconditions says. Its server answers one request at a time, so nothing
happens between the look and the write. Run by `bike_assets_tests.emulators.processes`.
"""

import functools
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

Handler = Callable[..., Any]
REFUSED = "At least one of the pre-conditions you specified did not hold."


def kept(handler: Handler, name_of: Callable[[Any], str | None]) -> Handler:
    """The handler, which is only called when the condition of its request holds."""

    @functools.wraps(handler)
    def checked(request: Any, response: Any, storage: Any, *arguments: Any, **options: Any) -> Any:
        wanted, name = request.query.get("ifGenerationMatch"), name_of(request)
        if wanted is not None and name is not None:
            try:
                generation = int(storage.get_file_obj(request.params["bucket_name"], name)["generation"])
            except NotFound:
                generation = 0
            if generation != int(wanted[0]):
                response.status = HTTPStatus.PRECONDITION_FAILED
                return response.json({"error": {"code": 412, "message": REFUSED, "errors": []}})
        return handler(request, response, storage, *arguments, **options)

    return checked


def inserted(request: Any) -> str | None:
    """The object that an upload names, in its address or in its first part."""
    if named := request.query.get("name"):
        return str(named[0])
    if not isinstance(request.data, dict):
        return None
    name = (request.data.get("meta") or request.data).get("name")
    return None if name is None else str(name)


objects.insert = kept(objects.insert, inserted)
objects.delete = kept(objects.delete, lambda request: str(request.params["object_id"]))

from gcp_storage_emulator.__main__ import main  # noqa: E402  only now: it takes the handlers as they are

sys.exit(main())
