"""What the operator counts, for Prometheus and for tests. No label bears the name of a run."""

from __future__ import annotations

from collections import Counter as Counts

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from hermes_operator.names import Phase


class Metrics:
    """One process' metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.requests: Counts[tuple[str, str, str]] = Counts()
        """Requests to the API by verb, resource and code; "none" where no answer came."""
        self._requests = Counter(
            "hermes_operator_api_requests",
            "Requests to the Kubernetes API.",
            ("verb", "resource", "code"),
            registry=self.registry,
        )
        self.reconciles = Counter(
            "hermes_operator_reconciles",
            "Looks at a run.",
            ("outcome",),
            registry=self.registry,
        )
        self.reconcile_seconds = Histogram(
            "hermes_operator_reconcile_seconds",
            "Time that one look at a run took, its requests included.",
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )
        self.watch_events = Counter(
            "hermes_operator_watch_events",
            "Objects told by watches.",
            ("kind",),
            registry=self.registry,
        )
        self.resyncs = Counter(
            "hermes_operator_lists",
            "Lists taken to heal what watches have lost.",
            ("kind",),
            registry=self.registry,
        )
        self.healed = Counter(
            "hermes_operator_lost_events",
            "Objects that a list told anew although a watch should have.",
            ("kind",),
            registry=self.registry,
        )
        self.runs = Gauge("hermes_operator_runs", "Runs by phase.", ("phase",), registry=self.registry)
        self.queue_waiting = Gauge(
            "hermes_operator_queue_waiting", "Runs that wait to be looked at.", registry=self.registry
        )
        self.queue_held_back = Gauge(
            "hermes_operator_queue_held_back",
            "Runs whose last look failed and that are held back.",
            registry=self.registry,
        )
        self.watch_silence_seconds = Gauge(
            "hermes_operator_watch_silence_seconds",
            "Time since the quietest watch said anything.",
            registry=self.registry,
        )
        self.is_leader = Gauge(
            "hermes_operator_leader", "1 while this process holds the Lease.", registry=self.registry
        )

    def count_request(self, verb: str, resource: str, code: str) -> None:
        """One request, and what was answered."""
        self.requests[verb, resource, code] += 1
        self._requests.labels(verb, resource, code).inc()

    def count_runs(self, phases: Counts[Phase]) -> None:
        """How many runs are in which phase now."""
        for phase in Phase:
            self.runs.labels(phase.value).set(phases[phase])

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
