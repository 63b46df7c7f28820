"""What both front doors do: find the model, turn prompts into requests, follow them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from router.choices import ChoiceStream
from router.discovery import Fleet
from router.dispatch import Dispatcher
from router.generation import Generation
from router.metrics import RouterMetrics
from router.pulse import Pulse
from router.requested import Requested, complete
from router.run import Run
from router.settings import RouterSettings
from router.text.tokenizer import ModelText
from wire.errors import ErrorCode, SpliceError
from wire.model_card import ModelCard


@dataclass(frozen=True, slots=True)
class Randomness:
    """Where the router's few random numbers come from; each call gives 64 bits."""

    draw_seed: Callable[[], int]
    draw_id: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a request sent now would find workers, and what is amiss (an error code, or empty)."""

    ready: bool
    reason: str
    prefill_workers: int
    decode_workers: int


class InferenceService:
    """Shared by HTTP and gRPC; lives on one event loop."""

    def __init__(
        self,
        settings: RouterSettings,
        *,
        fleet: Fleet,
        dispatcher: Dispatcher,
        metrics: RouterMetrics,
        randomness: Randomness,
        now: Callable[[], datetime],
        view_age_s: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.fleet = fleet
        self.metrics = metrics
        self.randomness = randomness
        self.draining = False
        self._dispatcher = dispatcher
        self.pulse = Pulse()
        self._now = now
        self._view_age_s = view_age_s
        self.started = self.created()
        self._texts: dict[str, ModelText] = {}
        self._preparing = asyncio.Lock()

    def created(self) -> int:
        """Wall clock for people, seconds since 1970; never used to measure."""
        return int(self._now().timestamp())

    def refresh_gauges(self) -> None:
        """Brings the gauges that nobody pushes up to date."""
        loads = list(self.fleet.workers())
        for role in ("prefill", "decode"):
            self.metrics.workers.labels(role).set(sum(load.record.role == role for load in loads))
        self.metrics.show_workers(self.fleet.heartbeats())
        self.metrics.view_age.set(self._view_age_s())
        self.metrics.loop_lag.set(self.pulse.lag_s)

    def model_text(self, model: str) -> ModelText:
        """Raises model_not_found. An empty name means the only model served, as gRPC clients may send."""
        if not model:
            served = sorted(self.fleet.models())
            if len(served) != 1:
                names = ", ".join(served) or "none yet"
                raise SpliceError(ErrorCode.MODEL_NOT_FOUND, f"name one of the models served: {names}", param="model")
            model = served[0]
        card = self.fleet.card(model)
        text = self._texts.get(card.card_id)
        if text is None:
            text = self._texts[card.card_id] = ModelText(card, self._now)
        return text

    async def prepare(self, card: ModelCard) -> None:
        """Loads a model's tokenizer beside the event loop: no request waits for it. Of a tokenizer that is unusable
        the requests themselves are told."""
        async with self._preparing:
            if card.card_id in self._texts:
                return
            with contextlib.suppress(SpliceError):
                self._texts[card.card_id] = await asyncio.to_thread(ModelText, card, self._now)

    def context_limit(self, text: ModelText) -> int:
        """Most tokens of prompt and answer: the model's, the workers' and the router's own limit, the least of them."""
        limits = [text.card.max_model_len]
        limits += [
            load.record.max_model_len for load in self.fleet.workers() if load.model_digest == text.card.model_digest
        ]
        if self.settings.max_model_len is not None:
            limits.append(self.settings.max_model_len)
        return min(limits)

    def generate(
        self,
        text: ModelText,
        prompts: Sequence[tuple[int, ...]],
        requested: Requested,
        *,
        where: str,
        timeout_s: float | None = None,
        first_choice: int = 0,
    ) -> Generation:
        """Starts every choice of every prompt. Everything is checked before the first of them is sent.

        A prompt is computed once: its other choices wait until the first one's KV can be shared.
        """
        if self.draining:
            raise SpliceError(ErrorCode.DRAINING, "this router is shutting down; try another one", retry_after_s=1.0)
        count = len(prompts) * requested.num_runs
        if self._dispatcher.num_running + count > self.settings.max_running_requests:
            raise SpliceError(
                ErrorCode.OVERLOADED,
                f"{self._dispatcher.num_running} requests are running; at most "
                f"{self.settings.max_running_requests} are taken at a time",
                retry_after_s=1.0,
            )
        limit = self.context_limit(text)
        sampling = [
            complete(
                requested,
                text.card,
                len(prompt),
                limit=limit,
                draw_seed=self.randomness.draw_seed,
                where=where,
                bad_words=text.bad_words(requested.bad_words),
            )
            for prompt in prompts
        ]
        wake = asyncio.Event()
        longest_s = self.settings.request_timeout_s
        streams: list[ChoiceStream] = []
        for index, (prompt, params) in enumerate(zip(prompts, sampling, strict=True)):
            leader: Run | None = None
            for choice in range(requested.num_runs):
                run = self._dispatcher.submit(
                    text.card,
                    prompt,
                    msgspec.structs.replace(
                        params,
                        choice=first_choice + choice,
                        prompt_logprobs=params.prompt_logprobs if leader is None else None,
                    ),
                    min(timeout_s, longest_s) if timeout_s is not None else longest_s,
                    wake,
                    leader=leader,
                )
                leader = leader or run
                streams.append(ChoiceStream(len(streams), index, run, text, requested))
        return Generation(streams, prompts, requested, wake)

    def readiness(self) -> Readiness:
        """Ready with a decode worker. Prefill workers none of which fits a decode worker are named as what is amiss:
        requests are served, computed on decode alone."""
        workers = [load for load in self.fleet.workers() if load.available]
        prefill = [load.record for load in workers if load.record.role == "prefill"]
        decode = [load.record for load in workers if load.record.role == "decode"]
        pairs = any(p.compat_id == d.compat_id and p.model == d.model for p in prefill for d in decode)
        if self.draining:
            reason = ErrorCode.DRAINING.value
        elif not decode:
            reason = ErrorCode.NO_DECODE_WORKERS.value
        elif prefill and not pairs:
            reason = ErrorCode.NO_COMPATIBLE_PAIR.value
        else:
            reason = ""
        return Readiness(bool(decode) and not self.draining, reason, len(prefill), len(decode))
