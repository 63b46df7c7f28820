"""Drives one generation to its end, streamed or whole, and stops it when the client leaves."""

from __future__ import annotations

from typing import Any

import msgspec

from router.choices import TextDelta
from router.generation import Generation
from router.http.answer_objects import AnswerObjects
from router.http.errors import error_body
from router.http.exchange import ClientLeft, Exchange
from router.http.openai_format import receipt_object
from router.unforeseen import internal_error
from wire.errors import ErrorCode, SpliceError
from wire.sampling import FinishReason

RECEIPT_HEADER = b"x-splice-receipt"
DONE = b"[DONE]"


class Answer:
    """One response."""

    def __init__(self, exchange: Exchange, generation: Generation, objects: AnswerObjects) -> None:
        self._exchange = exchange
        self._generation = generation
        self._objects = objects
        self._wants_receipt = exchange.header(RECEIPT_HEADER) == b"1"

    async def send(self, *, stream: bool, include_usage: bool) -> None:
        """Raises ClientLeft when the client went; SpliceError only while nothing has been sent."""
        watcher = self._exchange.watch_client(self._generation.abandon)
        try:
            if stream:
                await self._stream(include_usage)
            else:
                await self._whole()
        except SpliceError as error:
            if error.code is ErrorCode.CANCELLED:
                raise ClientLeft from error
            raise
        finally:
            self._generation.cancel()
            watcher.cancel()
            self._exchange.close()

    async def _whole(self) -> None:
        choices = await self._generation.whole()
        answer = self._objects.whole(choices, self._generation)
        if self._wants_receipt:
            answer["splice_receipt"] = receipt_object(self._generation)
        await self._exchange.send_json(answer)

    async def _stream(self, include_usage: bool) -> None:
        """Headers go out with the first token, so that whatever fails before has a status code of its own."""
        exchange, encode = self._exchange, msgspec.json.encode
        try:
            async for deltas in self._generation.deltas():
                chunks: list[dict[str, Any]] = []
                if not exchange.started:
                    await exchange.start_events()
                    chunks += self._objects.opening(self._generation.num_choices)
                chunks += [self._objects.chunk(delta) for delta in deltas if self._is_worth_sending(delta)]
                if chunks:
                    await exchange.send_events([encode(chunk) for chunk in chunks])
            await exchange.send_events([*(encode(each) for each in self._closing(include_usage)), DONE], last=True)
        except SpliceError as error:
            if not exchange.started or error.code is ErrorCode.CANCELLED:
                raise
            await exchange.send_events([error_body(error)], last=True)
        except Exception as error:
            if not exchange.started:
                raise
            await exchange.send_events([error_body(internal_error(error))], last=True)
            raise

    def _is_worth_sending(self, delta: TextDelta) -> bool:
        return bool(delta.text or delta.logprobs) or delta.finish is not FinishReason.NONE

    def _closing(self, include_usage: bool) -> list[dict[str, Any]]:
        if not include_usage and not self._wants_receipt:
            return []
        last = self._objects.usage_chunk(self._generation.usage)
        if not include_usage:
            last.pop("usage", None)
        if self._wants_receipt:
            last["splice_receipt"] = receipt_object(self._generation)
        return [last]
