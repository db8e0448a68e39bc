"""The command `bike-serving`: listens until told to stop. `bike-serving keys` is in `security.command`."""

import argparse
import sys

from pydantic import ValidationError

from bike_assets.core.errors import BikeError
from bike_serving.settings import Settings


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
    import uvicorn

    from bike_serving.app import create_app  # after the checks, so that help and mistakes are told at once
    from bike_serving.security.guard import ensure_keys

    try:
        for line in ensure_keys(settings):
            sys.stderr.write(f"bike-serving: {line}\n")
        application = create_app(settings)
    except BikeError as error:
        sys.exit(f"bike-serving: {error}")
    uvicorn.run(
        application,
        host=settings.host,
        port=settings.port,
        log_config=_log_config(log_level.upper()),
        timeout_graceful_shutdown=10,
        server_header=False,
    )


def _log_config(level: str) -> dict[str, object]:
    """One line an event, all through one handler; requests are counted in metrics, not logged."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "loggers": {
            "bike_serving": {"level": level},
            "uvicorn.access": {"level": "WARNING"},
            "uvicorn": {"level": level},
        },
        "root": {"level": "WARNING", "handlers": ["stderr"]},
    }


if __name__ == "__main__":
    main()
