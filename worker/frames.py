"""Step outputs as wire messages: one frame per router and step, whatever the number of requests."""

from __future__ import annotations

from collections.abc import Iterable

from engine.steps.step_output import BeamsFound, ScoredPrompt, TokenRow
from wire.convert import beams_to_proto, logprobs_to_proto
from wire.v1 import sampling_pb2, worker_pb2


def beam_answer(found: BeamsFound) -> worker_pb2.BeamAnswer:
    request, attempt = found.key
    return worker_pb2.BeamAnswer(
        request=request, attempt=attempt, beams=beams_to_proto(found.beams), cached_tokens=found.cached_tokens
    )


def step_frame(step: int, rows: Iterable[TokenRow], scored: Iterable[ScoredPrompt] = ()) -> worker_pb2.StepFrame:
    """Packs rows into columns; log probabilities are sent for all tokens of the frame or for none. Those of prompts
    stand apart."""
    rows = list(rows)
    frame = _columns(step, rows) if rows else worker_pb2.StepFrame(step=step)
    for piece in scored:
        frame.prompt_logprobs.add(
            request=piece.key[0], attempt=piece.key[1], first=piece.first, logprobs=logprobs_to_proto(piece.logprobs)
        )
    if any(row.logprobs is not None for row in rows):
        for row in rows:
            frame.logprobs.extend(
                logprobs_to_proto(row.logprobs)
                if row.logprobs is not None
                else [sampling_pb2.TokenLogprobs() for _ in row.tokens]
            )
    return frame


def _columns(step: int, rows: list[TokenRow]) -> worker_pb2.StepFrame:
    """Whole columns at a time: appending to one of a message costs as much as making the row."""
    cells = [(*row.key, row.seq, len(row.tokens), row.finish, row.cached_tokens, row.handed_off) for row in rows]
    request, attempt, seq, num_tokens, finish, cached_tokens, handed_off = zip(*cells, strict=True)
    return worker_pb2.StepFrame(
        step=step,
        request=request,
        attempt=attempt,
        seq=seq,
        num_tokens=num_tokens,
        tokens=[token for row in rows for token in row.tokens],
        finish=finish,
        cached_tokens=cached_tokens,
        handed_off=handed_off,
    )
