"""What operators see: counts and times for Prometheus, spans for OpenTelemetry.

Of OpenTelemetry only the API is used: where the process has no SDK, spans are nothing and cost nothing. The phases of a
save or restore are those that `--json` has; they are told when it is over, so their spans get their times afterwards.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

from opentelemetry import trace
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Bounds of the histograms: a health check to a save of a large GPU program."""
TOTAL = "total"
"""Among the phases of a save or restore: how long it took."""
STATES = ("starting", "running", "pausing", "paused")


class Work:
    """A save, restore or fork that is going on."""

    def __init__(self, telemetry: Telemetry, verb: str, tracer: trace.Tracer) -> None:
        self._telemetry, self._verb, self._tracer = telemetry, verb, tracer
        self._began_ns = time.time_ns()

    def phases(self, seconds: Mapping[str, float]) -> None:
        """Its parts, one after the other, in seconds; `total` is all of them, which the span around is, too."""
        at = self._began_ns
        for name, took in seconds.items():
            self._telemetry.phase_seconds.labels(self._verb, name).observe(took)
            if name == TOTAL:
                continue
            span = self._tracer.start_span(f"{self._verb} {name}", start_time=at)
            at += round(took * 1e9)
            span.end(at)


class Asked:
    """A request that is being answered."""

    def __init__(self, span: trace.Span) -> None:
        self._span, self.status = span, 500

    def answered(self, status: int | None) -> None:
        """With which status; None where nothing was sent."""
        if status is not None:
            self.status = status
        self._span.set_attribute("http.response.status_code", self.status)


class Telemetry:
    """The metrics of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._tracer = trace.get_tracer("ijfs.serve")
        registry = self._registry
        self.requests = Counter("ijfs_requests", "Requests that were answered", ["call", "status"], registry=registry)
        self.request_seconds = Histogram(
            "ijfs_request_seconds",
            "From a request to the end of its answer",
            ["call"],
            buckets=SECONDS,
            registry=registry,
        )
        self.phase_seconds = Histogram(
            "ijfs_phase_seconds", "Parts of saves and restores", ["verb", "phase"], buckets=SECONDS, registry=registry
        )
        self.sandboxes = Gauge("ijfs_sandboxes", "Sandboxes by state", ["state"], registry=registry)

    @contextlib.contextmanager
    def request(self, call: str) -> Iterator[Asked]:
        """Around a request."""
        began = time.monotonic()
        with self._tracer.start_as_current_span(call) as span:
            asked = Asked(span)
            try:
                yield asked
            finally:
                self.requests.labels(call, str(asked.status)).inc()
                self.request_seconds.labels(call).observe(time.monotonic() - began)

    @contextlib.contextmanager
    def work(self, verb: str) -> Iterator[Work]:
        """Around a save, restore or fork."""
        with self._tracer.start_as_current_span(verb):
            yield Work(self, verb, self._tracer)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self._registry)
