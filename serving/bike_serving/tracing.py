"""OpenTelemetry traces, for whoever has a collector: a span a request, named by its route.

Belongs here: switching them on. Off, nothing of OpenTelemetry is imported. Where spans go and how many are kept is
told by OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME`).
Does not belong here: metrics, which Prometheus reads.
"""

from fastapi import FastAPI

from bike_assets.core.errors import PermanentError


class TracingUnavailableError(PermanentError):
    """Traces are switched on and OpenTelemetry is not installed."""


def trace(app: FastAPI) -> None:
    """Give every request a span; a caller's `traceparent` is continued.

    Raises:
        TracingUnavailableError: the extra `tracing` is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingUnavailableError(
            f"BIKE_SERVING_TRACING is on, but {error.name} is not installed; install bike-serving[tracing]"
        ) from error
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    app.add_middleware(OpenTelemetryMiddleware, tracer_provider=provider, exclude_spans=["receive", "send"])
    app.router.add_event_handler("shutdown", provider.shutdown)
