"""What the router decided reaches the worker whole."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from wire.convert import (
    beams_from_proto,
    beams_to_proto,
    logprobs_from_proto,
    logprobs_to_proto,
    sampling_from_proto,
    sampling_to_proto,
)
from wire.sampling import Beam, BeamSearch, EarlyStopping, FinishReason, SamplingParams, TokenLogprobs
from wire.v1 import sampling_pb2

IDS = st.integers(0, 2**32 - 1)
SMALL = st.integers(0, 2**31 - 1)
NUMBERS = st.floats(allow_nan=False)
SAMPLING: dict[str, st.SearchStrategy[object]] = {
    "max_tokens": SMALL,
    "min_tokens": SMALL,
    "temperature": NUMBERS,
    "top_p": NUMBERS,
    "top_k": SMALL,
    "min_p": NUMBERS,
    "typical_p": NUMBERS,
    "repetition_penalty": NUMBERS,
    "frequency_penalty": NUMBERS,
    "presence_penalty": NUMBERS,
    "logit_bias": st.dictionaries(IDS, NUMBERS, max_size=4),
    "seed": st.integers(0, 2**64 - 1),
    "stop_token_ids": st.lists(IDS, max_size=4).map(tuple),
    "ignore_eos": st.booleans(),
    "logprobs": st.one_of(st.none(), SMALL),
    "choice": SMALL,
    "allowed_token_ids": st.lists(IDS, max_size=4).map(tuple),
    "bad_words": st.lists(st.lists(IDS, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple),
    "prompt_logprobs": st.one_of(st.none(), SMALL),
    "beam": st.one_of(
        st.none(),
        st.builds(
            BeamSearch,
            width=SMALL,
            num_answers=SMALL,
            length_penalty=NUMBERS,
            early_stopping=st.sampled_from(EarlyStopping),
            stop=st.lists(st.text(min_size=1, max_size=3), max_size=3).map(tuple),
            skip_special_tokens=st.booleans(),
        ),
    ),
}
FIGURES = st.lists(
    st.builds(
        TokenLogprobs,
        NUMBERS,
        st.lists(IDS, max_size=3).map(tuple),
        st.lists(NUMBERS, max_size=3).map(tuple),
        SMALL,
    ),
    max_size=3,
).map(tuple)


def test_every_field_is_under_test() -> None:
    assert {field.name for field in msgspec.structs.fields(SamplingParams)} == SAMPLING.keys()


@given(st.fixed_dictionaries(SAMPLING))
def test_parameters_survive_the_wire(fields: dict[str, object]) -> None:
    sampling = SamplingParams(**fields)  # type: ignore[arg-type]
    message = sampling_pb2.SamplingParams.FromString(sampling_to_proto(sampling).SerializeToString())
    assert sampling_from_proto(message) == sampling


@given(FIGURES, st.lists(st.builds(Beam, st.lists(IDS).map(tuple), FIGURES, NUMBERS, st.sampled_from(FinishReason))))
def test_figures_and_beams_survive_the_wire(figures: tuple[TokenLogprobs, ...], beams: list[Beam]) -> None:
    assert logprobs_from_proto(logprobs_to_proto(figures)) == figures
    assert beams_from_proto(beams_to_proto(beams)) == tuple(beams)
