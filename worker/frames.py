"""Step outputs as wire messages: one frame per router and step, whatever the number of requests."""

from __future__ import annotations

from collections.abc import Iterable

from engine.step_output import BeamsFound, ScoredPrompt, TokenRow
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
    frame = worker_pb2.StepFrame(step=step)
    for piece in scored:
        frame.prompt_logprobs.add(
            request=piece.key[0], attempt=piece.key[1], first=piece.first, logprobs=logprobs_to_proto(piece.logprobs)
        )
    with_logprobs = any(row.logprobs is not None for row in rows)
    for row in rows:
        request, attempt = row.key
        frame.request.append(request)
        frame.attempt.append(attempt)
        frame.seq.append(row.seq)
        frame.num_tokens.append(len(row.tokens))
        frame.tokens.extend(row.tokens)
        frame.finish.append(sampling_pb2.FinishReason.ValueType(int(row.finish)))
        frame.cached_tokens.append(row.cached_tokens)
        frame.handed_off.append(row.handed_off)
        if with_logprobs:
            frame.logprobs.extend(
                logprobs_to_proto(row.logprobs)
                if row.logprobs is not None
                else [sampling_pb2.TokenLogprobs() for _ in row.tokens]
            )
    return frame
