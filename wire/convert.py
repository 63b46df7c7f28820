"""Between protobuf messages and plain types: the one place that knows both. For shells only."""

from __future__ import annotations

from collections.abc import Sequence

from wire.kv_layout import KVLayout
from wire.sampling import Beam, BeamSearch, EarlyStopping, FinishReason, SamplingParams, TokenLogprobs
from wire.v1 import kv_pb2, sampling_pb2, worker_pb2


def sampling_to_proto(sampling: SamplingParams) -> sampling_pb2.SamplingParams:
    """Every field is written, so that the receiver has no default to choose."""
    message = sampling_pb2.SamplingParams(
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        logit_bias=sampling.logit_bias,
        seed=sampling.seed,
        stop_token_ids=sampling.stop_token_ids,
        ignore_eos=sampling.ignore_eos,
        choice=sampling.choice,
        typical_p=sampling.typical_p,
        allowed_token_ids=sampling.allowed_token_ids,
        bad_words=[sampling_pb2.TokenSequence(ids=ids) for ids in sampling.bad_words],
    )
    if sampling.logprobs is not None:
        message.logprobs = sampling.logprobs
    if sampling.prompt_logprobs is not None:
        message.prompt_logprobs = sampling.prompt_logprobs
    if (beam := sampling.beam) is not None:
        message.beam_search.width = beam.width
        message.beam_search.num_answers = beam.num_answers
        message.beam_search.length_penalty = beam.length_penalty
        message.beam_search.early_stopping = sampling_pb2.EarlyStopping.ValueType(int(beam.early_stopping))
        message.beam_search.stop.extend(beam.stop)
        message.beam_search.keep_special_tokens = not beam.skip_special_tokens
    return message


def sampling_from_proto(message: sampling_pb2.SamplingParams) -> SamplingParams:
    """Inverse of `sampling_to_proto`; a message that leaves out an optional field takes the documented default."""
    return SamplingParams(
        max_tokens=message.max_tokens,
        min_tokens=message.min_tokens,
        temperature=message.temperature if message.HasField("temperature") else 1.0,
        top_p=message.top_p if message.HasField("top_p") else 1.0,
        top_k=message.top_k,
        min_p=message.min_p,
        repetition_penalty=message.repetition_penalty if message.HasField("repetition_penalty") else 1.0,
        frequency_penalty=message.frequency_penalty,
        presence_penalty=message.presence_penalty,
        logit_bias=dict(message.logit_bias),
        seed=message.seed,
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
        choice=message.choice,
        typical_p=message.typical_p if message.HasField("typical_p") else 1.0,
        allowed_token_ids=tuple(message.allowed_token_ids),
        bad_words=tuple(tuple(sequence.ids) for sequence in message.bad_words),
        prompt_logprobs=message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
        beam=_beam_from_proto(message.beam_search) if message.HasField("beam_search") else None,
    )


def _beam_from_proto(message: sampling_pb2.BeamSearch) -> BeamSearch:
    return BeamSearch(
        width=message.width,
        num_answers=message.num_answers,
        length_penalty=message.length_penalty if message.HasField("length_penalty") else 1.0,
        early_stopping=EarlyStopping(message.early_stopping or EarlyStopping.FALSE),
        stop=tuple(message.stop),
        skip_special_tokens=not message.keep_special_tokens,
    )


def logprobs_to_proto(logprobs: Sequence[TokenLogprobs]) -> list[sampling_pb2.TokenLogprobs]:
    return [
        sampling_pb2.TokenLogprobs(
            logprob=one.logprob, top_ids=one.top_ids, top_logprobs=one.top_logprobs, rank=one.rank
        )
        for one in logprobs
    ]


def logprobs_from_proto(messages: Sequence[sampling_pb2.TokenLogprobs]) -> tuple[TokenLogprobs, ...]:
    return tuple(
        TokenLogprobs(
            logprob=one.logprob, top_ids=tuple(one.top_ids), top_logprobs=tuple(one.top_logprobs), rank=one.rank
        )
        for one in messages
    )


def beams_to_proto(beams: Sequence[Beam]) -> list[worker_pb2.Beam]:
    return [
        worker_pb2.Beam(
            tokens=beam.tokens,
            logprobs=logprobs_to_proto(beam.logprobs),
            score=beam.score,
            finish=sampling_pb2.FinishReason.ValueType(int(beam.finish)),
        )
        for beam in beams
    ]


def beams_from_proto(messages: Sequence[worker_pb2.Beam]) -> tuple[Beam, ...]:
    return tuple(
        Beam(tuple(one.tokens), logprobs_from_proto(one.logprobs), one.score, FinishReason(one.finish))
        for one in messages
    )


def layout_to_proto(layout: KVLayout) -> kv_pb2.KvLayout:
    return kv_pb2.KvLayout(
        num_layers=layout.num_layers,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        block_tokens=layout.block_tokens,
        dtype=layout.dtype,
        order=layout.order,
        planes=layout.planes,
    )
