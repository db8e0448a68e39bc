"""OpenTelemetry traces, for whoever has a collector: a span a request, named by its route, a caller's continued.

Belongs here: where spans go. FastAPI makes them itself once it has a provider; without one it must not even ask, for
asking costs a look-up as much as answering it. How many spans are kept and where they are sent is told by
OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME`). Does not
belong here: metrics, which Prometheus reads.
"""

from fastapi.telemetry import TelemetryConfig

from bike_assets.core.errors import PermanentError


class TracingUnavailableError(PermanentError):
    """Traces are switched on and OpenTelemetry is not installed."""


def telemetry(tracing: bool) -> TelemetryConfig:
    """FastAPI's `telemetry`: traces or nothing.

    Raises:
        TracingUnavailableError: the extra `tracing` is not installed.
    """
    if not tracing:
        return {"tracing": False, "metrics": False, "logs": False}
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingUnavailableError(
            f"BIKE_SERVING_TRACING is on, but {error.name} is not installed; install bike-serving[tracing]"
        ) from error
    provider = TracerProvider()  # sends what is left when the process ends
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return {"tracing": True, "metrics": False, "logs": False, "tracer_provider": provider}
