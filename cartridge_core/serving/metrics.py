"""What Prometheus reads."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from cartridge_core.serving.engine import Engine

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Numbers of one gateway, in a registry of their own.

    Args:
        engine: Asked about its cache when the numbers are read.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._registry = CollectorRegistry()
        whose = ["tenant", "corpus"]
        self.requests = Counter(
            "cartridge_requests", "Requests by outcome.", ["route", "status", *whose], registry=self._registry
        )
        self.seconds = Histogram(
            "cartridge_request_seconds", "Time of requests.", ["route"], buckets=_SECONDS, registry=self._registry
        )
        self.first_token = Histogram(
            "cartridge_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            whose,
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.tokens = Counter(
            "cartridge_tokens",
            "Tokens that users sent (prompt), got (completion), and that stood in front (cartridge).",
            ["kind", *whose],
            registry=self._registry,
        )
        self.saved = Counter(
            "cartridge_saved_prefill_tokens",
            "Corpus tokens that were not read because a Cartridge stood in for them.",
            whose,
            registry=self._registry,
        )
        self.fallbacks = Counter(
            "cartridge_fallbacks", "Answers without the Cartridge.", ["served", *whose], registry=self._registry
        )
        self.running = Gauge("cartridge_answers_running", "Answers being written.", registry=self._registry)
        self.waiting = Gauge("cartridge_answers_waiting", "Answers not begun.", registry=self._registry)
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The cache's own counts."""
        counts = self._engine.cache_counts()
        for name, text, value in (
            ("cartridge_cache_hits", "Requests whose Cartridge was in memory.", counts.hits),
            ("cartridge_cache_misses", "Requests whose Cartridge was not in memory.", counts.misses),
            ("cartridge_loads", "Cartridges loaded.", counts.loads),
            ("cartridge_failed_loads", "Loads that failed.", counts.failed_loads),
            ("cartridge_load_seconds", "Time of all loads.", counts.load_seconds),
            ("cartridge_evictions", "Cartridges that made room.", counts.evictions),
        ):
            yield CounterMetricFamily(name, text, value=value)
        yield GaugeMetricFamily("cartridge_resident_bytes", "Bytes of Cartridges in memory.", counts.resident_bytes)

    async def text(self) -> bytes:
        """All numbers in Prometheus's format."""
        health = await self._engine.health()
        self.running.set(health.running)
        self.waiting.set(health.waiting)
        return generate_latest(self._registry)
