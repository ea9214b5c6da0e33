"""What Prometheus is told."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
BATCHES = (1, 2, 4, 8, 16)


class Metrics:
    """The counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("handlens_requests", "Requests answered.", ("route", "status"), registry=self.registry)
        self.seconds = Histogram(
            "handlens_request_seconds",
            "From the headers to the last byte of the answer.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.photos = Counter(
            "handlens_photos", "Photos, by what became of them.", ("model", "outcome"), registry=self.registry
        )
        self.batches = Histogram(
            "handlens_batch_photos",
            "Photos in the network at once.",
            ("model",),
            buckets=BATCHES,
            registry=self.registry,
        )
        self.waiting = Gauge(
            "handlens_photos_now", "Photos decoded, waiting or in the network.", registry=self.registry
        )
        self.model = Gauge(
            "handlens_model", "1 for what is served.", ("model", "version", "net", "runtime"), registry=self.registry
        )

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)
