"""The command `bike-serving`: listens until told to stop."""

import argparse
import sys

from pydantic import ValidationError

from bike_serving.settings import Settings


def _parser() -> argparse.ArgumentParser:
    variables = "\n".join(
        f"  BIKE_SERVING_{name.upper():26}{field.description}"
        + (f" ({field.default})" if field.default is not None else "")
        for name, field in Settings.model_fields.items()
    )
    parser = argparse.ArgumentParser(
        prog="bike-serving",
        description="Serve the champion's bicycle traffic forecasts over HTTP; documentation at /docs.",
        epilog=f"environment variables (defaults):\n{variables}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on")
    parser.add_argument("--home", help="the platform's home")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run the service."""
    options = vars(_parser().parse_args(arguments))
    log_level = options.pop("log_level")
    try:
        settings = Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        fault = error.errors()[0]
        name = "_".join(str(part) for part in fault["loc"])
        sys.exit(
            f"bike-serving: setting {name}: {fault['msg']}; set BIKE_SERVING_{name.upper()} or see --help"
        )
    import uvicorn

    from bike_serving.app import create_app  # after the checks, so that help and mistakes are told at once

    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=_log_config(log_level.upper()),
        timeout_graceful_shutdown=10,
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
