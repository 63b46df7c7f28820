"""Prometheus metrics of one router; names follow vLLM's with our prefix, so that dashboards carry over."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from router.events import Fail, Finish
from router.lifecycle import RequestLifecycle
from router.receipt import Timings
from router.token_pace import TokenPace
from wire.v1 import worker_pb2 as pb

_LATENCY_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0, 120.0, 300.0)
_LENGTH = (1, 8, 32, 128, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)


class RouterMetrics:
    """A registry of its own, so that several routers can live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        latency = partial(Histogram, buckets=_LATENCY_S, registry=registry)
        length = partial(Histogram, buckets=_LENGTH, registry=registry)
        model, transport = ("model_name",), ("transport",)
        self.running = gauge("splice:num_requests_running", "Requests in hand", model)
        self.success = counter("splice:request_success", "Requests answered", (*model, "finished_reason"))
        self.errors = counter("splice:request_errors", "Requests that ended in an error", ("code",))
        self.prompt_tokens = counter("splice:prompt_tokens", "Prompt tokens served", model)
        self.cached_tokens = counter("splice:prompt_tokens_cached", "Prompt tokens found in a prefix cache", model)
        self.ttft = latency("splice:time_to_first_token_seconds", "Receipt to first token released", model)
        self._pace = TokenPace()
        registry.register(self._pace)
        self.e2e = latency("splice:e2e_request_latency_seconds", "Receipt to end", model)
        self.queue = latency("splice:request_queue_time_seconds", "Waiting for memory on decode", model)
        self.request_prompt = length("splice:request_prompt_tokens", "Prompt length", model)
        self.request_generation = length("splice:request_generation_tokens", "Answer length", model)
        self.kv_bytes = counter("splice:kv_transfer_bytes", "KV bytes handed over", transport)
        self.kv_seconds = counter("splice:kv_transfer_seconds", "Time spent copying KV, summed over copies", transport)
        self.kv_exposed = latency(
            "splice:kv_transfer_exposed_seconds", "End of prefill to decode being ready", transport
        )
        self.fallbacks = counter("splice:kv_transport_fallbacks", "Transports tried and given up", transport)
        self.refetched = counter("splice:kv_blocks_refetched", "Blocks whose digest did not match at first", transport)
        blocks = partial(counter, labelnames=("way",))
        self.kv_blocks = blocks("splice:kv_blocks", "KV blocks handed over, pushed by prefill or pulled by decode")
        self.migrations = counter(
            "splice:request_migrations", "Attempts given up and continued elsewhere", (*model, "reason")
        )
        self.local_prefills = counter(
            "splice:local_prefills", "Prompts computed on decode for want of a prefill worker", model
        )
        self.dropped_tokens = counter("splice:stale_tokens_dropped", "Late or repeated tokens kept from clients", model)
        self.disconnects = counter("splice:client_disconnects", "Clients that left early")
        self.responses = counter("splice:http_responses", "HTTP responses begun", ("status",))
        self.workers = gauge("splice:workers", "Workers that can be sent work", ("role",))
        worker = ("worker",)
        self.worker_preemptions = gauge(
            "splice:worker_preemptions", "Requests preempted since the worker's start", worker
        )
        self.worker_swapped_blocks = gauge(
            "splice:worker_swapped_blocks",
            "KV blocks moved to and from host memory since the worker's start",
            (*worker, "direction"),
        )
        self.worker_tactic_lookups = gauge(
            "splice:worker_tactic_lookups",
            "Choices among GPU kernels looked up since the worker's start: measured ones, and ones that were not",
            (*worker, "result"),
        )
        self.worker_tactics_skipped = gauge(
            "splice:worker_tactics_skipped", "GPU kernels left out because they failed when they were tried", worker
        )
        self.view_age = gauge("splice:membership_view_age_seconds", "Since membership was last heard of")
        self.loop_lag = gauge("splice:event_loop_lag_seconds", "How late the event loop wakes up")

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
            self.kv_blocks.labels("push").inc(handoff.blocks_pushed)
            self.kv_blocks.labels("pull").inc(handoff.kv_blocks - handoff.blocks_pushed)
        if isinstance(terminal, Finish):
            self.success.labels(model, terminal.reason.openai_name).inc()
        else:
            self.errors.labels(terminal.error.code.value).inc()

    def show_workers(self, beats: Iterable[tuple[str, pb.Heartbeat]]) -> None:
        """Figures of the workers there are now, and of no other."""
        self.worker_preemptions.clear()
        self.worker_swapped_blocks.clear()
        self.worker_tactic_lookups.clear()
        self.worker_tactics_skipped.clear()
        for worker, beat in beats:
            self.worker_preemptions.labels(worker).set(beat.preemptions)
            self.worker_swapped_blocks.labels(worker, "out").set(beat.swapped_out_blocks)
            self.worker_swapped_blocks.labels(worker, "in").set(beat.swapped_in_blocks)
            if beat.HasField("tactics"):
                self.worker_tactic_lookups.labels(worker, "hit").set(beat.tactics.hits)
                self.worker_tactic_lookups.labels(worker, "miss").set(beat.tactics.misses)
                self.worker_tactics_skipped.labels(worker).set(beat.tactics.skipped)

    def expose(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
