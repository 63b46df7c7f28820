"""splice.v1.Inference on top of the service that HTTP uses too."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio
import msgspec

from router.choices import TextDelta
from router.generation import Generation
from router.requested import read_prompt_logprobs, read_sampling
from router.service import InferenceService
from router.text.tokenizer import ModelText
from router.unforeseen import internal_error
from router.validate import MAX_CHOICES, MAX_TOP_LOGPROBS, integer, invalid, read_messages, read_token_ids
from wire.convert import logprobs_to_proto
from wire.errors import ErrorCode, SpliceError
from wire.sampling import FinishReason
from wire.v1 import inference_pb2 as pb
from wire.v1 import inference_pb2_grpc as rpc
from wire.v1 import sampling_pb2

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_OPTIONAL = (
    "max_tokens",
    "temperature",
    "top_p",
    "repetition_penalty",
    "seed",
    "logprobs",
    "typical_p",
    "prompt_logprobs",
)
_PLAIN = ("min_tokens", "top_k", "min_p", "frequency_penalty", "presence_penalty", "ignore_eos")

_BETWEEN_ROUTER_AND_WORKER = {
    "num_answers": "n",
    "stop": "stop of the request",
    "keep_special_tokens": "keep_special_tokens of the request",
}
"""Fields of a beam search that a client says elsewhere."""


class InferenceServicer(rpc.InferenceServicer):
    """Errors carry `splice-error-code` and, where a field is at fault, `splice-error-param` as trailing metadata."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.GenerateResponse]:
        """The call's deadline and `timeout_s` both hold; a cancelled call cancels the work."""
        try:
            generation = await self._start(request, context)
            answer_id = f"gen-{self._service.randomness.draw_id():016x}"
            answers = _Answers(answer_id, generation)
            async for deltas in generation.deltas():
                for delta in deltas:
                    yield answers.message(delta)
        except SpliceError as error:
            await abort(context, error)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            log.exception("Generate failed")
            await abort(context, internal_error(error))

    async def Tokenize(
        self, request: pb.TokenizeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.TokenizeResponse:
        async def tokenize() -> pb.TokenizeResponse:
            text = self._service.model_text(request.model)
            if request.WhichOneof("input") == "chat":
                ids = await text.encode_chat(read_messages(_messages(request.chat)))
            else:
                ids = await text.encode(request.text, add_bos=request.add_special_tokens and text.card.add_bos)
            return pb.TokenizeResponse(ids=ids, max_model_len=self._service.context_limit(text))

        return await _answer(context, tokenize)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListModelsResponse:
        async def list_models() -> pb.ListModelsResponse:
            models = []
            for name in sorted(self._service.fleet.models()):
                text = self._service.model_text(name)
                roles = [load.record.role for load in self._service.fleet.workers() if load.record.model == name]
                models.append(
                    pb.ModelInfo(
                        id=name,
                        max_model_len=self._service.context_limit(text),
                        prefill_workers=roles.count("prefill"),
                        decode_workers=roles.count("decode"),
                    )
                )
            return pb.ListModelsResponse(models=models)

        return await _answer(context, list_models)

    async def _start(self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]) -> Generation:
        text = self._service.model_text(request.model)
        fields = sampling_fields(request.sampling)
        fields["stop"] = list(request.stop)
        fields["include_stop_str_in_output"] = request.include_stop_str_in_output
        fields["skip_special_tokens"] = not request.keep_special_tokens
        fields["bad_words"] = list(request.bad_words)
        fields |= {name: getattr(request, name) or None for name in ("n", "best_of")}
        requested = read_sampling(
            fields,
            text.card,
            logprobs=integer(fields, "logprobs", 0, MAX_TOP_LOGPROBS),
            prompt_logprobs=read_prompt_logprobs(fields),
            may_score_only=request.sampling.HasField("prompt_logprobs"),
        )
        choice = integer({"choice": request.sampling.choice}, "choice", 0, MAX_CHOICES - 1) or 0
        if choice + requested.best_of > MAX_CHOICES:
            raise invalid("choice", f"{choice} and the {requested.best_of} from there on exceed {MAX_CHOICES}")
        prompt, where = await self._prompt(text, request)
        return self._service.generate(
            text, [prompt], requested, where=where, timeout_s=_time_limit(request, context), first_choice=choice
        )

    @staticmethod
    async def _prompt(text: ModelText, request: pb.GenerateRequest) -> tuple[tuple[int, ...], str]:
        match request.WhichOneof("prompt"):
            case "text":
                return await text.encode_prompt(request.text), "text"
            case "token_ids":
                return read_token_ids(list(request.token_ids.ids), text.card.vocab_size, "token_ids"), "token_ids"
            case "chat":
                return await text.encode_chat(read_messages(_messages(request.chat))), "chat"
            case _:
                raise SpliceError(
                    ErrorCode.INVALID_REQUEST, "no prompt; set one of text, token_ids, chat", param="prompt"
                )


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: SpliceError) -> NoReturn:
    """Ends the call with the status the error table names."""
    metadata = [("splice-error-code", error.code.value)]
    if error.param is not None:
        metadata.append(("splice-error-param", error.param.encode("ascii", "replace").decode()))
    if error.retry_after_s is not None:
        metadata.append(("retry-after", str(max(round(error.retry_after_s), 1))))
    await context.abort(grpc.StatusCode[error.error_class.grpc_status], error.message, tuple(metadata))
    raise AssertionError("abort returned")


