"""Prometheus metrics of one router; names follow vLLM's with our prefix, so that dashboards carry over."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from router.events import Fail, Finish
from router.lifecycle import RequestLifecycle
from router.receipt import Timings
from router.token_pace import TokenPace

_LATENCY_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0, 120.0, 300.0)
_LENGTH = (1, 8, 32, 128, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)


class RouterMetrics:
    """A registry of its own, so that several routers can live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        model = ("model_name",)
        self.running = Gauge("splice:num_requests_running", "Requests in hand", model, registry=registry)
        self.success = Counter(
            "splice:request_success", "Requests answered", (*model, "finished_reason"), registry=registry
        )
        self.errors = Counter("splice:request_errors", "Requests that ended in an error", ("code",), registry=registry)
        self.prompt_tokens = Counter("splice:prompt_tokens", "Prompt tokens served", model, registry=registry)
        self.cached_tokens = Counter(
            "splice:prompt_tokens_cached", "Prompt tokens found in a prefix cache", model, registry=registry
        )
        self.ttft = Histogram(
            "splice:time_to_first_token_seconds",
            "Receipt to first token released",
            model,
            buckets=_LATENCY_S,
            registry=registry,
        )
        self._pace = TokenPace()
        registry.register(self._pace)
        self.e2e = Histogram(
            "splice:e2e_request_latency_seconds", "Receipt to end", model, buckets=_LATENCY_S, registry=registry
        )
        self.queue = Histogram(
            "splice:request_queue_time_seconds",
            "Waiting for memory on decode",
            model,
            buckets=_LATENCY_S,
            registry=registry,
        )
        self.request_prompt = Histogram(
            "splice:request_prompt_tokens", "Prompt length", model, buckets=_LENGTH, registry=registry
        )
        self.request_generation = Histogram(
            "splice:request_generation_tokens", "Answer length", model, buckets=_LENGTH, registry=registry
        )
        transport = ("transport",)
        self.kv_bytes = Counter("splice:kv_transfer_bytes", "KV bytes handed over", transport, registry=registry)
        self.kv_seconds = Counter(
            "splice:kv_transfer_seconds", "Time spent copying KV, summed over copies", transport, registry=registry
        )
        self.kv_exposed = Histogram(
            "splice:kv_transfer_exposed_seconds",
            "End of prefill to decode being ready",
            transport,
            buckets=_LATENCY_S,
            registry=registry,
        )
        self.fallbacks = Counter(
            "splice:kv_transport_fallbacks", "Transports tried and given up", transport, registry=registry
        )
        self.refetched = Counter(
            "splice:kv_blocks_refetched", "Blocks whose digest did not match at first", transport, registry=registry
        )
        self.migrations = Counter(
            "splice:request_migrations",
            "Attempts given up and continued elsewhere",
            (*model, "reason"),
            registry=registry,
        )
        self.local_prefills = Counter(
            "splice:local_prefills", "Prompts computed on decode for want of a prefill worker", model, registry=registry
        )
        self.dropped_tokens = Counter(
            "splice:stale_tokens_dropped", "Late or repeated tokens kept from clients", model, registry=registry
        )
        self.disconnects = Counter("splice:client_disconnects", "Clients that left early", registry=registry)
        self.responses = Counter("splice:http_responses", "HTTP responses begun", ("status",), registry=registry)
        self.workers = Gauge("splice:workers", "Workers that can be sent work", ("role",), registry=registry)
        self.view_age = Gauge(
            "splice:membership_view_age_seconds", "Since membership was last heard of", registry=registry
        )
        self.loop_lag = Gauge("splice:event_loop_lag_seconds", "How late the event loop wakes up", registry=registry)

    def on_tokens(self, model: str, timings: Timings, count: int, now_s: float) -> None:
        gap_s = timings.on_tokens(count, now_s)
        if gap_s is None:
            self.ttft.labels(model).observe(timings.ttft_s)
        self._pace.on_tokens(model, count, gap_s)

    def on_end(
        self, model: str, lifecycle: RequestLifecycle, timings: Timings, terminal: Finish | Fail, now_s: float
    ) -> None:
        self.running.labels(model).dec()
        self.dropped_tokens.labels(model).inc(lifecycle.dropped_tokens)
        self.e2e.labels(model).observe(now_s - timings.received_s)
        of_beams = sum(len(beam.tokens) for beam in lifecycle.beams)
        if of_beams:
            self._pace.on_answer(model, of_beams)
        if lifecycle.emitted or of_beams:
            self.prompt_tokens.labels(model).inc(len(lifecycle.prompt))
            self.cached_tokens.labels(model).inc(lifecycle.cached_tokens)
            self.queue.labels(model).observe(lifecycle.queue_s)
            self.request_prompt.labels(model).observe(len(lifecycle.prompt))
            self.request_generation.labels(model).observe(len(lifecycle.emitted) + of_beams)
        handoff = lifecycle.handoff
        if handoff.transport:
            self.kv_bytes.labels(handoff.transport).inc(handoff.kv_bytes)
            self.kv_seconds.labels(handoff.transport).inc(handoff.copy_s)
            self.kv_exposed.labels(handoff.transport).observe(handoff.exposed_s)
            self.fallbacks.labels(handoff.transport).inc(handoff.transport_fallbacks)
            self.refetched.labels(handoff.transport).inc(handoff.blocks_refetched)
        if isinstance(terminal, Finish):
            self.success.labels(model, terminal.reason.openai_name).inc()
        else:
            self.errors.labels(terminal.error.code.value).inc()

    def expose(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
