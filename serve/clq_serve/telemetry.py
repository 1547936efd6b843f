"""OpenTelemetry: one span for each request, and one for each of its stages, sent by OTLP.

Only where an endpoint is configured; without one nothing of it is imported.
"""

import logging
import os
import time
from typing import TYPE_CHECKING, Self

from clq_serve import __version__
from clq_serve.errors import SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)

STANDARD = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
STAGES = ("upload", "decode", "queue", "infer", "post", "encode")  # in the order of time
ERRORS_FROM = 500  # a 4xx is the client's error, and no error of the span


class Telemetry:
    """Makes the spans of one service.  Nothing global is set."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("clq_serve", __version__)
        self._context = TraceContextTextMapPropagator()

    @classmethod
    def configured(cls, endpoint: str | None) -> Self | None:
        """None if neither the setting otel_endpoint nor a standard OTEL_ variable names a receiver.

        endpoint  of OTLP over HTTP, e.g. http://127.0.0.1:4318

        Raises SettingsError if the setting is there and the packages are not.
        """
        if endpoint is None and not any(os.environ.get(name) for name in STANDARD):
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as err:
            message = f"OpenTelemetry is not installed ({err.name}): pip install 'clq-serve[otel]'"
            if endpoint is not None:
                raise SettingsError(f"otel_endpoint: {message}") from None
            log.warning("%s", message)
            return None
        named = {"service.name": os.environ.get("OTEL_SERVICE_NAME", "clq-serve")}
        provider = TracerProvider(
            resource=Resource.create(named | {"service.version": __version__}),
            shutdown_on_exit=False,
        )
        url = None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces"
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url)))
        return cls(provider)

    def begin(self, traceparent: str, tracestate: str) -> tuple["Span", str]:
        """The span of a request and its traceparent; its parent is the given one, if any."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        given = {"traceparent": traceparent, "tracestate": tracestate} if traceparent else {}
        parent = self._context.extract(given)
        span = self._tracer.start_span("HTTP", context=parent, kind=SpanKind.SERVER)
        sent: dict[str, str] = {}
        self._context.inject(sent, set_span_in_context(span))
        return span, sent["traceparent"]

    def end(
        self,
        span: "Span | None",
        method: str,
        route: str,
        status: int,
        stages_ms: dict[str, float],
    ) -> None:
        """Ends the span; the stages become its children, one after another up to its end."""
        from opentelemetry.trace import StatusCode, set_span_in_context

        assert span is not None
        span.update_name(f"{method} {route}")
        span.set_attributes(
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
            }
        )
        if status >= ERRORS_FROM:
            span.set_status(StatusCode.ERROR)
        end_ns = time.time_ns()
        stages = [(name, int(1e6 * stages_ms[name])) for name in STAGES if name in stages_ms]
        start_ns = end_ns - sum(ns for _, ns in stages)
        for name, ns in stages:
            child = self._tracer.start_span(
                name, context=set_span_in_context(span), start_time=start_ns
            )
            start_ns += ns
            child.end(start_ns)
        span.end(end_ns)

    def close(self) -> None:
        """Sends what has not been sent yet."""
        self._provider.shutdown()
