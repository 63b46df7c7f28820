"""A hand-off of latents: blocks of one plane pass between workers, and the answer goes on with the bits of one worker.

Prompts are computed one way and answers another, so this is also where the length of the prompt must arrive.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import test_hand_over
import torch
from role_bench import submit
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from engine.scheduling.request import RequestKind
from tests.tiny_model import write_tiny_model
from wire.convert import sampling_to_proto
from wire.sampling import SamplingParams

pair = test_hand_over.pair


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeepSeek-V3 with another model's tokenizer."""
    folder = write_tiny_model(tmp_path_factory.mktemp("latents") / "tiny")
    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=260, hidden_size=48, intermediate_size=72, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, q_lora_rank=24, kv_lora_rank=20, qk_nope_head_dim=10,
        qk_rope_head_dim=6, v_head_dim=14, n_routed_experts=8, num_experts_per_tok=3, n_group=4, topk_group=2,
        first_k_dense_replace=1, max_position_embeddings=512, initializer_range=0.3, num_nextn_predict_layers=0,
    )  # fmt: skip
    DeepseekV3ForCausalLM(config).float().save_pretrained(folder)
    return folder


async def test_the_answer_is_that_of_decode_alone(pair: test_hand_over.Pair) -> None:
    assert pair.decode.layout.planes == 1
    await pair.check_answer_is_that_of_decode_alone()


async def test_another_attempt_goes_on_where_the_first_ended(pair: test_hand_over.Pair) -> None:
    sampling = sampling_to_proto(SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True))
    prompt = list(submit(1).tokens)
    pair.decode.role.submit(RequestKind.GENERATE, submit(9, tokens=prompt, sampling=sampling), pair.decode.session)
    await pair.turn_until(lambda: len(pair.decode.session.tokens) == 60)
    alone = pair.decode.session.tokens
    # Forty tokens of the answer are computed again, in one step with the prompt.
    pair.begin(submit(1, attempt=2, tokens=prompt + alone[:40], num_prompt_tokens=len(prompt), sampling=sampling))
    await pair.turn_until(lambda: len(pair.decode.session.tokens) == 60 + 19)
    assert alone[:40] + pair.prefill.session.tokens + pair.decode.session.tokens[60:] == alone
    await pair.both_empty()