def sampling_fields(sampling: sampling_pb2.SamplingParams) -> dict[str, Any]:
    """The fields as the validator names them; what the client left out is left out."""
    given = {descriptor.name for descriptor, _ in sampling.ListFields()}
    fields: dict[str, Any] = {name: getattr(sampling, name) for name in _OPTIONAL if name in given}
    fields |= {name: getattr(sampling, name) for name in _PLAIN}
    fields["logit_bias"] = dict(sampling.logit_bias)
    fields["stop_token_ids"] = list(sampling.stop_token_ids)
    fields["allowed_token_ids"] = list(sampling.allowed_token_ids) or None
    fields["bad_words_ids"] = [list(sequence.ids) for sequence in sampling.bad_words]
    if sampling.HasField("beam_search"):
        fields |= _beam_fields(sampling.beam_search)
    return fields


def _beam_fields(beam: sampling_pb2.BeamSearch) -> dict[str, Any]:
    """A width of 0 is that of `n`; how many are returned is for `n` to say, and what ends them for the request."""
    fields: dict[str, Any] = {"use_beam_search": True, "beam_width": beam.width}
    for name, instead in _BETWEEN_ROUTER_AND_WORKER.items():
        if getattr(beam, name):
            raise invalid(name, f"is between router and worker; set {instead}")
    if beam.HasField("length_penalty"):
        fields["length_penalty"] = beam.length_penalty
    unknown = f"EarlyStopping {beam.early_stopping}"
    fields["early_stopping"] = {0: None, 1: False, 2: True, 3: "never"}.get(beam.early_stopping, unknown)
    return fields


async def _answer(context: grpc.aio.ServicerContext[Any, Any], work: Callable[[], Awaitable[_T]]) -> _T:
    try:
        return await work()
    except SpliceError as error:
        await abort(context, error)
    except Exception as error:
        log.exception("call failed")
        await abort(context, internal_error(error))


def _messages(chat: pb.ChatMessages) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in chat.messages]


def _time_limit(request: pb.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
    """The tighter of what the message and the call ask for; seconds."""
    if not 0 <= request.timeout_s < float("inf"):
        raise SpliceError(
            ErrorCode.INVALID_REQUEST, "timeout_s: must be a finite duration, 0 for none", param="timeout_s"
        )
    limits = [request.timeout_s] if request.timeout_s > 0 else []
    remaining_s = context.time_remaining()
    if remaining_s is not None:
        limits.append(max(remaining_s, 0.0))
    return min(limits) if limits else None


class _Answers:
    """The messages of one call: `finish` ends a choice, `usage` and `receipt` come with the last choice's."""

    def __init__(self, answer_id: str, generation: Generation) -> None:
        self._id = answer_id
        self._generation = generation
        self._unfinished = generation.requested.n
        self._begun = False

    def message(self, delta: TextDelta) -> pb.GenerateResponse:
        response = pb.GenerateResponse(
            id=self._id,
            choice=delta.choice,
            text=delta.text,
            token_ids=delta.tokens,
            logprobs=logprobs_to_proto(delta.logprobs),
            score=delta.score,
        )
        if not self._begun:
            self._begun = True
            response.prompt_logprobs.extend(logprobs_to_proto(self._generation.prompt_logprobs(0)))
        if delta.finish is not FinishReason.NONE:
            self._close(response, delta.finish)
        return response

    def _close(self, response: pb.GenerateResponse, finish: FinishReason) -> None:
        response.finish = sampling_pb2.FinishReason.ValueType(int(finish))
        self._unfinished -= 1
        if self._unfinished:
            return
        usage = self._generation.usage
        response.usage.CopyFrom(
            pb.Usage(
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cached_tokens=usage.cached_tokens,
            )
        )
        response.receipt.CopyFrom(pb.Receipt(**msgspec.structs.asdict(self._generation.receipt)))
