"""The command `bike-serving`: listens until told to stop. `bike-serving keys` is in `security.command`."""

import argparse
import os
import sys
import tempfile
from typing import Any

from pydantic import SecretStr, ValidationError

from bike_assets.core.errors import BikeError
from bike_serving.logs import log_config
from bike_serving.settings import WORKERS_VARIABLE, Settings


def _parser() -> argparse.ArgumentParser:
    variables = "\n".join(
        f"  BIKE_SERVING_{name.upper():26}{field.description}"
        + (f" ({field.default})" if field.default is not None else "")
        for name, field in Settings.model_fields.items()
    )
    parser = argparse.ArgumentParser(
        prog="bike-serving",
        description="Serve the champion's bicycle traffic forecasts over HTTP; documentation at /docs. "
        "`bike-serving keys --help`: API keys.",
        epilog=f"environment variables (defaults):\n{variables}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on")
    parser.add_argument("--workers", type=int, help="processes that answer")
    parser.add_argument("--home", help="the platform's home")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run the service, or make and revoke its keys."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["keys"]:
        from bike_serving.security.command import main as keys

        try:
            keys(arguments[1:])
        except BikeError as error:
            sys.exit(f"bike-serving: {error}")
        return
    # A champion is loaded beside requests: not on every core. Polars reads it when it is imported.
    os.environ.setdefault("POLARS_MAX_THREADS", str(max(1, (os.cpu_count() or 1) - 1)))
    options = vars(_parser().parse_args(arguments))
    log_level = options.pop("log_level")
    try:
        settings = Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        fault = error.errors()[0]
        name = "_".join(str(part) for part in fault["loc"])
        if not name:  # settings that do not go together
            sys.exit(f"bike-serving: {fault['msg'].removeprefix('Value error, ')}; see --help")
        sys.exit(
            f"bike-serving: setting {name}: {fault['msg']}; set BIKE_SERVING_{name.upper()} or see --help"
        )
    from bike_serving.security.guard import ensure_keys  # after the checks, so that mistakes are told at once

    try:
        for line in ensure_keys(settings):
            sys.stderr.write(f"bike-serving: {line}\n")
        if settings.workers > 1:
            _run_workers(settings, log_level)
        else:
            _run(settings, log_level)
    except BikeError as error:
        sys.exit(f"bike-serving: {error}")


def _run(settings: Settings, log_level: str) -> None:
    from bike_serving.loading import Loader

    loader = Loader()
    loader.start()  # it gets ready while the rest is imported
    import uvicorn

    from bike_serving.app import create_app

    uvicorn.run(create_app(settings, loader), **_server(settings, log_level))


def _server(settings: Settings, log_level: str) -> dict[str, Any]:
    """What the server is told, whether it is one process or the parent of several."""
    from bike_serving.server import Protocol

    return {
        "host": settings.host,
        "port": settings.port,
        "loop": "uvloop",
        "http": Protocol,
        "server_header": False,
        "access_log": False,  # the guard keeps one
        "log_config": log_config(log_level.upper(), settings.log_format),
        "timeout_graceful_shutdown": 10,
    }


def _run_workers(settings: Settings, log_level: str) -> None:
    """A parent that holds the socket and replaces workers that die; each worker follows the champion itself.

    Workers make the application anew, so what the command line said goes to them through the environment. They
    count into files of a folder that is gone with them; it is not in the state folder, because a full disk there
    must not kill them (files are mapped into memory).
    """
    import uvicorn

    for name in settings.model_fields_set - {"webhook_secret"}:
        value = getattr(settings, name)
        if value is not None and not isinstance(value, SecretStr):
            os.environ[f"BIKE_SERVING_{name.upper()}"] = str(value)
    with tempfile.TemporaryDirectory(prefix="bike-serving-") as folder:
        os.environ[WORKERS_VARIABLE] = folder
        uvicorn.run(
            "bike_serving.app:create_app",
            factory=True,
            workers=settings.workers,
            timeout_worker_healthcheck=30,
            **_server(settings, log_level),
        )


if __name__ == "__main__":
    main()
