"""Between the worker protocol's messages and the events and actions of the life cycle."""

from __future__ import annotations

from collections.abc import Iterator

from router.events import (
    Action,
    BeamsFound,
    Event,
    Failed,
    HandedOff,
    HandoffFigures,
    PromptScored,
    Reserved,
    SendAttach,
    SendCancel,
    SendGenerate,
    SendPrefill,
    SendReserve,
    TokenRow,
    WorkerKey,
)
from wire.convert import beams_from_proto, logprobs_from_proto
from wire.errors import ErrorCode, SpliceError
from wire.sampling import FinishReason
from wire.v1 import worker_pb2


def events_of(worker: WorkerKey, message: worker_pb2.WorkerMessage) -> Iterator[tuple[int, Event]]:
    """(request, event) pairs of one message, in its order.

    Raises invalid_request when the columns of a frame do not fit together: such a worker cannot be trusted further.
    """
    body = message.WhichOneof("body")
    if body == "frame":
        for scored in message.frame.prompt_logprobs:
            figures = logprobs_from_proto(scored.logprobs)
            yield scored.request, PromptScored(worker, scored.attempt, scored.first, figures)
        yield from _rows(worker, message.frame)
    elif body == "beams":
        found = message.beams
        answers = beams_from_proto(found.beams)
        yield found.request, BeamsFound(worker, found.attempt, answers, found.cached_tokens)
    elif body == "reserved":
        reserved = message.reserved
        yield reserved.request, Reserved(worker, reserved.attempt, reserved.cached_tokens, reserved.queue_s)
    elif body == "handoff":
        report = message.handoff
        handoff = HandoffFigures(
            transport=report.transport,
            kv_bytes=report.kv_bytes,
            kv_blocks=report.kv_blocks,
            copy_s=report.copy_s,
            exposed_s=report.exposed_s,
            transport_fallbacks=report.transport_fallbacks,
            blocks_refetched=report.blocks_refetched,
            blocks_pushed=report.blocks_pushed,
        )
        yield report.request, HandedOff(worker, report.attempt, handoff)
    elif body == "failed":
        failed = message.failed
        error = SpliceError(_error_code(failed.code), failed.message)
        yield failed.request, Failed(worker, failed.attempt, error, failed.retryable, failed.blamed_worker)


def _rows(worker: WorkerKey, frame: worker_pb2.StepFrame) -> Iterator[tuple[int, Event]]:
    tokens, logprobs, start = list(frame.tokens), frame.logprobs, 0
    columns = (
        frame.request,
        frame.attempt,
        frame.seq,
        frame.num_tokens,
        frame.finish,
        frame.cached_tokens,
        frame.handed_off,
    )
    try:
        if sum(frame.num_tokens) != len(tokens) or len(logprobs) not in (0, len(tokens)):
            raise ValueError
        rows = list(zip(*columns, strict=True))
    except ValueError:
        raise SpliceError(
            ErrorCode.INVALID_REQUEST,
            f"step frame {frame.step}: columns of {[len(column) for column in columns]} rows for {len(tokens)} tokens "
            f"and {len(logprobs)} logprobs; expected them to fit together",
        ) from None
    for request, attempt, seq, length, finish, cached_tokens, handed_off in rows:
        end = start + length
        figures = logprobs_from_proto(logprobs[start:end]) if logprobs else ()
        own = tuple(tokens[start:end])
        row = TokenRow(worker, attempt, seq, own, _FINISH[finish], figures, cached_tokens, handed_off)
        yield request, row
        start = end


_FINISH = {reason.value: reason for reason in FinishReason}
"""By value: looking up an enum's member costs more than the row does."""


def _error_code(name: str) -> ErrorCode:
    """Workers send the value or the name of a code; one this router does not know is an internal error."""
    try:
        return ErrorCode(name.lower())
    except ValueError:
        return ErrorCode.INTERNAL_ERROR


def target_of(action: Action) -> WorkerKey:
    """Which worker an action is to be sent to; raises TypeError for actions that are not sent."""
    if isinstance(action, SendReserve | SendPrefill | SendGenerate | SendAttach | SendCancel):
        return action.worker
    raise TypeError(f"not a message to a worker: {action}")
