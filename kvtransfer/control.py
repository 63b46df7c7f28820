"""Between the plain data of `handoff` and the messages of proto/wire/v1/kv.proto."""

from __future__ import annotations

from kvtransfer.handoff import BlockRange, KvFinalData, RequestKey
from wire.convert import logprobs_from_proto, logprobs_to_proto
from wire.kv_layout import KVLayout
from wire.v1 import kv_pb2

SESSION_METADATA = "splice-kv-session"
"""Carries `KvWelcome.session` when Channel is opened: no channel without a Hello that compared everything."""
CODE_METADATA = "splice-code"
"""The `ErrorCode` of a refused call."""


def layout_difference(ours: KVLayout, theirs: kv_pb2.KvLayout) -> str | None:
    """The first field that differs, with both values; None if none does."""
    for field in KVLayout.__struct_fields__:
        here, there = getattr(ours, field), getattr(theirs, field)
        if here != there:
            return f"layout.{field} is {here} at the source and {there} at the consumer"
    return None


def announce_message(
    key: RequestKey, blocks: BlockRange, num_layers: int, final: KvFinalData | None
) -> kv_pb2.KvSourceMessage:
    return kv_pb2.KvSourceMessage(
        announce=kv_pb2.KvAnnounce(
            request=key[0],
            attempt=key[1],
            first_block=blocks.first_block,
            block_id=blocks.block_ids,
            generation=blocks.generations,
            digest=blocks.digests,
            layer_begin=0,
            layer_end=num_layers,
            num_tokens=blocks.num_tokens,
            final=None if final is None else _final_message(final),
            pushed=blocks.pushed,
        )
    )


def announced(message: kv_pb2.KvAnnounce) -> tuple[BlockRange, KvFinalData | None]:
    """Inverse of `announce_message`; columns are compared by the fetch machine, which can say who is to blame."""
    blocks = BlockRange(
        message.first_block,
        tuple(message.block_id),
        tuple(message.generation),
        tuple(message.digest),
        message.num_tokens,
        message.pushed,
    )
    return blocks, _final(message.final) if message.HasField("final") else None


def _final_message(final: KvFinalData) -> kv_pb2.KvFinal:
    return kv_pb2.KvFinal(
        first_tokens=final.first_tokens,
        first_seq=final.first_seq,
        logprobs=logprobs_to_proto(final.logprobs),
        finished=final.finished,
        computed_tokens=final.computed_tokens,
        excess_s=final.excess_s,
    )


def _final(message: kv_pb2.KvFinal) -> KvFinalData:
    return KvFinalData(
        tuple(message.first_tokens),
        message.first_seq,
        logprobs_from_proto(message.logprobs),
        message.finished,
        message.computed_tokens,
        message.excess_s,
    )
