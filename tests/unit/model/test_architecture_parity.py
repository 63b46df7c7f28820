"""Every architecture computes what `transformers`' own class of it computes, through the paged path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import CONFIG, PagedRun, save_model

from engine.loader import load_model
from wire.errors import SpliceError

PROMPT = torch.randint(0, 320, (75,), generator=torch.Generator().manual_seed(3)).tolist()
CHUNKINGS = {"whole": [75], "blocks": [32, 32, 11], "ragged": [20, 1, 50, 4], "single tokens": [1] * 75}
SMALL = {key: value for key, value in CONFIG.items() if key != "head_dim"}
GEMMA = {**CONFIG, "num_hidden_layers": 4, "query_pre_attn_scalar": 20, "sliding_window": 24, "pad_token_id": 0}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [1.5, 2.0, 4.0, 9.0],
    "rope_theta": 500.0,
    "partial_rotary_factor": 0.67,
}
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 32}


def rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 500.0, **parameters}}


def model(name: str, /, base: dict[str, Any] = CONFIG, **changes: Any) -> Callable[[], Any]:
    def build() -> Any:
        torch.manual_seed(5)
        config_class = getattr(transformers, f"{name}Config" if name != "Gemma3" else "Gemma3TextConfig")
        config = config_class(**{**base, **changes})
        reference = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
        for parameter, values in reference.named_parameters():
            if "norm" in parameter or parameter.endswith("bias"):
                torch.nn.init.normal_(values, mean=1.0 if "Gemma" not in name and "norm" in parameter else 0.0, std=0.3)
        return reference

    return build


MODELS: dict[str, Callable[[], Any]] = {
    "llama": model("Llama"),
    "llama linear": model("Llama", **rope(rope_type="linear", factor=4.0)),
    "llama dynamic, short": model("Llama", **rope(rope_type="dynamic", factor=4.0)),
    "llama yarn": model("Llama", rope_parameters=YARN),
    "llama yarn, mscale": model(
        "Llama", rope_parameters={**YARN, "mscale": 0.7, "mscale_all_dim": 0.3, "beta_fast": 8, "truncate": False}
    ),
    "llama yarn, factor": model("Llama", rope_parameters={**YARN, "attention_factor": 1.7, "beta_slow": 2}),
    "mistral": model("Mistral", sliding_window=None),
    "mistral, window": model("Mistral", sliding_window=24),
    "mistral, window of a block": model("Mistral", sliding_window=32, num_key_value_heads=4),
    "qwen2": model("Qwen2", SMALL),
    "qwen2, late windows": model(
        "Qwen2", SMALL, num_hidden_layers=3, use_sliding_window=True, sliding_window=10, max_window_layers=1
    ),
    "qwen3": model("Qwen3"),
    "qwen3, biases, windows, tied": model(
        "Qwen3",
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=40,
        max_window_layers=1,
        tie_word_embeddings=True,
    ),
    "gemma2": model("Gemma2", GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "gemma2, no caps, biases": model(
        "Gemma2", GEMMA, attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True
    ),
    "gemma3": model("Gemma3", GEMMA, num_hidden_layers=7),
    "gemma3, linear, pattern": model(
        "Gemma3",
        GEMMA,
        layer_types=["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
        final_logit_softcapping=4.0,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
        },
    ),
    "phi3": model("Phi3", SMALL, pad_token_id=0),
    "phi3, window, partial rotary": model(
        "Phi3", SMALL, pad_token_id=0, sliding_window=24, **rope(rope_type="default", partial_rotary_factor=0.5)
    ),
    "phi3, longer than it was": model(
        "Phi3", SMALL, pad_token_id=0, rope_parameters=LONG, original_max_position_embeddings=64
    ),
    "phi3, as long as it was": model(
        "Phi3", SMALL, pad_token_id=0, rope_parameters=LONG, original_max_position_embeddings=256
    ),
}
SERVED = {"phi3, as long as it was": 256}
"""`max_model_len` where it is not the model's own."""


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_transformers_in_chunks_and_decode(tmp_path: Path, name: str) -> None:
    reference = MODELS[name]()
    save_model(tmp_path, reference)
    loaded = load_model(tmp_path, served_name=None, dtype="float32", max_model_len=SERVED.get(name))
    prompt_rows = {chunks: _prefill(loaded.model, sizes)[1] for chunks, sizes in CHUNKINGS.items()}
    assert all(torch.equal(row, prompt_rows["whole"]) for row in prompt_rows.values())
    run, logits = _prefill(loaded.model, CHUNKINGS["ragged"])
    tokens = list(PROMPT)
    for _ in range(33):
        with torch.inference_mode():
            expected = reference(torch.tensor([tokens])).logits[0, -1]
        assert relative_error(logits, expected) < 1e-4
        tokens.append(int(expected.argmax()))
        logits = run.step([(0, len(tokens) - 1, tokens[-1:])])[0]


def _prefill(served: Any, sizes: list[int]) -> tuple[PagedRun, torch.Tensor]:
    run = PagedRun(served, num_blocks=6)
    start = 0
    for size in sizes:
        logits = run.step([(0, start, PROMPT[start : start + size])])[0]
        start += size
    return run, logits


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_stays_near(tmp_path: Path, name: str) -> None:
    reference = MODELS[name]()
    save_model(tmp_path, reference)
    loaded = load_model(tmp_path, served_name=None, dtype="bfloat16", max_model_len=SERVED.get(name))
    with torch.inference_mode():
        expected = reference(torch.tensor([PROMPT])).logits[0, -1]
    assert 1e-5 < relative_error(_prefill(loaded.model, [75])[1], expected) < 0.5


def test_dynamic_scaling_is_that_of_the_served_length(tmp_path: Path) -> None:
    reference = model("Llama", max_position_embeddings=64, **rope(rope_type="dynamic", factor=4.0))()
    save_model(tmp_path, reference)
    loaded = load_model(tmp_path, served_name=None, dtype="float32", max_model_len=75)
    with torch.inference_mode():
        expected = reference(torch.tensor([PROMPT])).logits[0, -1]
    assert relative_error(_prefill(loaded.model, [75])[1], expected) < 1e-4
    longest = load_model(tmp_path, served_name=None, dtype="float32", max_model_len=256)
    assert relative_error(_prefill(longest.model, [75])[1], expected) > 1e-2
    assert loaded.card.model_digest != longest.card.model_digest


def test_a_window_that_no_sequence_outgrows_is_none(tmp_path: Path) -> None:
    reference = model("Mistral", sliding_window=100)()
    save_model(tmp_path, reference)
    specs = [load_model(tmp_path, served_name=None, dtype="float32", max_model_len=n).model.spec for n in (100, 101)]
    assert [spec.layers[0].attention.window for spec in specs] == [None, 100]
    with torch.inference_mode():
        expected = reference(torch.tensor([PROMPT])).logits[0, -1]
    served = load_model(tmp_path, served_name=None, dtype="float32", max_model_len=100).model
    assert relative_error(_prefill(served, [75])[1], expected) < 1e-4


def test_scaled_models_reach_beyond_the_positions_they_were_trained_on(tmp_path: Path) -> None:
    save_model(tmp_path, model("Qwen2", SMALL, max_position_embeddings=32, rope_parameters=YARN)())
    assert load_model(tmp_path, served_name=None, dtype="float32", max_model_len=None).card.max_model_len == 32
    assert load_model(tmp_path, served_name=None, dtype="float32", max_model_len=128).card.max_model_len == 128
    with pytest.raises(SpliceError, match="expected 1 to 128"):
        load_model(tmp_path, served_name=None, dtype="float32", max_model_len=129)
